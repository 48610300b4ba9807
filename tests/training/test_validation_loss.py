"""Laws of the validation loss: what is held back, what is measured, and what stays untouched."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny.runs import assert_same_atoms, read_metrics

import sdatoms
from sdatoms.training.folder import Source
from sdatoms.training.held_back import choose_held, suggest_held
from sdatoms.training.inputs import check_inputs
from sdatoms.training.loop import Run, train

QUIET = {"validation_steps": 2, "num_validation_images": 0}
"""Measures twice in a run and paints nothing."""


def make_sources(count, concept="", prefix=""):
    names = [f"{prefix}{k}.png" for k in range(count)]
    return [
        Source(Path(n), "a cat", None, (8, 8), n, f"digest {n}", concept=concept) for n in names
    ]


def read_losses(folder):
    rows = read_metrics(folder)
    return {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}


@pytest.mark.parametrize("count", [1, 3, 7])
def test_pictures_held_back_and_trained_on_are_all_pictures_once(count):
    sources = make_sources(8)
    kept, held = choose_held(sources, count, seed=3)
    assert len(held) == count and sorted(kept + held, key=str) == sorted(sources, key=str)
    assert choose_held(sources[::-1], count, seed=3)[1] == held[::-1]
    assert len({tuple(s.name for s in choose_held(sources, 2, seed)[1]) for seed in range(9)}) > 1


def test_every_concept_keeps_a_picture_and_equal_files_go_together():
    sources = [*make_sources(1, "dog", "d"), *make_sources(3, "cat", "c")]
    kept, held = choose_held(sources, 3, seed=0)
    assert {s.concept for s in kept} == {"dog", "cat"} and {s.concept for s in held} == {"cat"}
    twins = [replace(s, digest="one") for s in make_sources(2, prefix="t")] + make_sources(2)
    for seed in range(6):
        kept, held = choose_held(twins, 1, seed)
        assert not {s.digest for s in kept} & {s.digest for s in held}


def test_few_pictures_are_not_held_back_unasked():
    assert [suggest_held(count) for count in (1, 7, 8, 16, 1000)] == [0, 0, 1, 2, 8]


@pytest.mark.parametrize("changes", [{}, {"use_ema": True}, {"train_text_encoder": True}])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_measuring_leaves_every_trained_bit_as_it_was(train_config, tmp_path, kind, changes):
    plain = train_config(kind, **changes)
    shutil.copytree(plain.instance_data_dir, tmp_path / "others")
    for k, path in enumerate(sorted((tmp_path / "others").glob("*.png"))):
        path.write_bytes(path.read_bytes() + b"another file") if k < 2 else path.unlink()
    measured = replace(
        plain, **QUIET, validation_data_dir=str(tmp_path / "others"), output_dir=str(tmp_path / "m")
    )
    list(train(plain))
    torch.manual_seed(99)
    list(train(measured))
    assert_same_atoms(plain.output_dir, measured.output_dir)
    losses = read_losses(measured.output_dir)
    assert sorted(losses) == [0, 2, 4] and len(set(losses.values())) == 3


def test_a_run_that_holds_pictures_back_is_the_run_on_the_others(train_config, tmp_path):
    held = train_config(**QUIET, num_validation_pictures=1)
    folder = check_inputs(held)
    assert len(folder.sources) == 3 and len(folder.held) == 1
    others = tmp_path / "others"
    others.mkdir()
    for source in folder.sources:
        shutil.copyfile(source.path, others / source.path.name)
        caption = source.path.with_suffix(".txt")
        if caption.exists():
            shutil.copyfile(caption, others / caption.name)
    apart = train_config(instance_data_dir=str(others), output_dir=str(tmp_path / "apart"))
    list(train(held))
    list(train(apart))
    assert_same_atoms(held.output_dir, apart.output_dir)


def test_a_measurement_is_the_same_again_and_that_of_the_file(train_config):
    run = Run(train_config(**QUIET, num_validation_pictures=2, learning_rate=5e-2))
    run.prepare()
    first = run.validation.loss.measure()
    assert run.validation.loss.measure() == first == run.validation.loss.measure(base=True)
    list(run.walk())
    run.close("done")
    losses = read_losses(run.directory.path)
    assert losses[0] == first and losses[4] == run.validation.loss.measure() != first
    assert run.validation.loss.measure(base=True) == first, "the base is untouched by live atoms"


def test_a_resumed_run_measures_and_chooses_to_the_bit(train_config, tmp_path):
    whole = train_config(
        **QUIET | {"validation_steps": 1},
        num_validation_pictures=1,
        best_metric="validation_loss",
        learning_rate=5e-2,
        checkpointing_steps=1,
    )
    list(train(whole))
    parts = replace(whole, output_dir=str(tmp_path / "parts"))
    steps = train(parts)
    next(steps), next(steps)
    steps.close()
    list(train(replace(parts, resume_from_checkpoint="latest")))
    assert read_metrics(tmp_path / "parts") == read_metrics(whole.output_dir)
    assert_same_atoms(tmp_path / "parts", whole.output_dir)
    losses = read_losses(whole.output_dir)
    report = json.loads((Path(whole.output_dir) / "report.json").read_text())
    best = min((step for step in losses if step), key=losses.get)
    assert report["chosen_step"] == best
    assert report["validation_pictures"] == [s.name for s in check_inputs(whole).held]


def test_auto_keeps_the_step_with_the_least_validation_loss(train_config, make_pictures, tmp_path):
    folder = Path(train_config().instance_data_dir)
    for path in sorted(folder.glob("*.png")):
        more = path.with_name(f"more-{path.name}")
        more.write_bytes(path.read_bytes() + b"another file")
    config = train_config(**QUIET, best_metric="auto", checkpointing_steps=4)
    lines = []
    list(train(config, notify=lines.append))
    losses = read_losses(config.output_dir)
    file = sdatoms.read_atoms(Path(config.output_dir) / "atoms.safetensors")
    assert int(file.metadata["step"]) == min((2, 4), key=losses.get)
    assert any("the least loss on 1 held-back picture" in line for line in lines)
    assert any(line.startswith("validation: 1 not trained on (") for line in lines)
    assert "num_validation_pictures = 1" in (Path(config.output_dir) / "config.toml").read_text()
    # A checkpoint made before pictures were held back goes on with all of them.
    old = replace(config, num_validation_pictures=0, output_dir=str(tmp_path / "old"))
    list(train(old))
    record = Path(old.output_dir) / "checkpoints" / "step-000004" / "record.json"
    made = json.loads(record.read_text())
    for name in ("validation_split", "num_validation_pictures", "validation_data_dir"):
        del made["settings"][name]
    record.write_text(json.dumps(made))
    again = replace(old, num_validation_pictures=None, resume_from_checkpoint="latest")
    assert len(list(train(replace(again, max_train_steps=5)))) == 1


def test_what_cannot_be_held_back_is_refused_before_anything_is_written(train_config, tmp_path):
    folder = train_config().instance_data_dir
    inside, copy = Path(folder) / "inside", tmp_path / "copy"
    shutil.copytree(folder, copy)
    for changes, words in (
        ({"num_validation_pictures": 4}, "leave none to train on; hold back at most 3"),
        ({"validation_split": 0.9}, "--validation_split 0.9 would hold back 4 of 4"),
        ({"validation_data_dir": str(inside)}, "whose subfolders are trained on"),
        ({"validation_data_dir": str(copy)}, "are trained on as well"),
    ):
        config = train_config(**QUIET, **changes)
        with pytest.raises(sdatoms.AtomError, match=words):
            next(train(config))
        assert not Path(config.output_dir).exists()
    for changes, words in (
        ({"num_validation_pictures": 1, "validation_steps": 0}, "which is 0"),
        ({"num_validation_pictures": 1, "validation_split": 0.1}, "leave all but one out"),
        ({"best_metric": "validation_loss"}, "needs pictures that are not trained on"),
    ):
        with pytest.raises(sdatoms.AtomError, match=words):
            train_config(**changes)


def test_a_run_that_measures_nothing_says_so_and_what_would_measure_it(train_config):
    lines = []
    list(train(train_config(**QUIET), notify=lines.append))
    (line,) = [line for line in lines if "nothing is measured" in line]
    assert "--evaluator clip" in line and "--num_validation_pictures" in line
