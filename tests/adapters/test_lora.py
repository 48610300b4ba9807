"""LoRA files are baked as diffusers applies them, mix with atoms, and leave the base to the bit."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny.atoms import perturb
from tiny.loras import build_lora, list_lora_layers, save_lora
from tiny.modules import copy_weights, same_weights
from tiny.pipelines import build_pipeline

from sdatoms import AdapterSet, AtomConfig, AtomError, inject, load_atoms, load_base, read_atoms
from sdatoms.adapters.export import convert_to_lora
from sdatoms.adapters.plan import judge_fit
from sdatoms.atoms.schedules import parse_schedule
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.placement import OFFLOADS
from sdatoms.files.lora_file import is_lora, read_lora, read_lora_header
from sdatoms.files.sources import read_adapter
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def copy_all(pipe):
    return {c: copy_weights(getattr(pipe, c)) for c in COMPONENTS if hasattr(pipe, c)}


def same_all(pipe, before):
    return all(same_weights(getattr(pipe, c), weights) for c, weights in before.items())


def draw(pipe, **schedules):
    read = {name: parse_schedule(text) for name, text in schedules.items()}
    return np.asarray(paint(pipe, ["cat"], [1], num_inference_steps=2, strength_schedules=read)[0])


def build_atoms():
    return pack_atoms({"unet": perturb(inject(build_pipeline().unet, AtomConfig("full")), 0.1)})


@pytest.mark.parametrize("names", ["kohya", "diffusers", "older"])
@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
def test_the_change_is_what_diffusers_own_loader_makes(tmp_path, kind, names):
    pipe, other = build_pipeline(kind), build_pipeline(kind)
    path = save_lora(tmp_path / "style.safetensors", pipe, names, alpha=1.5)
    other.load_lora_weights(str(path), adapter_name="style")
    other.set_adapters(["style"], [0.7])
    other.fuse_lora()
    before = copy_all(pipe)
    adapters = load_atoms(pipe, path, strength=0.7)
    layers = list(list_lora_layers(pipe, COMPONENTS if names != "older" else ("unet",)))
    assert len(layers) >= 8 and adapters.names == ("style",)
    for component, inner, layer in layers:
        theirs = getattr(other, component).get_submodule(inner).weight
        torch.testing.assert_close(layer.weight, theirs, rtol=1e-5, atol=1e-5)
        moved = layer.weight - before[component][f"{inner}.weight"]
        delta = adapters.delta("style", f"{component}.{inner}")
        torch.testing.assert_close(moved, 0.7 * delta, rtol=1e-4, atol=1e-5)
        assert delta.abs().max() > 1e-3
    assert judge_fit(read_lora(path), pipe).verdict == "fits"
    adapters.clear()
    assert same_all(pipe, before)


ORIGINAL = {
    "lora_unet_down_blocks_0_attentions_0_": "lora_unet_input_blocks_1_1_",
    "lora_unet_mid_block_attentions_0_": "lora_unet_middle_block_1_",
    "lora_unet_up_blocks_1_attentions_0_": "lora_unet_output_blocks_2_1_",
    "lora_unet_up_blocks_1_attentions_1_": "lora_unet_output_blocks_3_1_",
}


def test_names_of_the_original_release_are_the_same_layers(tmp_path):
    """kohya's trainer spells the UNet of SDXL so."""
    pipe = build_pipeline("sdxl")
    tensors = {
        key: tensor
        for key, tensor in build_lora(pipe, alpha=1.5).items()
        if "attentions" in key or "lora_te" in key
    }
    renamed = {}
    for key, tensor in tensors.items():
        prefix = next((prefix for prefix in ORIGINAL if key.startswith(prefix)), "")
        renamed[key.replace(prefix, ORIGINAL.get(prefix, ""), 1)] = tensor
    assert sum("middle_block_1" in key or "put_blocks_" in key for key in renamed) > 20
    save_file(tensors, tmp_path / "one.safetensors")
    save_file(renamed, tmp_path / "two.safetensors")
    one, two = build_pipeline("sdxl"), build_pipeline("sdxl")
    load_atoms(one, tmp_path / "one.safetensors")
    load_atoms(two, tmp_path / "two.safetensors")
    assert same_all(two, copy_all(one)) and not same_all(two, copy_all(pipe))


def test_settings_of_peft_in_the_header_count(tmp_path):
    pipe = build_pipeline()
    settings = {"unet.lora_alpha": 6, "unet.r": 3, "unet.alpha_pattern": {"attn1.to_q": 9}}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    plain = save_lora(tmp_path / "plain.safetensors", pipe, "diffusers")
    scaled = save_lora(tmp_path / "scaled.safetensors", pipe, "diffusers", metadata)
    adapters = load_atoms(pipe, plain).load(scaled)
    for component, path, _ in list_lora_layers(pipe):
        layer = f"{component}.{path}"
        factor = 1.0 if component != "unet" else 3.0 if "attn1" in path else 2.0
        one, two = adapters.delta("plain", layer), adapters.delta("scaled", layer)
        torch.testing.assert_close(two, factor * one)


def test_both_orders_mix_with_atoms_and_leave_the_base_to_the_bit(tmp_path):
    file, pipe, other = build_atoms(), build_pipeline(), build_pipeline()
    lora = save_lora(tmp_path / "style.safetensors", pipe)
    before = copy_all(pipe)
    load_atoms(pipe, file, name="dog", strength=0.6).load(lora, strength={"*": 0.4, "up": -1.0})
    load_atoms(other, lora, strength={"*": 0.4, "up": -1.0}).load(file, name="dog", strength=0.6)
    mixed = copy_all(pipe)
    assert same_all(other, mixed) and not same_all(pipe, before)
    AdapterSet(pipe).remove("dog").remove("style")
    AdapterSet(other).remove("style").remove("dog")
    assert same_all(pipe, before) and same_all(other, before)
    adapters = load_atoms(pipe, lora)
    adapters.set_strengths({"style": 0})
    assert same_all(pipe, before)
    adapters.set_strengths({"style": {"text_encoder": 1.0, "unet": 0.0}})
    assert same_weights(pipe.unet, before["unet"]) and not same_all(pipe, before)
    adapters.clear()
    assert same_all(pipe, before) and adapters.verify_base()


@pytest.mark.parametrize("offload", OFFLOADS[1:])
def test_loras_follow_schedules_under_every_offload(tiny_pipeline, tmp_path, offload):
    pipe = load_base(str(tiny_pipeline("sd")), device="cpu", offload=offload)
    base = draw(pipe)
    lora = save_lora(tmp_path / "style.safetensors", build_pipeline())
    adapters = load_atoms(pipe, lora)
    full = draw(pipe)
    assert np.array_equal(draw(pipe, style="0"), base) and not np.array_equal(full, base)
    half = draw(pipe, style="0 until 0.5, then 1")
    assert not np.array_equal(half, base) and not np.array_equal(half, full)
    assert np.array_equal(draw(pipe, style="1 until 0.5, then 1"), full)
    adapters.clear()
    assert np.array_equal(draw(pipe), base)


def test_an_exported_lora_of_atoms_comes_back(tmp_path):
    file, pipe = build_atoms(), build_pipeline()
    expected = load_atoms(pipe, file, name="dog")
    for names in ("kohya", "diffusers"):
        made = convert_to_lora(file, build_pipeline(), 64, names=names)
        path = made.save(tmp_path / f"{names}.safetensors")
        lora = load_atoms(build_pipeline(), path, name="lora")
        for layer in list(file.maps("unet"))[::7]:
            one, two = lora.delta("lora", layer), expected.delta("dog", layer)
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_file_says_what_it_is(tmp_path):
    tags = {"10_dog": {"photo": 3, "sks dog": 12}, "reg": {"sks dog": 1, "x\ny": 99, "z": "9"}}
    metadata = {"ss_tag_frequency": json.dumps(tags)}
    path = save_lora(tmp_path / "a.bin", build_pipeline(), metadata=metadata, rank=4, alpha=2)
    file, header = read_adapter(path), read_lora_header(path)
    assert file.trigger == header.trigger == "sks dog" and file.ranks == header.ranks == (4, 4)
    assert file.num_parameters == header.num_parameters > 100 and file.kohya
    said = {"modelspec.trigger_phrase": "<b>ink</b>"} | metadata
    save_lora(path, build_pipeline(), "diffusers", said)
    assert read_lora(path).trigger == "<b>ink</b>" and not read_lora(path).kohya
    for keys in ([], ["model.diffusion_model.x.weight"], ["unet.conv_in.weight"]):
        assert not is_lora(keys)


def spoil(tensors, kind):
    first = next(key for key in tensors if "attn1" in key and "down" in key)
    layer = first.removesuffix(".lora_down.weight")
    up = f"{layer}.lora_up.weight"
    if kind == "half":
        del tensors[up]
    elif kind == "rank":
        tensors[up] = torch.zeros(16, 7)
    elif kind == "nan":
        tensors[up][0, 0] = torch.nan
    elif kind == "whole":
        tensors[up] = torch.ones(16, 3, dtype=torch.int32)
    elif kind == "alpha":
        tensors[f"{layer}.alpha"] = torch.ones(3)
    elif kind in ("hada_w1_a", "dora_scale", "lora_mid.weight", "diff"):
        tensors[f"{layer}.{kind}"] = torch.ones(3)
    elif kind == "columns":
        tensors[first] = torch.zeros(3, 5)
    elif kind == "layer":
        for key in (first, up):
            tensors[key.replace("_blocks_0_", "_blocks_7_")] = tensors.pop(key)
    elif kind == "sdxl":
        tensors.clear()
        tensors.update(build_lora(build_pipeline("sdxl")))
    elif kind == "flux":
        for key in list(tensors):
            del tensors[key]
        tensors["lora_unet_double_blocks_0_img_mlp_0.lora_down.weight"] = torch.ones(2, 4)
        tensors["lora_unet_double_blocks_0_img_mlp_0.lora_up.weight"] = torch.ones(4, 2)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("half", "no half of a pair"),
        ("rank", "do not multiply"),
        ("nan", "NaN"),
        ("whole", "whole numbers"),
        ("alpha", "no single number"),
        ("hada_w1_a", "a file of LoHa"),
        ("dora_scale", "a file of DoRA"),
        ("lora_mid.weight", "Tucker"),
        ("diff", "full differences"),
        ("columns", "where the LoRA has"),
        ("layer", "no layer"),
        ("flux", "no layer"),
        ("sdxl", "made for Stable Diffusion XL"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, kind, said):
    pipe = build_pipeline()
    before, tensors = copy_all(pipe), build_lora(pipe)
    spoil(tensors, kind)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(AtomError, match=said) as caught:
        load_atoms(pipe, tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert same_all(pipe, before) and AdapterSet(pipe).names == ()


def test_pickles_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    for name in ("a.safetensors", "lora.pt", "pytorch_lora_weights.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(AtomError, match="no safetensors file"):
            load_atoms(build_pipeline(), tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_readers_of_atoms_say_what_a_lora_is_not(tmp_path):
    path = save_lora(tmp_path / "style.safetensors", build_pipeline())
    with pytest.raises(AtomError, match="is not an atom file"):
        read_atoms(path)
