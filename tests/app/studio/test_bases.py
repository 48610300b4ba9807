"""The bases that may be picked are the operator's choice, and are models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save, save_file
from sdatoms_app.studio.bases import Bases

from sdatoms import AtomError


def save_model(path):
    """A file as a model of one file is laid out, of two tensors."""
    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x.weight")
    save_file({name: torch.zeros(2, 3) for name in names}, path)
    return path


def test_bases_are_the_operators_choice(tiny_base, adapters_dir, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    shutil.copy(adapters_dir / "ink.safetensors", tmp_path / "ink.safetensors")
    save_model(tmp_path / "single.safetensors")
    shutil.copytree(tiny_base, tmp_path / "second")
    bases = Bases(str(tiny_base), tmp_path)
    ids = [choice.id for choice in bases.list()]
    assert ids[0] == "tiny" and "models/second" in ids and "models/single.safetensors" in ids
    assert not any("ink" in id or "notes" in id for id in ids)
    assert bases.find_side("models/second") == 64 and bases.find_side("nothing") == 512
    for id in ("second", "models/../second", "runwayml/sd", str(tmp_path / "second")):
        with pytest.raises(AtomError, match="hub ids are not taken here"):
            bases.find(id)
    assert Bases(None, None, hub=True).find("owner/name").where == "owner/name"
    with pytest.raises(AtomError, match="no base"):
        Bases(None, None, hub=True).find("owner/../name")


def write_header(header):
    data = json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data


NO_MODELS = {
    "empty": b"",
    "short": b"\x02\0\0",
    "nothing inside": b"\x02\0\0\0\0\0\0\0{}",
    "a pickle": b"\x80\x04K\x01.",
    "a header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "a header that is a list": write_header(["model.diffusion_model.x"]),
    "a header of numbers": write_header({"model.diffusion_model.x": 3}),
    "no offsets": write_header({"model.diffusion_model.x": {}}),
    "empty offsets": write_header({"model.diffusion_model.x": {"data_offsets": []}}),
    "words for offsets": write_header({"model.diffusion_model.x": {"data_offsets": ["a", "b"]}}),
    "deep nesting": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no text": b"\x04\0\0\0\0\0\0\0\xff\xfe\xff\xfe",
    "another model": save({"bert.embeddings.weight": torch.zeros(3)}),
    "a LoRA": save({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(3)}),
}


@pytest.mark.parametrize("what", [*NO_MODELS, "cut short"])
def test_files_that_are_no_models_are_not_listed(tmp_path, tiny_base, what):
    path = tmp_path / "some.safetensors"
    if what == "cut short":
        path.write_bytes(save_model(path).read_bytes()[:-4])
    else:
        path.write_bytes(NO_MODELS[what])
    bases = Bases(str(tiny_base), tmp_path)
    assert [c.id for c in bases.list() if c.id.startswith("models/")] == []
    with pytest.raises(AtomError, match="no base"):
        bases.find("models/some.safetensors")


def test_a_file_that_is_unreadable_hides_no_other(tmp_path, tiny_base):
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    save_model(tmp_path / "real.safetensors")
    listed = [choice.id for choice in Bases(str(tiny_base), tmp_path).list()]
    assert "models/real.safetensors" in listed and len(listed) <= 3
