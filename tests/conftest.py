"""Tiny models from configs: no network, no downloads, seconds on a CPU."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.base import build_tiny_unet
from tiny.pipelines import save_pipeline
from torch import nn

from sdatoms import AtomConfig, compose, inject, save_atoms
from sdatoms.files.writer import pack_atoms
from sdatoms.training.config import TrainConfig


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def no_code_cache(monkeypatch):
    """Sparse codes of tests do not belong in the user's cache directory."""
    monkeypatch.setenv("SDATOMS_CODE_CACHE", "0")


@pytest.fixture
def one_thread():
    """Threads only wait for each other on tensors this small, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tolerance():
    """dtype → what `torch.testing.assert_close` may overlook after a few layers."""
    return {
        torch.float64: {"rtol": 1e-9, "atol": 1e-9},
        torch.float32: {"rtol": 1e-4, "atol": 1e-5},
        torch.float16: {"rtol": 1e-2, "atol": 1e-2},
        torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
    }


@pytest.fixture
def make_unet():
    """The tiny UNet by seed, in evaluation mode."""

    def make(seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_tiny_unet().eval()

    return make


class ConvNet(nn.Module):
    """A stem, a depthwise 7×7, a 1×1, a grouped 3×3 and a head, as in ConvNeXt and ResNeXt."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.grouped = nn.Conv2d(32, 48, 3, stride=2, groups=4)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = self.depthwise(self.stem(x).relu())
        x = self.grouped(self.pointwise(x).relu())
        return self.head(x.mean((2, 3)))


@pytest.fixture
def make_convnet():
    def make(seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return ConvNet().eval()

    return make


@pytest.fixture
def unet_inputs(rng):
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=rng),
        "timestep": torch.tensor([3, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 12, generator=rng),
    }


@pytest.fixture
def run_unet(unet_inputs):
    """The UNet's output on fixed inputs, in the UNet's dtype."""

    @torch.no_grad()
    def run(unet):
        inputs = {
            k: v.to(unet.dtype) if v.is_floating_point() else v for k, v in unet_inputs.items()
        }
        return unet(**inputs).sample

    return run


@pytest.fixture
def perturb():
    """Move every atom away from where it starts; returns the injection."""

    @torch.no_grad()
    def move(injection, size=0.05, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for parameter in injection.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
        return injection

    return move


@pytest.fixture
def make_file(tmp_path, make_unet, perturb):
    """Save atoms that were tuned on `make_unet()`; returns the path."""

    def make(name="dog", seed=1, size=0.05, **config):
        injection = perturb(inject(make_unet(), AtomConfig(**config)), size, seed)
        return save_atoms(
            tmp_path / f"{name}.safetensors", {"unet": injection}, trigger=f"sks {name}"
        )

    return make


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """Directory of a tiny pipeline of 16 px pictures, by kind (sd, sd2, sdxl) and prediction."""
    made = {}

    def make(kind="sd", prediction_type="epsilon"):
        key = (kind, prediction_type)
        if key not in made:
            made[key] = save_pipeline(tmp_path_factory.mktemp(kind), kind, prediction_type)
        return made[key]

    return make


@pytest.fixture
def make_pictures(tmp_path):
    """A folder of noisy pictures; returns its path."""

    def make(name="pictures", sizes=((20, 20),) * 4, seed=0):
        folder = tmp_path / name
        folder.mkdir()
        numbers = np.random.default_rng(seed)
        for k, (width, height) in enumerate(sizes):
            pixels = numbers.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
        return folder

    return make


@pytest.fixture
def train_config(tmp_path, tiny_pipeline, make_pictures, one_thread):
    """A run of four steps on four pictures and a tiny base; keyword arguments change it."""

    def make(kind="sd", prediction_type="epsilon", **changes):
        folder = tmp_path / "pictures"
        given = {
            "instance_data_dir": str(folder if folder.exists() else make_pictures()),
            "instance_prompt": "sks cat",
            "output_dir": str(tmp_path / "run"),
            "pretrained_model_name_or_path": str(tiny_pipeline(kind, prediction_type)),
            "max_train_steps": 4,
            "train_batch_size": 2,
            "lr_warmup_steps": 0,
            "checkpointing_steps": 2,
            "checkpoints_total_limit": None,
            "validation_steps": 0,
            "num_validation_images": 1,
        }
        return TrainConfig(**{**given, **changes})

    return make


@pytest.fixture
def sample_files(tmp_path, make_convnet, perturb):
    """Every form an atom file of `make_convnet()` can take, by name; its component is `model`."""
    configs = {
        "atoms": AtomConfig("atoms", num_atoms=4),
        "overcomplete": AtomConfig("overcomplete", num_inner_atoms=2),
        "coefficients": AtomConfig("coefficients", block_size=2),
        "channel": AtomConfig("coefficients", block_size=4, block_view="channel"),
        "full": AtomConfig("full", num_inner_atoms=1),
        "product": AtomConfig("coefficients", block_form="product", block_size=4),
        "product each": AtomConfig(
            "full", block_form="product", block_factors="each", block_size=2, num_inner_atoms=1
        ),
        "linear": AtomConfig("atoms", target_modules=("head", "pointwise"), block_size=2),
    }
    files = {
        name: pack_atoms({"model": perturb(inject(make_convnet(), config), 0.05, seed)})
        for seed, (name, config) in enumerate(configs.items())
    }
    files["composed"] = compose(list(files.values()), [0.5, -1, 2, 1, 0.3, 1, -0.7, 0.6])
    files["composed of two"] = compose([files["overcomplete"], files["full"]], [1, 0.5])
    files["composed again"] = compose([files["composed"], files["atoms"]], [1, 3])
    return {name: file.save(tmp_path / f"{name}.safetensors") for name, file in files.items()}


@pytest.fixture
def make_pipe(make_unet):
    """A Stable Diffusion pipeline of toy modules; `folder` takes its vocabulary."""

    def make(folder=None):
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
            StableDiffusionPipeline,
        )
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

        tokenizer = None
        if folder is not None:
            folder.mkdir()
            letters = [f"{c}{end}" for c in map(chr, range(33, 127)) for end in ("", "</w>")]
            words = [*letters, "<|startoftext|>", "<|endoftext|>"]
            (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
            (folder / "merges.txt").write_text("#version: 0.2\n")
            tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=8)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            text = CLIPTextConfig(
                vocab_size=190,
                hidden_size=12,
                intermediate_size=24,
                num_attention_heads=2,
                num_hidden_layers=2,
                max_position_embeddings=8,
                bos_token_id=188,
                eos_token_id=189,
                pad_token_id=189,
            )
            return StableDiffusionPipeline(
                vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
                text_encoder=CLIPTextModel(text).eval(),
                tokenizer=tokenizer,
                unet=make_unet(),
                scheduler=DDIMScheduler(),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )

    return make


@pytest.fixture(scope="session")
def evaluator_folder(tmp_path_factory):
    """A tiny evaluator, saved: width 16, 16 px pictures in patches of 4 px, one letter a token."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

    from sdatoms.evaluation.evaluator import StyleHead, save_evaluator

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(words) - 1
    layers = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=8, **ids, **layers)
    vision = CLIPVisionConfig(image_size=16, patch_size=4, **layers)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8
    )
    path = tmp_path_factory.mktemp("evaluator") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_evaluator(path, CLIPModel(config), StyleHead((8, 8), 12), tokenizer, size=16)
    return path
