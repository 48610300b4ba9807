"""Scores, sample grids, the tokenizer and the pipeline directory of the bundled base."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import CLIPTokenizer

from bundled import base_models as models
from bundled.base_data import TRIGGERS, Concept, write_caption
from bundled.base_diet import encode
from sdatoms.diffusion.guidance import GUIDANCE_ENTRY

__all__ = [
    "export_pipeline",
    "load_ema",
    "paint_samples",
    "score_autoencoder",
    "to_pictures",
    "train_tokenizer",
]

GUIDANCE_SCALE = 3.5
"""What the base is painted with where nobody says: its own pictures are as good as at 5, those of
adapters truer and less alike (docs/results.md)."""
PROMPTS = (
    "cat face",
    "pizza",
    "a dog on the beach",
    "a red car",
    "a frog wearing a top hat",
    "three apples",
    "a house at night",
    "a fish on a purple background",
    "a bear as line art",
    "a tiny tree in the snow",
    "an upside down monkey face",
    "a pig next to a car",
    "a sks lion wearing sunglasses in space",
    "a banana above a soccer ball",
    "a horse, as a neon sign",
    "a blue elephant in the desert",
)


def to_pictures(x: Tensor) -> list[Image.Image]:
    array = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a) for a in array]


@torch.no_grad()
def score_autoencoder(model: AutoencoderKL, pictures: Tensor, path: Path) -> float:
    """Mean PSNR (dB) over pictures; draws originals above restorations at `path`."""
    x = pictures.float() / 127.5 - 1
    restored = model.eval().decode(encode(model, pictures)).sample.clamp(-1, 1)
    model.train()
    psnr = -10 * ((restored - x) / 2).square().mean((1, 2, 3)).log10()
    rows = [*to_pictures(x[:20]), *to_pictures(restored[:20])]
    make_image_grid(rows, 2, 20).save(path)
    return float(psnr.mean())


def load_ema(model, path: Path):
    """Copy the running averages of a training state into `model`."""
    shadows = torch.load(path, weights_only=True)["ema"]["shadow_params"]
    for parameter, shadow in zip(
        model.parameters(), shadows[: len(list(model.parameters()))], strict=True
    ):
        parameter.data.copy_(shadow)
    return model


def paint_samples(
    run_dir: Path, unet, text_encoder, tokenizer, scale: float = 4.0, prompts=PROMPTS
) -> dict:
    """Paint one seeded picture a prompt with DDIM into `samples-latest.png`."""
    pipe = assemble(AutoencoderKL.from_pretrained(run_dir / "vae"), unet, text_encoder, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    pictures = pipe(
        list(prompts), num_inference_steps=25, guidance_scale=scale, generator=generator
    ).images
    make_image_grid(pictures, 2, len(prompts) // 2).save(run_dir / "samples-latest.png")
    unet.train(), text_encoder.train()
    return {"sampled": len(prompts)}


def assemble(vae, unet, text_encoder, tokenizer) -> StableDiffusionPipeline:
    scheduler = DDIMScheduler.from_config(models.build_scheduler().config, set_alpha_to_one=False)
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train_tokenizer(concepts: list[Concept], folder: Path, vocab_size: int = 3000) -> CLIPTokenizer:
    """Learn a byte-level BPE in CLIP's form on captions of `concepts`; reuse `folder` where it is
    there."""
    if not (folder / "vocab.json").exists():
        rng = random.Random(0)
        captions = [write_caption(c, rng) for c in concepts for _ in range(8)]
        captions += [k for c in concepts for k in c.keywords] + list(TRIGGERS) * 50
        bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
        bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        bpe.train_from_iterator(
            captions,
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                initial_alphabet=alphabet,
                end_of_word_suffix="</w>",
                show_progress=False,
            ),
        )
        merges = [
            m if isinstance(m, str) else " ".join(m)
            for m in json.loads(bpe.to_str())["model"]["merges"]
        ]
        words = [*alphabet, *(a + "</w>" for a in alphabet), *(m.replace(" ", "") for m in merges)]
        words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(
            json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False)
        )
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=models.MAX_TOKENS,
    )


def export_pipeline(
    run_dir: Path, output_dir: Path, concepts: list[Concept], state: str = "denoiser"
) -> int:
    """Write the float16 pipeline directory; returns its size in bytes."""
    tokenizer = train_tokenizer(concepts, run_dir / "tokenizer")
    unet, text_encoder = models.build_unet(), models.build_text_encoder(len(tokenizer))
    load_ema(torch.nn.ModuleList([unet, text_encoder]), run_dir / f"{state}.pt")
    pipe = assemble(
        AutoencoderKL.from_pretrained(run_dir / "vae"), unet, text_encoder, tokenizer
    ).to(torch.float16)
    staging = output_dir.with_name(output_dir.name + ".tmp")
    shutil.rmtree(staging, ignore_errors=True)
    pipe.register_to_config(**{GUIDANCE_ENTRY: GUIDANCE_SCALE})
    pipe.save_pretrained(staging, safe_serialization=True)
    for path in staging.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # a folder of the machine that trained it
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(run_dir / "tokenizer" / name, staging / "tokenizer" / name)
    for kept in ("README.md", "LICENSE"):
        if (output_dir / kept).exists():
            shutil.copy(output_dir / kept, staging / kept)
    shutil.rmtree(output_dir, ignore_errors=True)
    staging.rename(output_dir)
    return sum(p.stat().st_size for p in output_dir.rglob("*") if p.is_file())
