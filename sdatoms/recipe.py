"""What a picture depends on, and what would make it come out different elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from PIL import Image

import sdatoms
from sdatoms.atom_file import clip
from sdatoms.compatibility import same_base

__all__ = ["Recipe", "UsedAtoms", "compare_recipe", "hash_picture", "list_versions"]


@dataclass(frozen=True)
class UsedAtoms:
    """One atom file that took part."""

    name: str
    sha256: str
    strength: float | dict[str, float]
    """One number, or numbers for the UNet's `down`, `mid` and `up` blocks."""
    trigger: str = ""


@dataclass(frozen=True)
class Recipe:
    """All that a picture depends on."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    scheduler: str = "DDIM"
    width: int = 0
    """px; 0: the base's own."""
    height: int = 0
    base_model: str = ""
    base_fingerprint: dict[str, list[float]] = field(default_factory=dict)
    """A few layers of the UNet, see `fingerprint_base`; empty where another tool painted."""
    adapters: tuple[UsedAtoms, ...] = ()
    denoising_strength: float | None = None
    """Set where the picture was painted over another."""
    init_sha256: str | None = None
    """`hash_picture` of that other."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What pictures of other seeds, bases and atoms would share, by the names of forms."""
        names = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "scheduler")
        return {name: getattr(self, name) for name in (*names, "width", "height")}


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
        remarks.append(f"It was painted with {', '.join(other)}; pixels may differ a little.")
    if recipe.denoising_strength is not None:
        remarks.append("It was painted over another picture, which is not inside it.")
    return remarks


def list_versions() -> dict[str, str]:
    """Versions that pixels depend on."""
    return {
        "sdatoms": sdatoms.__version__,
        "diffusers": version("diffusers"),
        "torch": version("torch"),
    }


def hash_picture(picture: Image.Image) -> str:
    """SHA-256 of size and RGB pixels."""
    rgb = picture.convert("RGB")
    return sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()
