"""What a setting does: a change is one point, held against the row itself on the same pictures."""

import json
from dataclasses import replace

import pytest
from tiny.evaluator import save_tiny_evaluator
from tiny.pipelines import build_unet, save_base

from sdatoms import AtomError
from sdatoms.bench.ablation_rows import CHANGES, PRESETS, STRENGTHS, name_changes
from sdatoms.bench.ablations import ablate, list_changed, write_ablations
from sdatoms.bench.judge import Painting
from sdatoms.bench.methods import METHODS
from sdatoms.bench.personalization import Bench, Plan
from sdatoms.layers.inject import inject
from sdatoms.storage import write_whole
from sdatoms.training.config import TrainConfig, make_atom_config
from sdatoms.training.presets import expand_preset

pytestmark = pytest.mark.usefixtures("one_thread")
ROW = METHODS["product b16"]
USUAL = {"block_atoms": 4}
"""Settings that a preset leaves to the layer."""
NAMES = ("strength 0.8", "weight decay 10")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    root = tmp_path_factory.mktemp("ablations")
    return Plan(
        root / "bench",
        tasks=("hedgehog", "bell", "robot"),
        base=str(save_base(root / "base")),
        evaluator=str(save_tiny_evaluator(root / "evaluator")),
        seeds=(0,),
        batch_size=1,
        painting=Painting((0,), prompts=2, unrelated=1, num_inference_steps=1),
    )


def choose(plan, rate):
    chosen = {"scenes": {ROW.name: {"rate": rate, "steps": 2}}}
    write_whole(plan.output_dir / "choices.json", json.dumps(chosen).encode())


@pytest.mark.parametrize("name", [ROW.name, *PRESETS])
def test_a_change_is_one_point_of_the_row(name):
    row = METHODS[name]
    changed = list_changed(row)
    assert list(changed) == name_changes(row)
    assert ("weight decay 1, noisy steps" in changed) == (name == ROW.name)
    for change, other in changed.items():
        one = CHANGES.get(change, {})
        assert other.training == {**row.training, **one} and other.targets == row.targets
        assert other.strength == STRENGTHS.get(change, row.strength)
        assert other.describe() != row.describe()


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        *zip(("balanced", "best"), PRESETS[:2], strict=True),
        ("photograph", "word decay 10 r4 each, all layers: weight decay 1, noisy steps"),
    ],
)
def test_rows_named_after_presets_train_what_these_do(preset, name):
    trained, training = TrainConfig(**expand_preset(preset, {})), METHODS[name].training
    for setting, value in training.items():
        assert (getattr(trained, setting) or USUAL.get(setting)) == value, setting
    assert METHODS[name].targets is None


def test_the_truest_row_trains_what_its_preset_does():
    row = METHODS["shared r16 each, LoRA's layers: weight decay 1, noisy steps"]
    trained = TrainConfig(**expand_preset("likeness", {}))
    assert row.training == {setting: getattr(trained, setting) for setting in row.training}
    config = make_atom_config(trained)
    own, rows = (
        list(inject(build_unet(), replace(config, target_modules=layers)).layers)
        for layers in (config.target_modules, row.targets)
    )
    assert own == rows != []


def test_an_unknown_change_is_refused_with_those_there_are():
    with pytest.raises(AtomError, match=r"no change 'magic' of 'product b16'.*averages"):
        list_changed(ROW, ["magic"])
    with pytest.raises(AtomError, match="no change 'averages' of 'atoms'; there are: none"):
        list_changed(METHODS["atoms"], ["averages"])


def test_the_row_and_its_changes_are_held_against_each_other_on_tasks_that_choose(plan):
    changed = list(list_changed(ROW, NAMES).values())
    with pytest.raises(AtomError, match="no rate of 'product b16' is chosen yet"):
        ablate(Bench(plan), ROW, changed)
    choose(plan, 3e-2)
    with pytest.raises(AtomError, match="no task of the plan is a validation task"):
        ablate(Bench(replace(plan, tasks=("robot",))), ROW, changed)

    entries = ablate(Bench(plan), ROW, changed)
    assert {e.cell.task for e in entries} == {"hedgehog", "bell"}  # the robot chooses nothing
    assert {e.cell.rate for e in entries} == {3e-2} and {e.cell.steps for e in entries} == {(2,)}
    text = write_ablations(Bench(plan), ROW, entries)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["nothing", *sorted(NAMES)]
    assert (plan.output_dir / "ablations.md").read_text() == text

    table = json.loads((plan.output_dir / "ablations.json").read_text())
    rows = {row["method"].removeprefix(f"{ROW.name}: "): row for row in table["rows"]}
    assert table["tasks"] == ["bell", "hedgehog"] and rows[ROW.name]["gains"] is None
    gain, weaker = rows["strength 0.8"]["gains"]["drift"], rows["strength 0.8"]["drift"]
    assert gain["mean"] == pytest.approx(rows[ROW.name]["drift"] - weaker)
    assert weaker < rows[ROW.name]["drift"]
    assert gain["low"] <= gain["mean"] <= gain["high"]


def test_of_no_change_the_row_stands_alone_and_says_how_it_was_painted(plan):
    choose(plan, 3e-2)
    assert list_changed(ROW, []) == {}
    weaker = replace(plan, painting=replace(plan.painting, guidance_scale=2.5), tasks=("bell",))
    text = write_ablations(Bench(weaker), ROW, ablate(Bench(weaker), ROW, []))
    assert "guidance 2.5; bell" in text and text.count("\n| ") == 3


def test_what_was_trained_is_not_trained_again(plan, monkeypatch):
    choose(plan, 3e-2)
    changed = list(list_changed(ROW, NAMES).values())
    first = ablate(Bench(plan), ROW, changed)
    monkeypatch.setattr("sdatoms.bench.personalization.run_cell", None)
    again = ablate(Bench(plan), ROW, changed)
    assert [e.values for e in again] == [e.values for e in first]
