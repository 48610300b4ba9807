"""A. A run that goes on looks at what it goes on with: settings, pictures, base, place."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from tiny.runs import read_bytes, read_metrics

import sdatoms
from sdatoms.cli.main import main
from sdatoms.training.config import TrainConfig
from sdatoms.training.loop import train
from sdatoms.training.record import FIXED, PLACES, compare_record


def change(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, "x"] if isinstance(value, list | tuple) else f"{value}x"


@pytest.fixture
def checkpoint(tmp_path, make_file):
    """A folder as `checkpoints/step-…`, and the fingerprints of its base."""
    folder = tmp_path / "step-000002"
    folder.mkdir()
    make_file().rename(folder / "atoms.safetensors")
    file = sdatoms.read_atoms(folder / "atoms.safetensors")
    return folder, file.metadata["base_fingerprints"]


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_every_changed_setting_is_named_or_refused(checkpoint, name):
    folder, prints = checkpoint
    made = {"settings": asdict(TrainConfig()), "pictures": {}, "base": {}}
    now = made | {"settings": made["settings"] | {name: change(made["settings"][name])}}
    if name in FIXED:
        with pytest.raises(sdatoms.AtomError, match=f"--{name} was .* and is"):
            compare_record(folder, made, now, prints)
    else:
        changed = compare_record(folder, made, now, prints)
        assert list(changed) == ([] if name in PLACES else [name])
    assert compare_record(folder, made, made, prints) == {}


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"0": ["a", "p", ""]}, "pictures are gone .1."),
        ({"0": ["a", "p", ""], "1": ["b", "p", ""], "2": ["c", "p", ""]}, "pictures are new .2."),
        ({"0": ["x", "p", ""], "1": ["b", "p", ""]}, "pictures were changed .0."),
        ({"0": ["a", "p", ""], "1": ["b", "q", ""]}, "prompts were changed .1."),
        ({"0": ["a", "p", "m"], "1": ["b", "p", ""]}, "masks were changed .0."),
    ],
)
def test_other_pictures_are_refused_by_name(checkpoint, now, words):
    folder, prints = checkpoint
    made = {"settings": {}, "pictures": {"0": ["a", "p", ""], "1": ["b", "p", ""]}, "base": {}}
    with pytest.raises(sdatoms.AtomError, match=words):
        compare_record(folder, made, made | {"pictures": now}, prints)


def test_another_base_is_refused_even_by_checkpoints_without_a_record(checkpoint):
    folder, prints = checkpoint
    other = json.loads(prints)
    path = next(iter(other["unet"]))
    other["unet"][path][0] *= 2
    with pytest.raises(sdatoms.AtomError, match="the base's unet has other weights"):
        compare_record(folder, None, {}, json.dumps(other))


def test_a_refused_call_writes_nothing_and_an_accepted_one_says_what_changed(
    train_config, tmp_path
):
    config = train_config(max_train_steps=2, learning_rate=1e-3)
    list(train(config))
    held = read_bytes(config.output_dir)
    again = replace(config, resume_from_checkpoint="latest", max_train_steps=4)
    stranger = tmp_path / "other" / "checkpoints" / "step-000002"
    stranger.mkdir(parents=True)
    for changes, words in (
        ({"atom_variant": "full"}, "--atom_variant was"),
        ({"resume_from_checkpoint": str(stranger)}, "is not one of this run"),
        ({"resume_from_checkpoint": "step-000009"}, "there is no checkpoint"),
        ({"max_train_steps": 1}, "past --max_train_steps"),
        ({"report_to": "paper"}, "--report_to"),
        ({"lr_scheduler": "sawtooth"}, "--lr_scheduler"),
        ({"optimizer": "lion", "resume_from_checkpoint": None}, "--optimizer lion"),
        ({"pretrained_model_name_or_path": str(tmp_path)}, "no diffusers pipeline"),
    ):
        with pytest.raises(sdatoms.AtomError, match=words):
            next(train(replace(again, **changes)))
        assert read_bytes(config.output_dir) == held, changes
    with pytest.raises(sdatoms.AtomError, match="--lr_scheduler"):
        fresh = str(tmp_path / "fresh")
        next(train(replace(config, output_dir=fresh, lr_scheduler="sawtooth")))
    assert not Path(fresh).exists()
    lines = []
    list(train(replace(again, learning_rate=1e-5), notify=lines.append))
    assert [line for line in lines if "learning_rate 0.001 → 1e-05" in line]
    assert [row["lr"] for row in read_metrics(config.output_dir)] == [1e-3, 1e-3, 1e-5, 1e-5]


def test_nothing_to_resume_is_said_and_old_checkpoints_are_taken_with_a_note(train_config):
    config = train_config(max_train_steps=1, resume_from_checkpoint="latest")
    lines = []
    list(train(config, notify=lines.append))
    assert "nothing to resume" in lines[0]
    (record,) = (Path(config.output_dir) / "checkpoints").glob("*/record.json")
    record.unlink()
    lines.clear()
    steps = list(train(replace(config, max_train_steps=2), notify=lines.append))
    assert [step.step for step in steps] == [2] and "is not checked" in lines[0]


def test_a_moved_run_goes_on_where_it_is(train_config, tmp_path, capsys):
    config = train_config(max_train_steps=1)
    list(train(config))
    Path(config.output_dir).rename(tmp_path / "moved")
    words = ["--resume_from_checkpoint", "latest", "--max_train_steps", "2"]
    main(["train", "--config", str(tmp_path / "moved" / "config.toml"), *words])
    assert len(read_metrics(tmp_path / "moved")) == 2 and not Path(config.output_dir).exists()
    assert "the run was moved" in capsys.readouterr().err
