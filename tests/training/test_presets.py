"""Presets are plain settings, under whatever is given, and their costs are those measured."""

import json
import tomllib
from argparse import Namespace
from pathlib import Path

import pytest

from sdatoms.cli.main import main
from sdatoms.cli.train import read_settings
from sdatoms.errors import AtomError
from sdatoms.training import presets
from sdatoms.training.checks import READING
from sdatoms.training.config import TrainConfig, make_atom_config
from sdatoms.training.presets import PRESETS, expand_preset
from sdatoms.training.real_presets import REAL_PRESETS

NO_NAMES = ('["a"]', "{a = 1}", "3", "true", "2024-01-02")
SUBJECT = {"instance_data_dir": "dogs", "instance_prompt": "a sks dog"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config(name):
    config = TrainConfig(**expand_preset(name, SUBJECT))
    for key, value in PRESETS[name].settings.items():
        assert getattr(config, key) == value, key
    assert TrainConfig(**expand_preset(name, {}))  # without a prompt there is no class to keep


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_given_wins(name):
    given = {"max_train_steps": 7, "learning_rate": 1e-5, "with_prior_preservation": False}
    settings = expand_preset(name, SUBJECT | given | {"prior_preservation_mode": "images"})
    assert {key: settings[key] for key in given} == given
    TrainConfig(**settings)


@pytest.mark.parametrize("form", ["map", "product", "shared"])
@pytest.mark.parametrize("name", ["quick", "best", "tiny", "style"])
def test_another_form_drops_what_only_the_own_one_has(name, form):
    settings = expand_preset(name, SUBJECT | {"block_form": form})
    assert make_atom_config(TrainConfig(**settings)).block_form == form
    asked = expand_preset(name, SUBJECT | {"block_form": "product", "block_factors": "each"})
    assert asked["block_factors"] == "each"


@pytest.mark.parametrize(
    "given",
    [
        {"block_form": "product"},
        {"atom_layers": "convolutions"},
        {"shared_atoms": "captions"},
        {"atom_variant": "overcomplete"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_words_decay_only_where_trained_atoms_read_them(given):
    whole = {"shared_atoms": "trained", "atom_layers": "text", "block_form": "shared"}
    layers = ({"atom_layers": name} for name in READING)
    for same in ({}, whole, *layers):
        assert expand_preset("balanced", SUBJECT | same)["word_decay"] > 0
    settings = expand_preset("balanced", SUBJECT | given)
    assert TrainConfig(**settings).word_decay == 0
    assert expand_preset("balanced", SUBJECT | given | {"word_decay": 1.0})["word_decay"] == 1


@pytest.mark.parametrize("name", ["balanced", "best"])
def test_atoms_that_read_the_captions_bring_their_own_rate_and_layers(name):
    plain, reading = (
        expand_preset(name, SUBJECT | more) for more in ({}, {"shared_atoms": "captions"})
    )
    config = TrainConfig(**reading)
    assert config.learning_rate > plain["learning_rate"] and config.atom_layers == "text"
    given = {"shared_atoms": "captions", "block_atoms": 7, "learning_rate": 0.5}
    own = expand_preset(name, SUBJECT | given)
    assert {key: own[key] for key in given} == given and reading.get("block_atoms") is None


def test_prodigy_finds_its_own_rate_under_a_preset():
    assert "learning_rate" not in expand_preset("quick", {"optimizer": "prodigy"})
    own = expand_preset("quick", {"optimizer": "prodigy", "learning_rate": 0.5})
    assert own["learning_rate"] == 0.5


def test_the_class_is_the_prompt_without_its_rare_words():
    assert expand_preset("pet", SUBJECT)["class_prompt"] == "a dog"
    assert expand_preset("pet", SUBJECT | {"class_prompt": "a pet"})["class_prompt"] == "a pet"
    plain = expand_preset("pet", SUBJECT | {"instance_prompt": "a dog"})  # nothing rare in it
    assert "class_prompt" not in plain and "with_prior_preservation" not in plain


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(AtomError, match="no preset 'quik'; did you mean quick"):
        expand_preset("quik", {})
    own = "quick, balanced, best, tiny, pet, object, style, photograph, likeness"
    with pytest.raises(AtomError, match=f"there are {own}, sd15-"):
        expand_preset("zzz", {})


def test_the_command_line_beats_the_file_and_the_file_the_preset(train_config, tmp_path):
    config = train_config()
    file = tmp_path / "own.toml"
    file.write_text('preset = "balanced"\nlearning_rate = 1e-3\nmax_train_steps = 5\n')
    flags = ["instance_data_dir", "instance_prompt", "output_dir", "pretrained_model_name_or_path"]
    words = [word for name in flags for word in (f"--{name}", getattr(config, name))]
    more = ["--max_train_steps", "1", "--validation_steps", "0", "--best_metric_goal", "max"]
    main(["train", "--config", str(file), *words, *more])
    with (Path(config.output_dir) / "config.toml").open("rb") as written:
        found = tomllib.load(written)
    assert found["max_train_steps"] == 1  # the command line
    assert found["learning_rate"] == 1e-3  # the file
    assert found["adam_weight_decay"] == 1 and found["block_form"] == "shared"  # the preset


def test_costs_are_measured_for_the_presets_as_they_are():
    costs = json.loads(Path(presets.__file__).with_name("presets.json").read_text())["presets"]
    assert set(costs) == set(PRESETS) - set(REAL_PRESETS)
    for name, row in costs.items():
        assert row["settings"] == dict(PRESETS[name].settings), f"measure {name} again"
        assert row["core_seconds"] > 0 and row["peak_memory_bytes"] > 0 and row["bytes"] > 0
    assert costs["quick"]["core_seconds"] <= 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((f"preset = {value}", "preset is .* where the name of one fits") for value in NO_NAMES),
        ('preset = "sd15-pet"\ninstance_data_dir = 5', "instance_data_dir is 5 where str fits"),
        ('preset = "quick"\ninstance_prompt = ["a"]', "instance_prompt is .* where str fits"),
        ('preset = "none"', "there is no preset 'none'"),
        ("max_train_steps = 1" + "0" * 400, "max_train_steps is 1000.*, more than any setting"),
        ('output_dir = "a\\u0000b"\nresume_from_checkpoint = "latest"', "holds a NUL character"),
    ],
)
def test_files_whose_values_are_of_another_kind_are_refused_in_a_sentence(tmp_path, text, words):
    (tmp_path / "config.toml").write_text(text)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(AtomError, match=words):
        read_settings(Namespace(config=str(tmp_path / "config.toml"), preset=None))
