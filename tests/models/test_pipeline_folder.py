"""Laws of pipeline folders: named as older programs know them, numbers and pictures the same."""

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from sdatoms.models.pipeline_folder import rename_tensors, write_known_names
from sdatoms.storage import find_assets


def test_the_bundled_base_has_the_names_that_older_readers_know():
    base = find_assets() / "emoji-sd"
    stored = load_file(base / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in stored)
    assert (base / "tokenizer" / "vocab.json").is_file()
    assert (base / "tokenizer" / "merges.txt").is_file()
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float16)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(stored[f"text_model.{name}"], tensor), name


def test_a_second_call_changes_nothing(tiny_pipeline, tmp_path):
    folder = tmp_path / "pipe"
    CLIPTextModel.from_pretrained(tiny_pipeline() / "text_encoder").save_pretrained(
        folder / "text_encoder"
    )
    CLIPTokenizer.from_pretrained(tiny_pipeline() / "tokenizer").save_pretrained(
        folder / "tokenizer"
    )
    before = load_file(folder / "text_encoder" / "model.safetensors")
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()

    written = {path.name for path in write_known_names(folder)}

    assert written == {"model.safetensors", "vocab.json", "merges.txt"}
    after = load_file(folder / "text_encoder" / "model.safetensors")
    assert after.keys() == {f"text_model.{key}" for key in before}
    assert all(torch.equal(after[f"text_model.{key}"], tensor) for key, tensor in before.items())
    assert json.loads((folder / "tokenizer" / "vocab.json").read_text()) == words
    assert write_known_names(folder) == []


def test_names_change_and_nothing_else(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.arange(5), "b.ü": torch.randn(3, 2).half(), "c": torch.tensor([True])}
    save_file(tensors, path, {"format": "pt", "note": "a"})
    assert rename_tensors(path, lambda name: f"inner.{name}")
    found = load_file(path)
    assert found.keys() == {f"inner.{name}" for name in tensors}
    assert all(torch.equal(found[f"inner.{name}"], t) for name, t in tensors.items())
    size = int.from_bytes(path.read_bytes()[:8], "little")
    assert json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["note"] == "a"
    assert not rename_tensors(path, lambda name: name)
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"n": 1}, "weight_map": {"a": "x"}}))
    assert rename_tensors(index, lambda name: f"inner.{name}")
    wanted = {"metadata": {"n": 1}, "weight_map": {"inner.a": "x"}}
    assert json.loads(index.read_text()) == wanted
    assert not rename_tensors(index, lambda name: name)
