"""One function opens every form of a base, and says before opening what it is."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.pipelines import save_base
from tiny.single_files import build_parts, save_single, save_sparse, write_zeros

from sdatoms import AtomError, load_base
from sdatoms.diffusion.family import describe_base, read_resolution, refuse_inpainting
from sdatoms.diffusion.open import choose_dtype
from sdatoms.models.recognize import UNET


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A narrow SD 1.x in one float16 file."""
    path = tmp_path_factory.mktemp("single") / "narrow.safetensors"
    parts = build_parts("sd1", dtype=torch.float16)
    return save_single(path, "sd1", parts, dtype=torch.float16)


def test_a_single_file_opens_in_float32_on_a_cpu_and_says_so(single):
    said = []
    pipe = load_base(str(single), device="cpu", say=said.append)
    assert pipe.dtype == torch.float32
    assert said == [
        "narrow.safetensors: float32 on the cpu; the weights stay in the machine's memory"
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_dtype_asked_for_is_that_of_every_weight(tiny_pipeline, dtype):
    pipe = load_base(str(tiny_pipeline("sd")), device="cpu", dtype=dtype)
    found = {
        p.dtype
        for name in ("unet", "vae", "text_encoder")
        for p in getattr(pipe, name).parameters()
    }
    assert found == {getattr(torch, dtype)}


def test_auto_is_the_files_own_dtype_on_a_gpu(single, tmp_path):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert choose_dtype(str(single), "auto", gpu, None) == torch.float16
    assert choose_dtype(str(single), "auto", cpu, None) == torch.float32
    folder = save_base(tmp_path / "base")
    assert choose_dtype(str(folder), "auto", gpu, None) == torch.float32
    assert choose_dtype("someone/on-the-hub", "auto", gpu, None) == torch.float16
    with pytest.raises(AtomError, match="dtype is 'int8'; it takes auto, float32"):
        load_base(str(folder), dtype="int8")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_facts_come_from_the_header(tmp_path, family):
    path = save_sparse(tmp_path / "base.safetensors", family)
    facts = describe_base(str(path))
    assert facts.dtype == torch.float16 and not facts.inpainting
    assert facts.side == read_resolution(str(path)) == (1024 if family == "sdxl" else 512)
    assert facts.label.startswith("Stable Diffusion") and facts.bytes > 2e9 * 0.9


def test_facts_of_a_folder_come_from_its_configuration(tiny_pipeline):
    facts = describe_base(str(tiny_pipeline("sd")))
    assert facts.side == 16 and facts.dtype == torch.float32
    assert facts.bytes > 0 and facts.label == "Stable Diffusion of its own width"


def test_inpainting_bases_are_named_where_plain_ones_are_wanted(tmp_path, single):
    path = save_sparse(tmp_path / "mask.safetensors", "sd1", channels=9)
    with pytest.raises(AtomError, match=r"1\.x, inpainting, .* training takes the plain form"):
        refuse_inpainting(str(path), "training")
    refuse_inpainting(str(single), "training")
    refuse_inpainting("someone/on-the-hub", "training")


def test_another_autoencoder_is_taken_instead(single, tmp_path):
    parts = build_parts("sd1", seed=3)
    other = save_single(tmp_path / "vae.safetensors", "sd1", {"vae": parts["vae"]})
    pipe = load_base(str(single), device="cpu", vae=str(other))
    wanted = parts["vae"].state_dict()
    assert all(torch.equal(t, wanted[key]) for key, t in pipe.vae.state_dict().items())
    folder = tmp_path / "folder"
    pipe.save_pretrained(folder)
    again = load_base(str(folder), device="cpu", vae=str(single))
    held = load_file(single)["first_stage_model.encoder.conv_in.weight"]
    assert torch.equal(again.vae.encoder.conv_in.weight, held.float())


def test_what_a_file_predicts_can_be_told(single):
    pipe = load_base(str(single), device="cpu", prediction_type="v_prediction")
    assert pipe.scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vae": "nowhere/at/all"}, "the autoencoder 'nowhere/at/all' cannot be opened"),
        ({"text_encoders": "/nowhere"}, "no folder and no file '/nowhere'"),
        ({"load_in": "8bit"}, "is a single file"),
    ],
)
def test_wrong_extras_are_refused_in_a_sentence(single, options, message):
    with pytest.raises(AtomError, match=message) as caught:
        load_base(str(single), device="cpu", **options)
    assert "\n" not in str(caught.value)


def test_single_file_flags_do_not_fit_folders(tiny_pipeline):
    with pytest.raises(AtomError, match="--prediction_type is for single files"):
        load_base(str(tiny_pipeline("sd")), device="cpu", prediction_type="epsilon")


@pytest.mark.parametrize("what", ["adapter", "cut", "text", "refiner"])
def test_a_file_that_is_no_base_ends_in_one_sentence(tmp_path, single, what):
    path = tmp_path / "given.safetensors"
    if what == "adapter":
        save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 4)}, path)
    elif what == "refiner":
        name = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
        stem = {f"{UNET}input_blocks.0.0.weight": (384, 4, 3, 3), name: (768, 1280)}
        write_zeros(path, stem | {f"{UNET}label_emb.0.0.weight": (1536, 2560)})
    else:
        shutil.copy(single, path)
        with path.open("r+b") as file:
            file.truncate(1_000_000 if what == "cut" else 3)
    with pytest.raises(AtomError) as caught:
        load_base(str(path), device="cpu")
    assert "\n" not in str(caught.value) and "given.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "entry", "value"),
    [
        ("unet/config.json", "block_out_channels", 5),
        ("unet/config.json", "layers_per_block", "two"),
        ("unet/config.json", "norm_num_groups", 0),
        ("unet/config.json", "cross_attention_dim", None),
        ("vae/config.json", "block_out_channels", 5),
        ("text_encoder/config.json", "num_attention_heads", 0),
        ("text_encoder/config.json", "hidden_size", "x"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 0),
        ("scheduler/scheduler_config.json", "num_train_timesteps", "x"),
        ("model_index.json", "unet", None),
        ("model_index.json", "unet", ["diffusers"]),
    ],
)
def test_a_damaged_folder_ends_in_one_sentence(tmp_path, tiny_pipeline, file, entry, value):
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline("sd"), folder)
    table = json.loads((folder / file).read_text()) | {entry: value}
    (folder / file).write_text(json.dumps(table))
    with pytest.raises(AtomError, match="base") as caught:
        load_base(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
