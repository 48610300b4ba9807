"""A single file opens offline to the very tensors of the pipeline it was written from."""

import socket

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny.single_files import build_parts, save_single

from sdatoms import AtomError
from sdatoms.models.autoencoder import open_vae
from sdatoms.models.recognize import FAMILIES, UNET, read_checkpoint
from sdatoms.models.single_file import open_checkpoint

FIRST = "first_stage_model."


@pytest.fixture(scope="module")
def parts():
    """Family → narrow components; only the last asked for is kept."""
    made = {}

    def make(family, channels=4):
        if (family, channels) not in made:
            made.clear()
            made[family, channels] = build_parts(family, channels=channels, dtype=torch.float16)
        return made[family, channels]

    return make


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No address is looked up and no connection is made."""

    def refuse(*args, **kwargs):
        raise AssertionError("a single file asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def list_own(config):
    """A configuration without what diffusers notes for itself."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def assert_same(pipe, parts, dtype=torch.float16):
    for name, module in parts.items():
        own, wanted = getattr(pipe, name).state_dict(), module.state_dict()
        assert own.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert torch.equal(own[key], tensor.to(dtype)), f"{name}.{key}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_its_pipeline_tensor_by_tensor(tmp_path, parts, family):
    path = save_single(tmp_path / "base.safetensors", family, parts(family), dtype=torch.float16)
    checkpoint = read_checkpoint(path)
    pipe = open_checkpoint(checkpoint, checkpoint.dtype)
    assert_same(pipe, parts(family))
    pipe.save_pretrained(tmp_path / "folder")
    again = DiffusionPipeline.from_pretrained(
        tmp_path / "folder", dtype=torch.float16, safety_checker=None
    )
    for name, component in pipe.components.items():
        other = again.components[name]
        assert type(component) is type(other), name
        if isinstance(component, torch.nn.Module):
            other = dict(other.named_parameters())
            assert all(torch.equal(p, other[key]) for key, p in component.named_parameters())
        elif name.startswith("tokenizer"):
            assert component("a photo, 日本").input_ids == other("a photo, 日本").input_ids
            assert component.pad_token == other.pad_token
        elif name == "scheduler":
            assert list_own(component.config) == list_own(other.config)


def test_dtypes_are_cast_as_asked(tmp_path, parts):
    path = save_single(tmp_path / "base.safetensors", "sd1", parts("sd1"), dtype=torch.bfloat16)
    checkpoint = read_checkpoint(path)
    assert checkpoint.dtype == torch.bfloat16
    pipe = open_checkpoint(checkpoint, torch.float32)
    assert pipe.dtype == torch.float32
    held = load_file(path)[f"{UNET}input_blocks.0.0.weight"]
    assert torch.equal(pipe.unet.conv_in.weight, held.float())


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_what_real_files_also_hold_and_how_old_ones_name_it(tmp_path, parts, family):
    path = save_single(tmp_path / "base.safetensors", family, parts(family), dtype=torch.float16)
    tensors = load_file(path)
    if family == "sd1":  # names of 2022, and numbers that transformers once kept as weights
        old = "cond_stage_model.transformer."
        tensors = {k.replace(f"{old}text_model.", old): v for k, v in tensors.items()}
        tensors[f"{old}embeddings.position_ids"] = torch.arange(77.0)[None]
    else:  # the names of Stability's later code
        old, new = "cond_stage_model.model.", "conditioner.embedders.0.model."
        tensors = {k.replace(old, new): v for k, v in tensors.items()}
        tensors |= {f"{new}logit_scale": torch.ones(()), f"{new}text_projection": torch.eye(1024)}
    tensors |= {f"model_ema.x{n}": torch.zeros(1) for n in range(150)}
    tensors |= {"betas": torch.zeros(1000), "model_ema.decay": torch.ones(())}
    for name in list(tensors):  # 1×1 kernels written as matrices
        if name.startswith(f"{FIRST}encoder.mid.attn_1.") and tensors[name].dim() == 4:
            tensors[name] = tensors[name][:, :, 0, 0].contiguous()
    save_file(tensors, tmp_path / "old.safetensors")
    pipe = open_checkpoint(read_checkpoint(tmp_path / "old.safetensors"), torch.float16)
    assert_same(pipe, parts(family))


def test_sd_2_leaves_out_openclips_last_layer(tmp_path):
    made = build_parts("sd2", dtype=torch.float16)
    layers = made["text_encoder"].encoder.layers
    base = layers[0].state_dict()
    path = save_single(tmp_path / "base.safetensors", "sd2", made, dtype=torch.float16)
    tensors, prefix = load_file(path), "cond_stage_model.model.transformer.resblocks."
    first = {k: v for k, v in tensors.items() if k.startswith(f"{prefix}0.")}
    for n in range(2, 24):
        tensors |= {k.replace(f"{prefix}0.", f"{prefix}{n}."): v.clone() for k, v in first.items()}
    save_file(tensors, tmp_path / "whole.safetensors")
    pipe = open_checkpoint(read_checkpoint(tmp_path / "whole.safetensors"), torch.float16)
    assert len(pipe.text_encoder.encoder.layers) == 23
    last = pipe.text_encoder.encoder.layers[22].state_dict()
    assert all(torch.equal(last[key], base[key]) for key in base)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_inpainting_form_opens_as_an_inpainting_pipeline(tmp_path, parts, family):
    if family == "sdxl":
        pytest.skip("its text encoders are large; the UNet differs in one layer, as in the others")
    made = parts(family, 9)
    path = save_single(tmp_path / "base.safetensors", family, made, dtype=torch.float16)
    pipe = open_checkpoint(read_checkpoint(path), torch.float16)
    assert type(pipe).__name__ == "StableDiffusionInpaintPipeline"
    assert pipe.unet.config.in_channels == 9
    assert_same(pipe, made)


def test_missing_parts_are_named_and_given_by_flags(tmp_path, parts):
    made = parts("sd1")
    whole = save_single(tmp_path / "whole.safetensors", "sd1", made, dtype=torch.float16)
    lone = tmp_path / "lone.safetensors"
    tensors = load_file(whole)
    save_file({k[len(UNET) :]: v for k, v in tensors.items() if k.startswith(UNET)}, lone)
    with pytest.raises(AtomError, match=r"without the autoencoder and the text encoder; give"):
        open_checkpoint(read_checkpoint(lone), torch.float16)
    vae = open_vae(str(whole), torch.float16)
    with pytest.raises(AtomError, match=r"without the text encoder; give --text_encoders with"):
        open_checkpoint(read_checkpoint(lone), torch.float16, vae=vae)
    pipe = open_checkpoint(read_checkpoint(lone), torch.float16, vae=vae, text_encoders=whole)
    assert_same(pipe, made)
    pipe.save_pretrained(tmp_path / "folder")
    pipe = open_checkpoint(
        read_checkpoint(lone), torch.float16, vae=vae, text_encoders=tmp_path / "folder"
    )
    assert_same(pipe, made)
    assert pipe.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]


def test_text_encoders_of_another_family_are_refused(tmp_path, parts):
    made = parts("sd1")
    path = save_single(tmp_path / "one.safetensors", "sd1", made, dtype=torch.float16)
    other = build_parts("sd2", dtype=torch.float16)
    two = save_single(tmp_path / "two.safetensors", "sd2", other, dtype=torch.float16)
    with pytest.raises(AtomError, match=r"are those of Stable Diffusion 2\.x"):
        open_checkpoint(read_checkpoint(path), torch.float16, text_encoders=two)


@pytest.mark.parametrize("names", ["original", "prefixed", "diffusers", "folder", "pipeline"])
def test_an_autoencoder_opens_from_every_form(tmp_path, parts, names):
    vae = parts("sd1")["vae"]
    where = tmp_path / "vae.safetensors"
    if names == "diffusers":
        save_file(vae.state_dict(), where)
    elif names in ("folder", "pipeline"):
        where = tmp_path / "made"
        vae.save_pretrained(where / "vae" if names == "pipeline" else where)
    else:
        tensors = load_file(save_single(where, "sd1", {"vae": vae}, dtype=torch.float16))
        if names == "original":
            save_file({k.removeprefix(FIRST): v for k, v in tensors.items()}, where)
    own, wanted = open_vae(str(where), torch.float32).state_dict(), vae.state_dict()
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[key], wanted[key].float()) for key in wanted)


def test_a_file_without_an_autoencoder_is_refused(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(AtomError, match=r"'other\.safetensors' holds no autoencoder"):
        open_vae(str(tmp_path / "other.safetensors"), torch.float32)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("change", ["missing", "shape"])
def test_a_tensor_that_does_not_fit_is_named(tmp_path, parts, part, change):
    path = save_single(tmp_path / "base.safetensors", "sd1", parts("sd1"), dtype=torch.float16)
    name = {
        "unet": f"{UNET}output_blocks.3.0.in_layers.2.weight",
        "vae": f"{FIRST}decoder.mid.block_1.conv1.weight",
        "text_encoder": "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.weight",
    }[part]
    tensors = load_file(path)
    tensor = tensors.pop(name)
    if change == "shape":
        tensors[name] = tensor[:-1].contiguous()
    save_file(tensors, path)
    with pytest.raises(AtomError) as caught:
        open_checkpoint(read_checkpoint(path), torch.float16)
    assert name in str(caught.value) and "1 of" in str(caught.value)
    assert ("is missing" if change == "missing" else "fits") in str(caught.value)
