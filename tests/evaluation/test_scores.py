"""The scores: a table of a tiny pipeline, and the figures of the trainer."""

import json

import pytest
from PIL import Image
from tiny.modules import copy_weights, same_weights
from tiny.pictures import draw_noise

import sdatoms
from sdatoms.cli.score_table import draw_checks, draw_scores
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.triggers import clean_prompt, write_prompts
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.samples import measure_samples
from sdatoms.evaluation.scores import Scorer, evaluate
from sdatoms.evaluation.truth import choose_prompts, read_truth
from sdatoms.storage import find_assets, read_subject

PAINTING = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture
def pipe(make_pipe):
    return make_pipe(size=16)


@pytest.fixture
def rows(one_thread, pipe, evaluator_folder, subject, make_file):
    files = [("dog", sdatoms.read_atoms(make_file(variant="atoms", size=0.3)))]
    before = copy_weights(pipe.unet)
    found = evaluate(
        pipe,
        files,
        load_evaluator(str(evaluator_folder)),
        prompts=["a cat", "a sks dog"],
        seeds=range(2),
        subject=subject,
        **PAINTING,
    )
    assert same_weights(pipe.unet, before)
    return {row.name: row for row in found}


def test_the_table_holds_every_row_and_figure(rows):
    tuned, base = rows["dog"], rows["base without atoms"]
    for row in (tuned, base):
        assert row.pictures == 4
        absent = {name for name, value in vars(row).items() if value is None}
        assert absent == {"truth", "error", "followed"}
    assert base.drift == pytest.approx(0, abs=1e-6) and tuned.drift > 1e-6
    assert tuned.fidelity != base.fidelity
    given = rows["training pictures, among themselves"]
    assert given.pictures == 3 and given.drift is None and given.alignment is not None
    assert {name.split(":")[0] for name in rows} >= {"wrong vendor", "wrong concept"}
    head, *lines = draw_scores(list(rows.values())).splitlines()
    assert head.split() == ["dog", "base", "alone"] and max(map(len, lines)) < 80
    told = {line.split()[0]: line.split()[2] for line in lines[:-1]}
    assert told["drift"] == f"{tuned.drift:.3f}" and "truth" not in told
    checks = draw_checks(list(rows.values()))
    assert len(checks.splitlines()) == len(rows) - 2 and "training pictures" in checks
    json.dumps([vars(row) for row in rows.values()], allow_nan=False)


def test_without_subject_and_with_one_seed_two_figures_are_absent(
    one_thread, pipe, evaluator_folder
):
    base, other = evaluate(
        pipe, [], load_evaluator(str(evaluator_folder)), prompts=["a cat"], seeds=[3], **PAINTING
    )
    assert base.fidelity is base.likeness is base.diversity is None and base.alignment is not None
    assert other.name.startswith("wrong concept") and other.pictures == 10


@pytest.fixture
def scenes(one_thread, pipe, evaluator_folder, subject):
    """A scorer of a subject whose true pictures are known, of two known prompts and a strange
    one."""
    (subject / "subject.json").write_text('{"package": "none", "truth": "robot"}')
    plain, beach, *_ = read_truth("robot").wishes
    return Scorer(
        pipe,
        load_evaluator(str(evaluator_folder)),
        prompts=[plain.prompt, beach.prompt, "a sks robot, winking"],
        seeds=[0],
        subject=subject,
        **PAINTING,
    )


def test_true_pictures_bring_three_figures_and_four_rows(scenes):
    rows = {row.name: row for row in scenes.check()}
    true = rows["true pictures"]
    assert true.pictures == 2 and true.truth == pytest.approx(1, abs=1e-5) and true.followed == 1
    for name in ("base without atoms", "ceiling: base, things it knows"):
        assert rows[name].truth < 0.999 and rows[name].error > 0.001
        assert 0 <= rows[name].followed <= 1
    assert {"wrong subject: others, same settings", "wrong setting: the subject alone"} <= set(rows)
    assert not any(name.startswith("wrong vendor") for name in rows)
    lines = draw_scores(list(rows.values())).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["truth", "followed", "error"]


def count_latents():
    """Latent channels of the bundled base; the one that was trained on scenes has 24."""
    return json.loads((find_assets() / "emoji-sd" / "unet" / "config.json").read_text())[
        "in_channels"
    ]


@pytest.mark.slow
@pytest.mark.skipif(count_latents() < 24, reason="the bundled base was not trained on scenes")
def test_the_base_paints_what_it_knows_better_than_what_it_does_not():
    folder, about = read_subject("robot")
    prompts = choose_prompts(read_truth("robot"), about["instance_prompt"])
    scorer = Scorer(load_base(), load_evaluator(), prompts=prompts, seeds=[0], subject=folder)
    rows = {row.name: row for row in scorer.check()}
    base, ceiling = rows["base without atoms"], rows["ceiling: base, things it knows"]
    assert base.truth < ceiling.truth < rows["true pictures"].truth
    assert ceiling.truth > rows["wrong subject: others, same settings"].truth
    assert base.error > ceiling.error
    assert ceiling.followed > 0.7 > rows["wrong setting: the subject alone"].followed


def test_prompts_come_from_the_trigger_and_are_read_without_it():
    styles = write_prompts("an emoji in sks style")
    assert len(set(styles)) == 5 and all(text.endswith(" in sks style") for text in styles)
    assert all(text.startswith("a sks cat, ") for text in write_prompts("a sks cat"))
    assert clean_prompt("cat face in sks style") == "cat face"
    assert clean_prompt("a cat in the style of sks") == "a cat"
    assert clean_prompt("a sks cat, <my-cat> winking") == "a cat, winking"
    assert clean_prompt("a tasks list") == "a tasks list"


def test_the_trainer_gets_every_figure_of_its_samples(evaluator_folder):
    """Instance pictures score above noise, and copies neither differ nor drift."""
    measure = measure_samples(load_evaluator(str(evaluator_folder)))
    noise = draw_noise(((16, 16),) * 2)
    same = [Image.new("RGB", (16, 16), "red")] * 2
    copies = measure(None, same, ["a", "a"], same[:1], list(zip(noise, noise, strict=True)))
    other = measure(None, noise, ["a", "a"], same[:1], list(zip(noise, same, strict=True)))
    assert set(copies) == {"fidelity", "alignment", "diversity", "drift", "balance"}
    assert copies["fidelity"] > 0.999 > other["fidelity"]
    assert copies["diversity"] == pytest.approx(0, abs=1e-5) and other["diversity"] > 1e-3
    assert copies["drift"] == pytest.approx(0, abs=1e-5) and other["drift"] > 1e-3
    for found in (copies, other):
        balance = found["fidelity"] + found["alignment"] - found["drift"]
        assert found["balance"] == pytest.approx(balance)
    alone = measure(None, noise, ["a", "b"], same[:1], [])
    assert set(alone) == {"fidelity", "alignment", "balance"}
    assert alone["balance"] == pytest.approx(alone["fidelity"] + alone["alignment"])
