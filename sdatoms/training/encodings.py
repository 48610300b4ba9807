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
from sdatoms.pictures import read_alpha, read_picture, to_tensor
from sdatoms.storage import write_whole
from sdatoms.training.buckets import Cut, Size, center_cut, cut_picture, fit_picture, move_cut
from sdatoms.training.caption_rules import (
    PLAIN_RULES,
    CaptionRules,
    draw_caption,
    list_captions,
)
from sdatoms.training.faces import Point
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
    captions: tuple[str, ...] = ()
    """What may be said of it; `prompt` where it is empty."""
    rules: CaptionRules = PLAIN_RULES
    concept: str = ""
    class_prompt: str | None = None
    share: float | None = None
    """Of all rows, how many are of its concept."""

    def draw_prompt(self, key: str) -> str:
        """Its prompt this time, which depends on the key alone."""
        return draw_caption(self.captions or (self.prompt,), self.rules, random.Random(key))

    def list_prompts(self) -> list[str] | None:
        """All its prompts; None where they cannot be listed."""
        return list_captions(self.captions or (self.prompt,), self.rules)


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
    crops: int = 0,
    find_face: Callable[[Image.Image], Point | None] | None = None,
    report: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = lambda text: None,
) -> list[Encoded]:
    """Cover and cut every picture to its bucket and encode it in float32, with its copies.

    Args:
        crops: how many parts of a picture are drawn at random, in place of its middle.
        find_face: gives the point of a picture that parts are cut out around.
        report: called before each picture, for a heartbeat.
        log: takes a line about pictures that no face was found in.
    """
    vae = pipe.vae
    print_ = hash_tensors(vae.state_dict()) if cache else ""
    found = []
    with hold_float32(vae):
        for source in sources:
            report()
            picture = read_picture(source.path)
            fit = fit_picture(*picture.size, buckets)
            fits = [fit]
            if crops:
                fits = list_cuts(fit, source.path.name, crops, seed)
            elif find_face:
                face = find_face(picture)
                fits = [center_cut(fit, *face)] if face else fits
                if face is None:
                    log(f"no face was found in {source.name}; its middle is cut out")
            mirror = flip if source.flip is None else source.flip
            opened = read_mask(source)
            for fit in fits:
                cut = cut_picture(picture, fit)
                for copy in list_copies(source.path.name, mirror, jitter, copies, seed):
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
                    if opened:
                        mask = cut_mask(opened, fit, tensors["mean"].shape[-2:], copy.mirrored)
                    row = Encoded(
                        source.name or clip(source.path.name),
                        source.prompt,
                        **tensors,
                        mask=mask,
                        time_ids=fit.time_ids,
                        captions=source.captions,
                        rules=source.rules,
                        concept=source.concept,
                        class_prompt=source.class_prompt,
                        share=source.share,
                    )
                    found += [row] * source.repeats
    return found


def list_cuts(fit: Cut, name: str, count: int, seed: int) -> list[Cut]:
    """Cuts of one picture at places drawn by its name; no two alike."""
    draw = random.Random(os.fsencode(f"crop:{seed}:{name}"))
    cuts = [move_cut(fit, draw.random(), draw.random()) for _ in range(count)]
    return list(dict.fromkeys(cuts))


def read_mask(source: Source) -> Image.Image | None:
    """A picture's mask in grey, white where it counts; None where it has none."""
    if source.mask:
        return read_picture(source.mask).convert("L")
    return read_alpha(source.path) if source.alpha else None


def cut_mask(opened: Image.Image, fit: Cut, size: torch.Size, mirrored: bool) -> Tensor:
    """`(1, h, w)` in [0, 1], cut as its picture is and shrunk by averaging to the latents' size."""
    mask = cut_picture(opened, fit)
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
