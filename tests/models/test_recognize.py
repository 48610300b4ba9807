"""A single file is told by names and shapes: every family, form, dtype; everything else by name."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file
from tiny.single_files import save_sparse, write_zeros

from sdatoms import AtomConfig, AtomError, inject, save_atoms
from sdatoms.models.recognize import FAMILIES, TELLTALE, UNET, read_checkpoint

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("channels", [4, 9])
def test_every_family_and_form_is_told_from_the_header(tmp_path, family, channels):
    path = save_sparse(tmp_path / "base.safetensors", family, channels=channels)
    found = read_checkpoint(path)
    assert found.family.key == family and found.inpainting == (channels == 9)
    assert not found.missing and found.prediction_type == "epsilon"
    assert ("inpainting" in found.label) == (channels == 9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_the_files_own(tmp_path, dtype):
    found = read_checkpoint(save_sparse(tmp_path / "base.safetensors", "sd1", dtype=dtype))
    assert found.dtype == DTYPES[dtype]
    assert sum(found.part_bytes.values()) > 1e9 * (2 if dtype != "F32" else 4) * 0.9


PARTS = {
    "vae": "first_stage_model.",
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": "conditioner.embedders.1.",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_parts_are_named(tmp_path, family):
    for part in FAMILIES[family].parts[1:]:
        drop = PARTS[part] if isinstance(PARTS[part], tuple) else (PARTS[part],)
        path = save_sparse(tmp_path / f"{part}.safetensors", family, drop=drop)
        assert read_checkpoint(path).missing == (part,)


def test_averages_and_what_training_left_do_not_count(tmp_path):
    more = {f"model_ema.diffusion_modelinput{n}": (3,) for n in range(200)}
    more |= {"alphas_cumprod": (1000,), "model_ema.decay": (), "cond_stage_model.logit_scale": ()}
    path = save_sparse(tmp_path / "base.safetensors", "sd1", changes=more)
    plain = save_sparse(tmp_path / "plain.safetensors", "sd1")
    found, pruned = read_checkpoint(path), read_checkpoint(plain)
    assert found.family == pruned.family and found.part_bytes["unet"] == pruned.part_bytes["unet"]


@pytest.mark.parametrize(
    ("name", "metadata", "more", "found"),
    [
        ("v2-1_768-v-ema-pruned", {}, {}, "v_prediction"),
        ("512-base-ema", {}, {}, "epsilon"),
        ("v2-1_512-ema-pruned", {}, {}, "epsilon"),
        ("anything", {"modelspec.prediction_type": "v"}, {}, "v_prediction"),
        ("768-v-ema", {"modelspec.prediction_type": "epsilon"}, {}, "epsilon"),
        ("anything", {}, {"v_pred": ()}, "v_prediction"),
        ("anything", {}, {}, "epsilon"),
    ],
)
def test_what_sd_2_predicts_is_told_by_its_own_word_then_its_name(
    tmp_path, name, metadata, more, found
):
    path = save_sparse(tmp_path / f"{name}.safetensors", "sd2", metadata=metadata, changes=more)
    checkpoint = read_checkpoint(path)
    assert checkpoint.prediction_type == found, checkpoint.because
    assert checkpoint.side == (768 if found == "v_prediction" else 512)
    assert read_checkpoint(path, "epsilon").because == "--prediction_type"


def test_a_yaml_beside_the_file_tells_the_prediction(tmp_path):
    path = save_sparse(tmp_path / "mine.safetensors", "sd2")
    (tmp_path / "mine.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert read_checkpoint(path).prediction_type == "v_prediction"


@pytest.mark.parametrize(("spread", "found"), [(0.2, "v_prediction"), (0.03, "epsilon")])
def test_the_bias_that_comfyui_looks_at_tells_the_prediction(tmp_path, spread, found):
    path = save_sparse(tmp_path / "mine.safetensors", "sd2", dtype="F32")
    with path.open("r+b") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        entry = json.loads(file.read(length))[UNET + TELLTALE]
        start, end = entry["data_offsets"]
        values = spread * torch.randn(
            (end - start) // 4, generator=torch.Generator().manual_seed(0)
        )
        file.seek(8 + length + start)
        file.write(values.numpy().tobytes())
    checkpoint = read_checkpoint(path)
    assert checkpoint.prediction_type == found and "bias" in checkpoint.because


def test_sdxl_that_predicts_v_says_so(tmp_path):
    path = save_sparse(tmp_path / "x.safetensors", "sdxl", changes={"v_pred": (), "ztsnr": ()})
    found = read_checkpoint(path)
    assert found.prediction_type == "v_prediction" and found.zero_snr
    assert found.label == "Stable Diffusion XL (v)"


def attention(n, width, channels=384):
    return {f"{UNET}input_blocks.{n}.1.transformer_blocks.0.attn2.to_k.weight": (channels, width)}


STEM = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)}
SIZES = {f"{UNET}label_emb.0.0.weight": (1280, 2816)}
STRANGERS = {
    "refiner": STEM | SIZES | attention(4, 1280),
    "shortened Stable Diffusion XL": STEM | SIZES | attention(4, 2048),
    "Playground": STEM | SIZES | attention(4, 2048) | {"edm_mean": (4,)},
    "InstructPix2Pix": {f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)} | attention(1, 768),
    "upscaler": {f"{UNET}input_blocks.0.0.weight": (256, 7, 3, 3)} | attention(4, 1024),
    "unCLIP": STEM | SIZES | attention(1, 1024),
    "video": STEM | SIZES | attention(1, 1024) | {f"{UNET}input_blocks.1.1.time_stack.0.w": (3,)},
    "no known family": STEM | attention(1, 640),
    "Stable Diffusion 3": {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (3, 3)},
    "Flux": {"double_blocks.0.img_attn.qkv.weight": (3, 3)},
    "LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)},
    "a LoRA": {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (4, 320)},
    "ControlNet": {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "lone UNet": {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
    "lone autoencoder": {"encoder.conv_in.weight": (128, 3, 3, 3)},
    "lone text encoder": {"text_model.embeddings.token_embedding.weight": (49408, 768)},
    "textual inversion": {"emb_params": (2, 768)},
    "no tensor": {},
    "no known model": {"some.weight": (3, 3)},
}


@pytest.mark.parametrize("what", STRANGERS)
def test_what_is_no_base_is_refused_by_name(tmp_path, what):
    path = write_zeros(tmp_path / "file.safetensors", STRANGERS[what])
    with pytest.raises(AtomError, match=what) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and "file.safetensors" in str(caught.value)


def test_an_atom_file_is_no_base(tmp_path, make_unet):
    path = save_atoms(tmp_path / "dog.safetensors", {"unet": inject(make_unet(), AtomConfig())})
    with pytest.raises(AtomError, match="filter atoms; give it as --atoms"):
        read_checkpoint(path)


def test_scaled_8_bit_weights_are_refused_by_name(tmp_path):
    more = {f"{UNET}input_blocks.1.1.proj_in.scale_weight": ()}
    path = save_sparse(tmp_path / "scaled.safetensors", "sd1", changes=more)
    with pytest.raises(AtomError, match="scaled into 8 bits"):
        read_checkpoint(path)


def make_damaged(whole):
    length = struct.unpack("<Q", whole[:8])[0]
    header, rest = whole[8 : 8 + length], whole[8 + length :]
    wrap = lambda text: struct.pack("<Q", len(text)) + text + rest
    table = json.loads(header)
    twice = json.loads(header)
    next(iter(twice.values()))["shape"] = [2, 2]
    return {
        "empty": b"",
        "short": whole[:5],
        "pickle": b"\x80\x02}q\x00." + bytes(100),
        "huge": struct.pack("<Q", 1 << 62) + whole[8:],
        "cut": whole[:-4],
        "list": wrap(b"[1, 2]"),
        "text": wrap(b"{nothing"),
        "deep": wrap(b"[" * 100_000),
        "shape": wrap(json.dumps(twice).encode()),
        "offsets": wrap(
            json.dumps({n: e | {"data_offsets": [9, 3]} for n, e in table.items()}).encode()
        ),
        "entry": wrap(json.dumps(dict.fromkeys(table, 3)).encode()),
    }


KINDS = (
    "empty",
    "short",
    "pickle",
    "huge",
    "cut",
    "list",
    "text",
    "deep",
    "shape",
    "offsets",
    "entry",
)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_in_one_line(tmp_path, kind):
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.zeros(3)}, whole)
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(make_damaged(whole.read_bytes())[kind])
    with pytest.raises(AtomError, match=r"damaged\.safetensors") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
