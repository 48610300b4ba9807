"""The bases that may be picked are the operator's choice, and are models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save
from sdatoms_app.generate.layout import list_bases
from sdatoms_app.studio.bases import Bases
from tiny.single_files import save_sparse, write_zeros

from sdatoms import AtomError


def test_bases_are_the_operators_choice(tiny_base, adapters_dir, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    shutil.copy(adapters_dir / "ink.safetensors", tmp_path / "ink.safetensors")
    save_sparse(tmp_path / "single.safetensors", "sd1")
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
        with save_sparse(path, "sd1").open("r+b") as file:
            file.truncate(path.stat().st_size - 4)
    else:
        path.write_bytes(NO_MODELS[what])
    bases = Bases(str(tiny_base), tmp_path)
    assert [c.id for c in bases.list() if c.id.startswith("models/")] == []
    with pytest.raises(AtomError, match="no base"):
        bases.find("models/some.safetensors")


def test_a_file_that_is_unreadable_hides_no_other(tmp_path, tiny_base):
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    save_sparse(tmp_path / "real.safetensors", "sd1")
    listed = [choice.id for choice in Bases(str(tiny_base), tmp_path).list()]
    assert "models/real.safetensors" in listed and len(listed) <= 3


def test_the_list_says_family_dtype_and_size_without_loading(tmp_path, tiny_base):
    save_sparse(tmp_path / "xl.safetensors", "sdxl")
    save_sparse(tmp_path / "two.safetensors", "sd2", dtype="BF16")
    save_sparse(tmp_path / "wide.safetensors", "sd1", dtype="F32", channels=9)
    found = {choice.id: choice.about for choice in Bases(str(tiny_base), tmp_path).list()}
    assert found["models/xl.safetensors"] == "Stable Diffusion XL, float16, 6.9 GB"
    assert found["models/two.safetensors"] == "Stable Diffusion 2.x, bfloat16, 2.6 GB"
    assert found["models/wide.safetensors"] == "Stable Diffusion 1.x, inpainting, float32, 4.3 GB"
    assert found["tiny"].endswith(("MB", "GB")) and "float32" in found["tiny"]


def test_the_list_holds_no_file_that_is_no_base(tmp_path, tiny_base, adapters_dir):
    """Neither adapters, lone parts, other families, damaged files nor folders of something else."""
    shutil.copy(adapters_dir / "ink.safetensors", tmp_path / "atoms.safetensors")
    write_zeros(tmp_path / "lora.safetensors", {"lora_unet_a.lora_down.weight": (4, 320)})
    write_zeros(tmp_path / "vae.safetensors", {"encoder.conv_in.weight": (128, 3, 3, 3)})
    write_zeros(tmp_path / "flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": (3, 3)})
    write_zeros(tmp_path / "empty.safetensors", {})
    save_sparse(tmp_path / "lone.safetensors", "sd1", drop=("first_stage_model.",))
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    with save_sparse(tmp_path / "half.safetensors", "sd1").open("r+b") as file:
        file.truncate(1_000_000)
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model_index.json").write_text("{}")
    listed = [choice.id for choice in Bases(str(tiny_base), tmp_path).list()]
    assert not [id for id in listed if id.startswith("models/")]


def test_a_file_that_changed_is_read_anew(tmp_path, tiny_base):
    bases, path = Bases(str(tiny_base), tmp_path), tmp_path / "base.safetensors"
    write_zeros(path, {"some.weight": (3, 3)})
    assert "models/base.safetensors" not in [choice.id for choice in bases.list()]
    save_sparse(path, "sd1")
    assert "models/base.safetensors" in [choice.id for choice in bases.list()]
    assert bases.find_side("models/base.safetensors") == 512


def test_the_picker_shows_what_each_base_is(tmp_path, tiny_base):
    save_sparse(tmp_path / "xl.safetensors", "sdxl")
    studio = type("Studio", (), {"bases": Bases(str(tiny_base), tmp_path)})()
    labels = {id: label for label, id in list_bases(studio)}
    wanted = "xl.safetensors · Stable Diffusion XL, float16, 6.9 GB"
    assert labels["models/xl.safetensors"] == wanted
