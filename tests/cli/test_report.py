"""Laws of the row to send back: what is in it, and what of a person's things is not."""

import json
from pathlib import Path

import pytest

from sdatoms import AtomError, read_atoms
from sdatoms.cli.main import main
from sdatoms.cli.report import check_report, describe_file, name_model, read_settings
from sdatoms.evaluation.rows import Row
from sdatoms.training.loop import train


def test_the_row_holds_what_a_run_gave_and_nothing_of_its_owner(
    capsys, train_config, evaluator_folder, tmp_path
):
    config = train_config(instance_prompt="sks secretname", learning_rate=0.0123)
    list(train(config))
    words = [Path(config.output_dir) / "atoms.safetensors", "--evaluator", evaluator_folder]
    words += ["--pretrained_model_name_or_path", config.pretrained_model_name_or_path]
    words += ["--seeds", 1, "--num_inference_steps", 1, "--prompt", "a secretplace"]
    main(["evaluate", *map(str, words), "--report", str(tmp_path / "row")])
    text, table = tmp_path / "row.md", tmp_path / "row.json"
    facts = json.loads(table.read_text())
    (row,) = facts["rows"]
    assert row["settings"]["learning_rate"] == 0.0123 and row["settings"]["max_train_steps"] == 4
    assert row["training"]["steps"] == 4 and row["training"]["pictures"] == 4
    assert row["training"]["card"] and row["training"]["minutes"] >= 0
    assert row["measures"]["alignment"] is not None and len(row["base_fingerprint"]) == 16
    assert facts["checks"][0]["name"] == "base without atoms"
    assert text.read_text().startswith("| base | steps |") and "0.0123" in text.read_text()
    for told in (text.read_text(), table.read_text()):
        assert "secret" not in told and str(tmp_path) not in told and "/" + "tmp" not in told
    with pytest.raises(AtomError, match="is there already"):
        check_report(str(text))
    assert "a row to send back" in capsys.readouterr().err


def test_models_are_named_without_the_folders_of_the_machine(tmp_path):
    cached = "/home/me/hub/models--openai--clip-vit-large-patch14/snapshots/abc"
    assert name_model(cached) == "openai/clip-vit-large-patch14"
    assert name_model("someone/sd") == "someone/sd"
    assert name_model(str(tmp_path / "v1-5.safetensors")) == "v1-5.safetensors"


def test_settings_are_numbers_and_choices_and_no_free_words():
    told = read_settings(
        {"instance_prompt": "me", "output_dir": "/home/me", "seed": 3, "loss_type": "huber"}
        | {"optimizer": "prodigy", "evaluator": "/home/me/clip", "max_train_steps": 300}
    )
    assert told == {"seed": 3, "loss_type": "huber", "optimizer": "prodigy"}


def test_a_report_needs_a_folder(tmp_path):
    with pytest.raises(AtomError, match="there is no folder"):
        check_report(str(tmp_path / "nowhere" / "row.md"))


@pytest.mark.parametrize("place", [".", "/", "..", "folder/.."])
def test_a_report_is_no_folder(place):
    with pytest.raises(AtomError, match=r"is a folder; name a file in it"):
        check_report(place)


def test_what_another_program_says_of_a_file_is_passed_over(make_file, tmp_path):
    path = make_file()
    odd = {"seconds": "12", "peak_memory_bytes": None, "instance_pictures": 5, "versions": [1]}
    odd |= {"peak_gpu_bytes": [], "steps": {}, "chosen_step": float("nan"), "device": [2]}
    (tmp_path / "report.json").write_text(json.dumps(odd))
    told = describe_file(path, read_atoms(path), Row("dog", 1))["training"]
    assert told == {
        "pictures": 0,
        "minutes": 0,
        "peak_memory_gib": 0,
        "card": "[2]",
        "versions": {},
    }
