"""K. What is no model is told as that, in one sentence, wherever a base is named."""

import json
import shutil
from pathlib import Path

import pytest

from sdatoms import AtomError, load_base
from sdatoms.training.loop import train

FILES = {
    "empty": b"",
    "a page": b"<!DOCTYPE html><title>404</title>",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4265380512\n",
    "an archive": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x04K\x01.",
    "a gguf": b"GGUF" + bytes(100),
    "nothing inside": (2).to_bytes(8, "little") + b"{}",
    "a header of exabytes": (2**62).to_bytes(8, "little") + b"{}",
    "a header of no object": (3).to_bytes(8, "little") + b"[1]",
}
ENDINGS = [".safetensors", ".ckpt", ".SAFETENSORS", ""]
FOLDERS = {
    "empty": {},
    "cut": {"model_index.json": "{"},
    "a list": {"model_index.json": "[1]"},
    "no class": {"model_index.json": "{}"},
    "another class": {"model_index.json": json.dumps({"_class_name": "AudioPipeline"})},
    "a name of another kind": {"model_index.json": json.dumps({"_class_name": [1]})},
    "a model alone": {"config.json": json.dumps({"_class_name": "UNet2DConditionModel"})},
}


@pytest.fixture
def refuse(train_config, monkeypatch, tmp_path):
    """Opening and training refuse it in one sentence, and nothing is written."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(base):
        config = train_config(pretrained_model_name_or_path=str(base))
        for use in (lambda: load_base(str(base), device="cpu"), lambda: next(train(config))):
            with pytest.raises(AtomError) as caught:
                use()
            said = str(caught.value)
            assert "\n" not in said and "None" not in said and "Error" not in said, said
        assert not (tmp_path / "run").exists()

    return call


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("what", FILES)
def test_files_that_are_no_models_are_refused(tmp_path, refuse, what, ending):
    path = tmp_path / f"given{ending}"
    path.write_bytes(FILES[what])
    refuse(path)


@pytest.mark.parametrize("name", ["given", "given.safetensors"])
@pytest.mark.parametrize("what", FOLDERS)
def test_folders_that_are_no_models_are_refused(tmp_path, refuse, what, name):
    folder = tmp_path / name
    folder.mkdir()
    for file, text in FOLDERS[what].items():
        (folder / file).write_text(text)
    refuse(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_of_a_base_is_no_base(tmp_path, refuse, tiny_pipeline, part):
    folder = Path(tiny_pipeline()) / part
    refuse(folder)
    for file in folder.glob("*.safetensors"):
        shutil.copy(file, tmp_path / "part.safetensors")
        refuse(tmp_path / "part.safetensors")


@pytest.mark.parametrize(
    "name", ["~/nowhere", "./a/b.safetensors", "https://a.example/b.safetensors"]
)
def test_addresses_and_places_that_are_not_there_ask_no_network(refuse, name):
    refuse(name)
