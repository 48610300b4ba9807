"""What a visitor asks for: its settings, their ranges, and the recipe of what is painted.

The settings of a painting are written down once, as the fields of `Order`. The form, the saved
forms and the recipes take names and defaults from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from PIL import Image

from sdatoms import AtomError
from sdatoms.atoms.schedules import parse_schedule
from sdatoms.atoms.strengths import Strength
from sdatoms.diffusion.pipeline import SCHEDULERS
from sdatoms.diffusion.prompts import parse_prompt
from sdatoms.diffusion.recipe import Recipe, UsedAtoms, hash_picture, list_versions
from sdatoms.errors import clip
from sdatoms_app.studio.library import Entry

__all__ = [
    "LIMITS",
    "MAX_ADAPTERS",
    "MAX_PROMPT",
    "MAX_SEED",
    "MAX_STRENGTH",
    "SETTINGS",
    "Order",
    "check_order",
    "list_paint_settings",
    "make_recipe",
]

MAX_PROMPT = 2000
MAX_ADAPTERS = 5
MAX_SEED = 2**32 - 1
MAX_STRENGTH = 10.0
LIMITS: dict[str, tuple[float, float]] = {
    "num_inference_steps": (1, 100),
    "guidance_scale": (0, 30),
    "width": (64, 1024),
    "height": (64, 1024),
    "seed": (0, MAX_SEED),
    "batch": (1, 8),
    "denoising_strength": (0.01, 1),
}
"""Setting → least and most; a side may also be 0, the base's own."""
SAID = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "width": "the width",
    "height": "the height",
    "seed": "the seed",
    "batch": "the number of pictures",
    "denoising_strength": "the share painted anew",
}
"""Setting → what refusals call it."""
TAKEN_OVER = ("negative_prompt", "num_inference_steps", "guidance_scale", "scheduler")
"""Settings that painting and recipe take as they are."""


@dataclass(frozen=True)
class Order:
    """What a visitor asks for; `Studio.check` says whether it can be had."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    batch: int = 1
    """Pictures, with rising seeds."""
    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    scheduler: str = "DDIM"
    width: int = 0
    """px, a multiple of 8; 0: the base's own."""
    height: int = 0
    base: str = ""
    """Id of a listed base; empty: the default."""
    adapters: tuple[tuple[str, Strength], ...] = ()
    """Ids of listed atom files, with their strengths."""
    schedules: Mapping[str, str] = field(default_factory=dict)
    """Id → how its strength goes over the steps, such as "0 until 0.2, then 1"."""
    init_picture: Image.Image | None = None
    denoising_strength: float = 0.6
    embed: bool = False
    """Put the atom files inside the PNGs."""


SETTINGS: dict[str, Any] = {
    one.name: one.default
    for one in fields(Order)
    if one.name not in ("prompt", "adapters", "schedules", "init_picture")
}
"""Plain settings with their defaults: all but the prompt, the atom files and the picture."""


def check_order(order: Order) -> None:
    """See that texts and numbers are such as can be painted.

    Raises:
        AtomError: the prompt is empty or too long, or a number is out of range.
    """
    for what, text in (("prompt", order.prompt), ("negative prompt", order.negative_prompt)):
        if len(text) > MAX_PROMPT:
            raise AtomError(f"the {what} has {len(text)} characters; it takes {MAX_PROMPT}")
        parse_prompt(text)
    if not order.prompt.strip():
        raise AtomError("the prompt is empty; say what to paint")
    for name, (low, high) in LIMITS.items():
        number = getattr(order, name)
        own = name in ("width", "height") and number == 0
        if not low <= number <= high and not own:  # NaN is refused too
            raise AtomError(f"{SAID[name]} is {number}; it goes from {low} to {high}")
    if order.width % 8 or order.height % 8:
        raise AtomError(f"the size is {order.width}×{order.height} px; sides are multiples of 8")
    if order.scheduler not in SCHEDULERS:
        raise AtomError(
            f"the scheduler is {clip(order.scheduler)!r}; known are {', '.join(SCHEDULERS)}"
        )
    ids = [id for id, _ in order.adapters]
    if len(ids) > MAX_ADAPTERS:
        raise AtomError(f"{len(ids)} atom files are named; at most {MAX_ADAPTERS} are taken")
    if len(set(ids)) < len(ids):
        raise AtomError("an atom file is listed twice; raise its strength instead")
    for id, strength in order.adapters:
        numbers = strength.values() if isinstance(strength, Mapping) else [strength]
        if not all(abs(number) <= MAX_STRENGTH for number in numbers):
            raise AtomError(
                f"the strength of {clip(id)!r} goes from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}"
            )
    for id in order.schedules:
        if id not in ids:
            raise AtomError(f"there is a schedule for {clip(id)!r}, which is not among the files")
        parse_schedule(order.schedules[id])


def list_paint_settings(order: Order) -> dict[str, Any]:
    """The order as `sdatoms.diffusion.pipeline.paint` takes it, without prompt and seed."""
    return {
        **{name: getattr(order, name) for name in TAKEN_OVER},
        "negative_prompt": order.negative_prompt or None,
        "width": order.width or None,
        "height": order.height or None,
        "init_picture": order.init_picture,
        "denoising_strength": order.denoising_strength,
    }


def make_recipe(
    order: Order,
    entries: Sequence[tuple[Entry, Strength]],
    picture: Image.Image,
    seed: int,
    base: tuple[str, dict[str, list[float]]],
) -> Recipe:
    """All that a picture of the order depends on.

    Args:
        entries: the order's atom files with their strengths.
        picture: what was painted; its size counts.
        seed: the picture's own.
        base: id and fingerprint.
    """
    start = order.init_picture
    adapters = [
        UsedAtoms(
            entry.id,
            entry.sha256,
            dict(strength) if isinstance(strength, Mapping) else float(strength),
            entry.trigger,
            str(parse_schedule(order.schedules[entry.id])) if entry.id in order.schedules else "",
        )
        for entry, strength in entries
    ]
    return Recipe(
        prompt=order.prompt,
        **{name: getattr(order, name) for name in TAKEN_OVER},
        seed=seed,
        width=picture.width,
        height=picture.height,
        base_model=base[0],
        base_fingerprint=base[1],
        adapters=tuple(adapters),
        denoising_strength=order.denoising_strength if start else None,
        init_sha256=hash_picture(start) if start else None,
        versions=list_versions(),
    )
