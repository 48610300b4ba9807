"""The benchmark of personalization: one order of batches, cells that are kept, rates that grow."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny.evaluator import save_tiny_evaluator
from tiny.pipelines import build_pipeline, save_base

from sdatoms import AtomError
from sdatoms.bench.cells import Cell
from sdatoms.bench.judge import Painting
from sdatoms.bench.methods import METHODS
from sdatoms.bench.one_subject import show_subject
from sdatoms.bench.personalization import Bench, Entry, Plan, average
from sdatoms.bench.personalization_choices import (
    choose_rate,
    choose_settings,
    grow_rates,
    list_between,
    list_validation,
    score_values,
)
from sdatoms.bench.personalization_matches import (
    compare_methods,
    find_best,
    find_matches,
    list_rows,
    pick_atoms,
)
from sdatoms.bench.personalization_report import write_report
from sdatoms.bench.runs import Run, make_config
from sdatoms.bench.tasks import list_tasks, open_task, split_tasks
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.training.batches import draw_batches

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Painting((0, 1), prompts=2, unrelated=1, num_inference_steps=1)
NAMES = ("atoms", "LoRA r1 attention")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return save_tiny_evaluator(tmp_path_factory.mktemp("evaluator"))


@pytest.fixture
def plan(base, evaluator, tmp_path):
    return Plan(
        tmp_path / "bench",
        methods=NAMES,
        tasks=("hedgehog", "robot"),
        base=str(base),
        evaluator=str(evaluator),
        seeds=(0,),
        steps=(1, 2),
        batch_size=1,
        painting=TINY,
        growth=0,
    )


def read_cells(folder):
    """Every kept result, without what depends on the machine."""
    tables = {path.name: json.loads(path.read_text()) for path in folder.glob("cells/*.json")}
    for table in tables.values():
        table["result"].pop("seconds_per_step", None)
    return tables


def make_run(plan, name, pipe=None):
    bench = Bench(plan)
    cell = bench.make_cell(METHODS[name], 1e-3, "koala", 0, [2])
    pipe = pipe or build_pipeline(size=64, width=12, tokens=16, text_layers=1, seed=7)
    return Run(pipe, cell, make_config(cell, bench.open("koala"), None))


def test_all_methods_see_the_same_batches(plan):
    names = ("product b16", "full fine-tuning", "LoRA r1 attention", "textual inversion")
    runs = [make_run(plan, name) for name in names]
    for step in range(2):
        batches = [draw_batches(r.data.instances, None, step, r.draw)[0] for r in runs]
        for batch in batches[1:]:
            assert batch.names == batches[0].names and batch.prompts == batches[0].prompts
            for field in ("latents", "noise", "timesteps"):
                assert torch.equal(getattr(batch, field), getattr(batches[0], field))


def test_a_prior_by_prediction_is_the_base_s_own_and_leaves_no_trace(plan):
    run = make_run(plan, "product b16: prior by prediction")
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.add_(0.05)
    kept = [p.detach().clone() for p in run.parameters]
    own, prior = draw_batches(run.data.instances, None, 0, run.draw)
    assert prior.from_base and run.measure(prior) > 0
    assert all(torch.equal(p, k) for p, k in zip(run.parameters, kept, strict=True))
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.zero_()
    assert run.measure(prior) == 0 < run.measure(own)


def test_a_strength_over_the_steps_is_painted_with_from_the_file(plan):
    bench = Bench(plan)
    rows = [replace(METHODS["product b16"], strength=text) for text in ("", "1", "0")]
    cells = [bench.make_cell(row, 3e-2, "koala", 0, [3]) for row in rows]
    one, same, none = (bench.run(cell)["marks"]["3"] for cell in cells)
    base = bench.measure_base("koala").values
    assert none == base and average(none["drift"]) == 0 < average(one["drift"])
    for name in ("likeness", "drift"):
        assert same[name] == pytest.approx(one[name], abs=1e-3)


def test_a_bench_that_was_stopped_equals_the_uninterrupted_one(plan, monkeypatch):
    whole, torn = (replace(plan, output_dir=plan.output_dir / name) for name in ("whole", "torn"))
    short = {name: replace(METHODS[name], rates=METHODS[name].rates[2:3]) for name in NAMES}
    for module in ("personalization", "personalization_choices"):
        monkeypatch.setattr(f"sdatoms.bench.{module}.METHODS", METHODS | short)
    choices = choose_settings(Bench(whole))
    entries, refused = Bench(whole).test()
    markdown = write_report(Bench(whole), entries, refused, whole.output_dir)

    stopped, left = Bench(torn), 1
    run = stopped.run

    def stop(cell):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return run(cell)

    stopped.run = stop
    with pytest.raises(KeyboardInterrupt):
        choose_settings(stopped)
    assert len(read_cells(torn.output_dir)) == 1
    assert choose_settings(Bench(torn)) == choices
    Bench(torn).test()
    assert read_cells(torn.output_dir) == read_cells(whole.output_dir)

    assert average(entries[0].values["drift"]) == 0
    own, peer = ([e for e in entries if e.cell.method.name == name] for name in NAMES)
    assert [row["method"] for row in list_rows(entries)] == ["base", *NAMES]
    gain, loss = compare_methods(own, peer, "drift"), compare_methods(peer, own, "drift")
    assert gain.mean == pytest.approx(-loss.mean)
    assert "LoRA r1 attention" in markdown
    assert "better than" not in markdown  # the reference is not among them
    turned = write_report(Bench(whole), entries, refused, whole.output_dir, NAMES[0])
    assert f"better than {NAMES[0]} by" in turned and markdown in turned.replace(
        turned[turned.index("## scenes: better") : turned.index("## scenes: atoms held")], ""
    )
    page = (whole.output_dir / "report.html").read_text()
    assert "data:image/webp;base64," in page and "http" not in page.replace("http://www.w3", "")
    json.loads((whole.output_dir / "report.json").read_text(), parse_constant=pytest.fail)

    other = replace(whole, base=str(save_base(plan.output_dir / "other", seed=8)))
    with pytest.raises(AtomError, match="was made with the base"):
        choose_settings(Bench(other))


def test_a_report_knows_what_was_chosen_on_fewer_prompts(plan, monkeypatch):
    short = {name: replace(METHODS[name], rates=METHODS[name].rates[2:3]) for name in NAMES}
    monkeypatch.setattr("sdatoms.bench.personalization_choices.METHODS", METHODS | short)
    few = replace(plan, painting=replace(plan.painting, prompts=1))
    choices = choose_settings(Bench(few))
    found = list_validation(Bench(plan), choices)
    assert {entry.cell.method.name for entry in found} == {*NAMES}
    assert {len(entry.values["drift"]) > 0 for entry in found} == {True}
    assert {entry.cell.painting.prompts for entry in found} == {1} != {plan.painting.prompts}


def test_another_evaluator_measures_what_was_painted_without_a_training(plan, monkeypatch):
    bench = Bench(replace(plan, steps=(1, 2)))
    cell = bench.make_cell(METHODS["atoms"], 1e-2, "koala", 0, [1, 2])
    first = bench.run(cell)
    head = load_evaluator(plan.evaluator)
    with torch.no_grad():
        head.clip.logit_scale.zero_()  # changes no figure
    monkeypatch.setattr("sdatoms.bench.personalization.run_cell", pytest.fail)
    again = Bench(bench.plan)
    again.evaluator = head
    assert again.store.judge != bench.store.judge and again.store.base == bench.store.base
    assert again.run(cell) == first and list(first["marks"]) == ["1", "2"]
    with torch.no_grad():
        head.clip.visual_projection.weight[::2].zero_()
    other = Bench(bench.plan)
    other.evaluator = head
    second = other.run(cell)
    assert second["marks"]["2"]["truth"] == first["marks"]["2"]["truth"]
    assert second["marks"]["2"]["alignment"] != first["marks"]["2"]["alignment"]
    shown, painted = bench.store.read_pictures(cell), bench.store.read_painted(cell)["2"]
    assert [p.tobytes() for p in shown] == [p.tobytes() for p in painted.asked[::2]]


def test_a_cell_that_another_process_is_at_is_left_to_it(plan):
    bench, run = Bench(plan), Bench.run
    cells = [bench.make_cell(METHODS["atoms"], r, "koala", 0, [1]) for r in (1e-3, 1e-2)]
    made = []
    bench.run = lambda cell: made.append(cell) or run(bench, cell)
    with bench.store.claim(cells[0]) as first:
        with Bench(plan).store.claim(cells[0]) as second:
            assert first and not second
        bench.share(cells[1:])
        assert made == cells[1:]
    bench.share(cells)
    assert made == [cells[1], cells[0]]


def test_only_the_best_rates_of_the_first_task_are_tried_on_the_others(plan, monkeypatch):
    bench, method = Bench(plan), METHODS["atoms"]
    worth = {rate: -abs(k - 1.4) for k, rate in enumerate(method.rates)}
    seen = []

    def run(cell):
        seen.append((cell.task, cell.rate))
        value = worth[cell.rate] + (10.0 if cell.rate == method.rates[2] else 0) * (
            cell.task == "koala"
        )
        return {"marks": {str(s): {"truth": [value], "drift": [0.0]} for s in cell.steps}}

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "share", lambda cells: None)
    chosen = choose_rate(bench, method, ["hedgehog", "koala"])
    assert chosen["rate"] == method.rates[2] and chosen["inside"]
    assert {rate for task, rate in seen if task == "hedgehog"} == set(method.rates)
    assert len({rate for task, rate in seen if task == "koala"}) == 2
    assert len(chosen["tried"]) == 10 and len(chosen["tried_on_all"]) == 4


def test_a_peer_that_does_not_run_here_is_named_with_the_reason(plan, monkeypatch):
    broken = replace(METHODS["LoRA r1 attention"], name="broken", options={"target_modules": "no"})
    known = METHODS | {"broken": broken}
    for module in ("personalization", "personalization_choices", "personalization_report"):
        monkeypatch.setattr(f"sdatoms.bench.{module}.METHODS", known)
    bench = Bench(replace(plan, methods=("broken",)))
    choose_settings(bench)
    entries, refused = bench.test()
    assert {e.cell.method.name for e in entries} == {"base"} and "Target modules" in refused[
        "broken"
    ]
    assert "broken does not run here" in write_report(bench, entries, refused, plan.output_dir)


def test_nothing_is_reported_before_it_was_chosen(plan):
    with pytest.raises(AtomError, match="--choose"):
        Bench(plan).test()
    with pytest.raises(AtomError, match="there is no task 'bel'; there are bell, "):
        Bench(replace(plan, tasks=("bel",)))
    with pytest.raises(AtomError, match="there is no method 'LoRA r4'; there are LoRA r4 "):
        Bench(replace(plan, methods=("LoRA r4",)))


def test_one_subject_is_put_side_by_side(plan, monkeypatch):
    few = {"atoms": replace(METHODS["atoms"], rates=(1e-3, 1e-2, 1e-1))}
    monkeypatch.setattr("sdatoms.bench.personalization.METHODS", few)
    monkeypatch.setattr("sdatoms.bench.one_subject.METHODS", few)
    own = replace(plan, methods=("atoms",), tasks=None, steps=(1,))
    strip = plan.output_dir / "strip.png"
    (entry,) = show_subject(Bench(own), "octopus", strip, ["atoms"])
    assert entry.cell.rate == 1e-2
    assert strip.is_file() and (plan.output_dir / "octopus.png").is_file()


def test_the_split_is_written_once(tmp_path):
    tasks, path = list_tasks(), tmp_path / "split.json"
    split = split_tasks(tasks, path)
    assert sorted(split["validation"] + split["test"]) == sorted(tasks)
    kinds = [tasks[name] for name in split["validation"]]
    assert kinds.count("scenes") == 6 and kinds.count("drawings") == 1
    assert split_tasks(tasks | {"new": "scenes"}, path)["test"] == [*split["test"], "new"]
    assert split_tasks(tasks, tmp_path / "again.json") == split


def test_a_style_is_asked_for_drawings_that_it_was_not_shown(tmp_path):
    task = open_task("ink", tmp_path)
    shown = {path.read_text() for path in task.folder.glob("*.txt")}
    assert len(shown) == 5 and len(task.true) == 3
    assert not shown & set(task.prompts)


def test_photographs_are_tasks_of_their_classes(tmp_path):
    folder = tmp_path / "photographs" / "dog2"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "00.png")
    (folder.parent / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\ndog2,dog\n\nPrompts\n"
    )
    task = open_task("photographs/dog2", tmp_path, folder.parent)
    assert task.instance_prompt == "a sks dog" and not task.true


def test_the_grid_grows_until_the_best_is_inside():
    assert grow_rates((1e-3, 3e-3, 1e-2), 3e-3) is None
    assert grow_rates((1e-3, 3e-3, 1e-2), 1e-2) == 3e-2
    assert grow_rates((1e-3, 3e-3, 1e-2), 1e-3) == 3e-4


def test_rates_lie_halfway_between_the_best_and_its_neighbours():
    assert list_between((1e-3, 4e-3, 9e-3, 1.0), 4e-3) == [2e-3, 6e-3]
    assert list_between((1e-3, 4e-3), 4e-3) == [2e-3]


def test_what_is_learnt_counts_and_half_of_what_it_may_cost():
    values = {"truth": [0.5, None], "fidelity": [9.0], "likeness": [9.0], "drift": [0.25]}
    assert score_values(values) == 0.375
    assert score_values(values | {"followed": [0.5], "diversity": [0.25]}) == 0.75
    del values["truth"]
    assert score_values(values) == 17.875


def make_entry(method, task, seed, truth, numbers, mark=2):
    cell = Cell(METHODS[method], 1e-3, task, seed, (mark,), 1, TINY, "")
    marks = {str(mark): {"truth": truth, "drift": [0.1]}}
    return Entry(cell, "scenes", {"numbers": numbers, "bytes": 1, "layers": 1, "marks": marks})


def test_atoms_for_a_peer_are_picked_where_rates_are_and_judged_on_the_test():
    peer, small, best = "LoRA r4 attention + conv", "product b8", "product b16"
    sizes = {peer: 300_000, small: 9_000, best: 29_000, "full": 31_000}
    levels = {peer: 0.5, small: 0.4, best: 0.6, "full": 0.9}
    known = [make_entry(n, "a", 0, [levels[n]], sizes[n]) for n in sizes]
    picks = pick_atoms(known)
    assert picks == {peer: best}  # the third has more than a tenth of its numbers
    tested = [make_entry(n, t, 0, [0.5, 0.5], sizes[n]) for n in (peer, small) for t in "bc"]
    (match,) = find_matches(tested, picks)
    assert not match["atoms"] and not match["holds"]
    tested += [make_entry(best, t, 0, [0.3, 0.3], sizes[best]) for t in "bc"]
    (match,) = find_matches(tested, picks)
    assert match["atoms"] == best and not match["holds"]
    assert match["gains"]["truth"].high == pytest.approx(-0.2)
    found = find_best([make_entry(n, t, 0, [levels[n]], sizes[n]) for n in sizes for t in "bc"])
    assert (found["atoms"], found["peer"]) == ("full", peer)
    assert found["gain"] == pytest.approx((0.4, 0.4, 0.4))
    (match,) = find_matches(tested, {peer: small})
    assert match["holds"] and match["gains"]["drift"].low == 0
