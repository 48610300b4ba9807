"""The model card says what the run was; a push that fails loses nothing."""

import json
from pathlib import Path

import pytest
import yaml

import sdatoms
from sdatoms.training.loop import train
from sdatoms.training.report import write_card


def test_the_card_holds_the_runs_numbers(train_config):
    config = train_config(max_train_steps=2, validation_steps=2)
    list(train(config, evaluate=lambda *_: {"fidelity": 0.25}))
    run = Path(config.output_dir)
    card = (run / "README.md").read_text()
    report = json.loads((run / "report.json").read_text())
    front = yaml.safe_load(card.split("---")[1])
    assert front["instance_prompt"] == "sks cat" and "base_model" not in front  # a local folder
    assert f"{report['parameters']:,} numbers" in card and f"{report['bytes']:,} bytes" in card
    assert "| fidelity | 0.250 | 0.250 |" in card and "(samples.png)" in card


def test_a_base_from_the_hub_is_named_in_the_front_matter(train_config):
    facts = {"parameters": 1, "bytes": 2, "base_model": "x", "instance_pictures": [], "steps": 3}
    facts |= {"seconds": 4.0, "metrics": {}, "chosen_step": 3, "versions": {}}
    config = train_config(pretrained_model_name_or_path="some/base", trigger='a "sks" cat')
    front = yaml.safe_load(
        write_card(
            facts,
            words=config.trigger,
            base=config.pretrained_model_name_or_path,
            variant="full",
            seed=0,
            has_grid=False,
        ).split("---")[1]
    )
    assert front["base_model"] == "some/base" and front["instance_prompt"] == 'a "sks" cat'


def test_a_push_without_a_network_fails_in_one_line_after_all_is_saved(train_config, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = train_config(max_train_steps=1, push_to_hub=True, hub_model_id="nobody/nothing")
    with pytest.raises(sdatoms.AtomError, match="complete on disk but could not be pushed"):
        list(train(config))
    run = Path(config.output_dir)
    assert sdatoms.read_atoms(run / "atoms.safetensors").metadata["step"] == "1"
    assert (run / "report.json").is_file() and (run / "README.md").is_file()
