"""Recipes as the text that A1111 and the tools around it write into pictures and read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import sdatoms
from sdatoms.atom_file import clip
from sdatoms.recipe import Recipe

__all__ = ["format_parameters", "parse_parameters"]

FIELD = re.compile(r'\s*([\w][\w ./+-]*?):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def format_parameters(recipe: Recipe) -> str:
    """The text A1111 writes: prompt, negative prompt, and one line of settings."""
    settings: dict[str, Any] = {
        "Steps": recipe.num_inference_steps,
        "Sampler": recipe.scheduler,
        "CFG scale": f"{recipe.guidance_scale:g}",
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
    }
    if recipe.base_fingerprint:
        prints = json.dumps(recipe.base_fingerprint, sort_keys=True)
        settings["Model hash"] = sha256(prints.encode()).hexdigest()[:10]
    if recipe.base_model:
        settings["Model"] = Path(recipe.base_model).name
    if recipe.denoising_strength is not None:
        settings["Denoising strength"] = f"{recipe.denoising_strength:g}"
    if recipe.adapters:
        named = [(re.sub(r"[:,\"]", " ", used.name), used) for used in recipe.adapters]
        settings["Atoms"] = ", ".join(f"{n}: {write_strength(u.strength)}" for n, u in named)
        settings["Atoms hashes"] = ", ".join(f"{n}: {u.sha256[:12]}" for n, u in named)
    settings["Version"] = f"sdatoms {recipe.versions.get('sdatoms', sdatoms.__version__)}"
    lines = [recipe.prompt]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    lines.append(", ".join(f"{name}: {quote(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def write_strength(strength: float | Mapping[str, float]) -> str:
    if isinstance(strength, Mapping):
        return " ".join(f"{block}={number:g}" for block, number in strength.items())
    return f"{strength:g}"


def quote(value: Any) -> str:
    text = str(value)
    special = any(c in text for c in ",:\n")
    return json.dumps(text, ensure_ascii=False) if special else text


def parse_parameters(text: str) -> Recipe:
    """Read A1111's text, whoever wrote it; settings it lacks keep their defaults."""
    lines = text.strip().split("\n")
    found = {k.strip(): v.strip() for k, v in FIELD.findall(lines[-1])}
    settings = found if len(found) >= 3 and "Steps" in found else {}
    body = "\n".join(lines[:-1] if settings else lines)
    prompt, _, negative = body.partition("Negative prompt:")
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", settings.get("Size", ""))
    recipe = Recipe(prompt.strip(), negative.strip(), base_model=clip(settings.get("Model", "")))
    changes: dict[str, Any] = {}
    for name, setting, kind in (
        ("seed", "Seed", int),
        ("num_inference_steps", "Steps", int),
        ("guidance_scale", "CFG scale", float),
        ("denoising_strength", "Denoising strength", float),
    ):
        try:
            value = kind(settings[setting])
        except (KeyError, ValueError):
            continue
        changes |= {name: value} if math.isfinite(value) else {}
    if "Sampler" in settings:
        changes["scheduler"] = clip(settings["Sampler"], 40)
    if size:
        changes |= {"width": int(size[1]), "height": int(size[2])}
    return replace(recipe, **changes)
