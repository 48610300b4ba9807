"""Pictures as latents, kept in memory and, when asked, on disk for later runs.

A file in the cache is named by the hash of all that went into it: the picture's bytes, its size and
colours, and the autoencoder's weights. A damaged file is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageEnhance
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sdatoms.errors import clip
from sdatoms.fingerprint import hash_tensors
from sdatoms.pictures import read_picture, to_tensor
from sdatoms.storage import write_whole
from sdatoms.training.buckets import Fit, Size, cut_picture, fit_picture
from sdatoms.training.folder import Source
from sdatoms.training.precision import hold_float32

__all__ = [
    "VERSION",
    "Encoded",
    "encode_pictures",
    "read_tensors",
]

VERSION = 3
"""Rises when the same inputs would be encoded otherwise."""


@dataclass(frozen=True)
class Encoded:
    """One picture, or a mirrored or recoloured copy, ready to train on."""

    name: str
    """Fit to be shown."""
    prompt: str
    mean: Tensor
    """`(c, h, w)`, scaled as the UNet expects; the latent is drawn from N(mean, deviation²)."""
    deviation: Tensor
    mask: Tensor | None
    """`(1, h, w)` in [0, 1] at the latents' size."""
    time_ids: tuple[int, ...]
    """SDXL's six numbers: original size, corner of the cut, size."""


@dataclass(frozen=True)
class Copy:
    """A way to change a picture before it is encoded."""

    mirrored: bool = False
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Relative changes of brightness, contrast and saturation; turn of the hue."""

    def apply(self, picture: Image.Image) -> Image.Image:
        brightness, contrast, saturation, hue = self.jitter
        if brightness:
            picture = ImageEnhance.Brightness(picture).enhance(1 + brightness)
        if contrast:
            picture = ImageEnhance.Contrast(picture).enhance(1 + contrast)
        if saturation:
            picture = ImageEnhance.Color(picture).enhance(1 + saturation)
        if hue:
            h, s, v = picture.convert("HSV").split()
            turned = h.point([(level + round(256 * hue)) % 256 for level in range(256)])
            picture = Image.merge("HSV", (turned, s, v)).convert("RGB")
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else picture


def list_copies(name: str, flip: bool, jitter: float, count: int, seed: int) -> list[Copy]:
    """The picture itself, recoloured copies, and all of them mirrored."""
    draw = random.Random(os.fsencode(f"{seed}:{name}"))
    copies = [Copy()]
    for _ in range(count if jitter else 0):
        share = [draw.uniform(-jitter, jitter) for _ in range(4)]
        # A hue turned as far as brightness may move is another subject.
        copies.append(Copy(jitter=(share[0], share[1], share[2], share[3] / 10)))
    return copies + ([Copy(True, copy.jitter) for copy in copies] if flip else [])


@torch.no_grad()
def encode_pictures(
    pipe: Any,
    sources: Iterable[Source],
    buckets: list[Size],
    *,
    flip: bool = False,
    jitter: float = 0.0,
    copies: int = 0,
    seed: int = 0,
    cache: Path | None = None,
    report: Callable[[], None] = lambda: None,
) -> list[Encoded]:
    """Cover and cut every picture to its bucket and encode it in float32, with its copies.

    Args:
        report: called before each picture, for a heartbeat.
    """
    vae = pipe.vae
    print_ = hash_tensors(vae.state_dict()) if cache else ""
    found = []
    with hold_float32(vae):
        for source in sources:
            report()
            picture = read_picture(source.path)
            fit = fit_picture(*picture.size, buckets)
            cut = cut_picture(picture, fit)
            for copy in list_copies(source.path.name, flip, jitter, copies, seed):
                key = [VERSION, print_, fit, copy.mirrored, copy.jitter]
                tensors = read_cache(cache, source.path, key)
                if tensors is None:
                    pixels = to_tensor(copy.apply(cut))[None].to(vae.device, vae.dtype)
                    posterior = vae.encode(pixels).latent_dist
                    shift = getattr(vae.config, "shift_factor", None) or 0.0
                    scale = vae.config.scaling_factor
                    tensors = {
                        "mean": ((posterior.mean.float() - shift) * scale)[0].cpu(),
                        "deviation": (posterior.std.float() * scale)[0].cpu(),
                    }
                    write_cache(cache, source.path, key, tensors)
                mask = None
                if source.mask:
                    mask = read_mask(source.mask, fit, tensors["mean"].shape[-2:], copy.mirrored)
                row = Encoded(
                    source.name or clip(source.path.name),
                    source.prompt,
                    **tensors,
                    mask=mask,
                    time_ids=fit.time_ids,
                )
                found += [row] * source.repeats
    return found


def read_mask(path: Path, fit: Fit, size: torch.Size, mirrored: bool) -> Tensor:
    """`(1, h, w)` in [0, 1], cut as its picture is and shrunk by averaging to the latents' size."""
    mask = cut_picture(read_picture(path).convert("L"), fit)
    if mirrored:
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = mask.resize((size[1], size[0]), Image.Resampling.BOX)
    return torch.tensor(list(small.tobytes()), dtype=torch.float32).reshape(1, *size) / 255


def name_cached(folder: Path, path: Path, key: Any) -> Path:
    digest = hashlib.sha256(path.read_bytes())
    digest.update(json.dumps(key).encode())
    return folder / "latents" / f"{digest.hexdigest()}.safetensors"


def read_cache(folder: Path | None, path: Path, key: Any) -> dict[str, Tensor] | None:
    return read_tensors(name_cached(folder, path, key)) if folder else None


def write_cache(folder: Path | None, path: Path, key: Any, tensors: dict[str, Tensor]) -> None:
    if folder:
        write_whole(name_cached(folder, path, key), save(tensors))


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError, ValueError):
        return None
