"""Recipes: what a picture depends on, and what would make it come out different elsewhere.

`format_parameters` and `parse_parameters` are the text that A1111 and the tools around it write
into pictures and read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms.adapters.plan import same_base
from sdatoms.diffusion.samplers import SAMPLERS, SCHEDULES, read_sampler
from sdatoms.errors import clip, is_finite
from sdatoms.version import __version__

__all__ = [
    "Recipe",
    "UsedAtoms",
    "compare_recipe",
    "describe_canvas",
    "format_parameters",
    "hash_picture",
    "list_versions",
    "parse_parameters",
]


@dataclass(frozen=True)
class UsedAtoms:
    """One atom file that took part."""

    name: str
    sha256: str
    strength: float | dict[str, float]
    """One number, or numbers by block, module path or pattern (`sdatoms.atoms.strengths`)."""
    trigger: str = ""
    schedule: str = ""
    """How the strength went over the steps (`sdatoms.atoms.schedules`); empty: it stayed."""


@dataclass(frozen=True)
class Recipe:
    """All that a picture depends on."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    scheduler: str = "DDIM"
    """One of `sdatoms.diffusion.samplers.SAMPLERS`, or what another tool calls its sampler."""
    width: int = 0
    """px; 0: the base's own."""
    height: int = 0
    base_model: str = ""
    base_fingerprint: dict[str, list[float]] = field(default_factory=dict)
    """A few layers of the UNet, see `fingerprint_base`; empty where another tool painted."""
    adapters: tuple[UsedAtoms, ...] = ()
    denoising_strength: float | None = None
    """Set where the picture was painted over another, or in two passes."""
    init_sha256: str | None = None
    """`hash_picture` of that other."""
    mask_sha256: str | None = None
    """`hash_picture` of the mask that said where."""
    mask_blur: float | None = None
    """px."""
    hires_scale: float = 1.0
    """By how much the second pass is larger than `width`×`height`; 1: there was none."""
    hires_steps: int = 0
    """0: as many as the first pass."""
    batch_size: int = 1
    """Pictures painted at once."""
    batch_position: int = 0
    """Which of them it was, from 0; the first has `seed` less this."""
    versions: dict[str, str] = field(default_factory=dict)
    schedule: str = "normal"
    """One of `sdatoms.diffusion.samplers.SCHEDULES`, or what another tool calls its own."""
    clip_skip: int = 1
    """The text encoder's layer, from the end."""
    guidance_rescale: float = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """What pictures of other seeds, bases and atoms would share, by the names of forms."""
        names = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "scheduler")
        more = ("width", "height", "schedule", "clip_skip", "guidance_rescale")
        return {name: getattr(self, name) for name in (*names, *more)}


def compare_recipe(
    recipe: Recipe,
    *,
    base_fingerprint: Mapping[str, Sequence[float]],
    hashes: Iterable[str],
) -> list[str]:
    """What would make the picture differ if it were painted here: one sentence each.

    Args:
        base_fingerprint: of the base at hand.
        hashes: sha256 of the atom files at hand.
    """
    remarks = []
    stored, found = recipe.base_fingerprint, {k: list(v) for k, v in base_fingerprint.items()}
    if not stored:
        remarks.append("The picture does not say which weights its base had.")
    elif not same_base(stored, found):
        remarks.append(f"The base differs from the picture's ({clip(recipe.base_model)}).")
    held = set(hashes)
    remarks += [
        f"The atom file {used.name} ({used.sha256[:12]}) is not here."
        for used in recipe.adapters
        if used.sha256 not in held
    ]
    here = list_versions()
    other = [f"{k} {v}" for k, v in recipe.versions.items() if here.get(k) != v]
    if other:
        remarks.append(f"It was generated with {', '.join(other)}; pixels may differ a little.")
    if recipe.mask_sha256 or recipe.mask_blur is not None:
        remarks.append("A part of another picture was made anew; picture and mask are not here.")
    elif recipe.denoising_strength is not None and recipe.hires_scale == 1:
        remarks.append("It was generated from another picture, which is not inside it.")
    if recipe.batch_size > 1:
        remarks.append(
            f"It was number {recipe.batch_position + 1} of {recipe.batch_size} generated at once; "
            "alone it may differ by a grey level."
        )
    return remarks


def list_versions() -> dict[str, str]:
    """Versions that pixels depend on."""
    return {
        "sdatoms": __version__,
        "diffusers": version("diffusers"),
        "torch": version("torch"),
    }


def hash_picture(picture: Image.Image) -> str:
    """SHA-256 of size and RGB pixels."""
    rgb = picture.convert("RGB")
    return sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def describe_canvas(painting: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of the picture painted over and of the second pass.

    Args:
        painting: arguments of `sdatoms.diffusion.pipeline.paint`.
    """
    picture, mask = painting["init_picture"], painting["mask"]
    second = painting["hires_scale"] != 1
    over = picture is not None or second
    return {
        "denoising_strength": painting["denoising_strength"] if over else None,
        "init_sha256": hash_picture(picture) if picture else None,
        "mask_sha256": hash_picture(mask) if mask else None,
        "mask_blur": painting["mask_blur"] if mask else None,
        "hires_scale": painting["hires_scale"],
        "hires_steps": painting["hires_steps"] if second else 0,
    }


NEGATIVE = re.compile(r"^[^\S\n]*Negative prompt:", re.MULTILINE)
FIELD = re.compile(r'\s*([\w][\w ./+-]*?):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')

RESCALE = ("CFG Rescale", "CFG Rescale φ", "CFG rescale")
"""What extensions of A1111 call the guidance's rescaling; its own settings have none."""


def format_parameters(recipe: Recipe) -> str:
    """The text A1111 writes: prompt, negative prompt, and one line of settings."""
    known = SCHEDULES.get(recipe.schedule)
    settings: dict[str, Any] = {
        "Steps": recipe.num_inference_steps,
        "Sampler": recipe.scheduler,
        "Schedule type": known.label if known else recipe.schedule,
        "CFG scale": f"{recipe.guidance_scale:g}",
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
    }
    if recipe.scheduler not in SAMPLERS and recipe.schedule == "normal":
        del settings["Schedule type"]  # that of a base's own sampler, which no other program knows
    if recipe.base_fingerprint:
        prints = json.dumps(recipe.base_fingerprint, sort_keys=True)
        settings["Model hash"] = sha256(prints.encode()).hexdigest()[:10]
    if recipe.base_model:
        settings["Model"] = Path(recipe.base_model).name
    if recipe.denoising_strength is not None:
        settings["Denoising strength"] = f"{recipe.denoising_strength:g}"
    if recipe.mask_blur is not None:
        settings["Mask blur"] = f"{recipe.mask_blur:g}"
    if recipe.hires_scale != 1:
        settings["Hires upscale"] = f"{recipe.hires_scale:g}"
        settings |= {"Hires steps": recipe.hires_steps} if recipe.hires_steps else {}
        settings["Hires upscaler"] = "Lanczos"
    if recipe.batch_size > 1:
        settings |= {"Batch size": recipe.batch_size, "Batch pos": recipe.batch_position}
    if recipe.clip_skip > 1:
        settings["Clip skip"] = recipe.clip_skip
    if recipe.guidance_rescale:
        settings[RESCALE[0]] = f"{recipe.guidance_rescale:g}"
    if recipe.adapters:
        named = [(re.sub(r"[:,\"]", " ", used.name), used) for used in recipe.adapters]
        settings["Atoms"] = ", ".join(f"{n}: {describe_strength(u)}" for n, u in named)
        settings["Atoms hashes"] = ", ".join(f"{n}: {u.sha256[:12]}" for n, u in named)
    settings["Version"] = f"sdatoms {recipe.versions.get('sdatoms', __version__)}"
    lines = [recipe.prompt]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    lines.append(", ".join(f"{name}: {quote(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def describe_strength(used: UsedAtoms) -> str:
    """A strength in a line of others: `0.5`, `down=0 mid=1`, `0.5 [0 until 0.2 then 1]`."""
    strength = used.strength
    if isinstance(strength, Mapping):
        text = " ".join(f"{block}={number:g}" for block, number in strength.items())
    else:
        text = f"{strength:g}"
    return f"{text} [{used.schedule.replace(',', '')}]" if used.schedule else text


def quote(value: Any) -> str:
    text = str(value)
    special = any(c in text for c in ",:\n")
    return json.dumps(text, ensure_ascii=False) if special else text


def unquote(text: str) -> str:
    try:
        return json.loads(text) if text.startswith('"') else text
    except ValueError:
        return text


def parse_parameters(text: str) -> Recipe:
    """Read A1111's text, whoever wrote it; settings it lacks keep their defaults."""
    lines = text.strip().split("\n")
    found = {k.strip(): unquote(v.strip()) for k, v in FIELD.findall(lines[-1])}
    settings = found if len(found) >= 3 and "Steps" in found else {}
    body = "\n".join(lines[:-1] if settings else lines)
    # As in A1111, whose grammar this is: the mark counts where a line starts with it.
    prompt, *negatives = NEGATIVE.split(body)
    negative = "\n".join(part.strip() for part in negatives)
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", settings.get("Size", ""))
    recipe = Recipe(prompt.strip(), negative.strip(), base_model=clip(settings.get("Model", "")))
    changes: dict[str, Any] = {}
    for name, setting, kind in (
        ("seed", "Seed", int),
        ("num_inference_steps", "Steps", int),
        ("guidance_scale", "CFG scale", float),
        ("denoising_strength", "Denoising strength", float),
        ("clip_skip", "Clip skip", int),
        *(("guidance_rescale", setting, float) for setting in RESCALE),
        ("mask_blur", "Mask blur", float),
        ("hires_scale", "Hires upscale", float),
        ("hires_steps", "Hires steps", int),
        ("batch_size", "Batch size", int),
        ("batch_position", "Batch pos", int),
    ):
        try:
            value = kind(settings[setting])
        except (KeyError, ValueError):
            continue
        changes |= {name: value} if is_finite(value) else {}
    if "Sampler" in settings:
        kind = settings.get("Schedule type")
        names = read_sampler(settings["Sampler"], kind and clip(kind, 40))
        changes |= {"scheduler": clip(names[0], 40), "schedule": names[1]}
    if size:
        changes |= {"width": int(size[1]), "height": int(size[2])}
    return replace(recipe, **changes)
