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
from sdatoms.diffusion.canvas import check_canvas
from sdatoms.diffusion.prompts import parse_prompt
from sdatoms.diffusion.recipe import Recipe, UsedAtoms, describe_canvas, list_versions
from sdatoms.diffusion.samplers import check_sampler
from sdatoms.diffusion.sizes import MAX_SIDE, STEP, check_side, complete_size
from sdatoms.errors import check_text, clip
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
    "check_second_pass",
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
    "width": (64, MAX_SIDE),
    "height": (64, MAX_SIDE),
    "seed": (0, MAX_SEED),
    "batch": (1, 8),
    "denoising_strength": (0.01, 1),
    "clip_skip": (1, 12),
    "guidance_rescale": (0, 1),
    "mask_blur": (0, 64),
    "hires_scale": (1, 4),
    "hires_steps": (0, 100),
    "batch_size": (1, 8),
}
"""Setting → least and most; a side may also be 0, the base's own, and has the operator's cap; the
guidance scale may be None, the base's own."""
SAID = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "seed": "the seed",
    "batch": "the number of pictures",
    "denoising_strength": "the denoising strength",
    "clip_skip": "CLIP skip",
    "guidance_rescale": "the guidance's rescaling",
    "mask_blur": "the mask's soft edge",
    "hires_scale": "the second pass's scale",
    "hires_steps": "the second pass's steps",
    "batch_size": "the batch size",
}
"""Setting → what refusals call it."""
TAKEN_OVER = (
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "schedule",
    "clip_skip",
    "guidance_rescale",
)
"""Settings that painting and recipe take as they are."""
CANVAS = (
    *("init_picture", "mask", "mask_blur", "denoising_strength"),
    *("hires_scale", "hires_steps"),
)
"""What painting takes as it is, and recipes describe."""


@dataclass(frozen=True)
class Order:
    """What a visitor asks for; `Studio.check` says whether it can be had."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    batch: int = 1
    """Pictures, with rising seeds."""
    num_inference_steps: int = 25
    guidance_scale: float | None = None
    """None: the base's own."""
    scheduler: str = "DDIM"
    width: int = 0
    """px, a multiple of 8; 0: the base's own."""
    height: int = 0
    base: str = ""
    """Id of a listed base; empty: the default."""
    adapters: tuple[tuple[str, Strength], ...] = ()
    """Ids of listed atom files, with their strengths."""
    strength_schedules: Mapping[str, str] = field(default_factory=dict)
    """Id → how its strength goes over the steps, such as "0 until 0.2, then 1"."""
    init_picture: Image.Image | None = None
    denoising_strength: float = 0.6
    embed: bool = False
    """Put the atom files inside the PNGs."""
    schedule: str = "normal"
    clip_skip: int = 1
    guidance_rescale: float = 0.0
    mask: Image.Image | None = None
    """Of `init_picture`'s proportions; white is painted anew."""
    mask_blur: float = 4.0
    """px of the mask's soft edge."""
    hires_scale: float = 1.0
    """Paint a second time over the picture enlarged so; 1: once."""
    hires_steps: int = 0
    """Steps of the second pass; 0: as many as the first."""
    batch_size: int = 1
    """Pictures painted at once."""


SETTINGS: dict[str, Any] = {
    field.name: field.default
    for field in fields(Order)
    if field.name not in ("prompt", "adapters", "strength_schedules", "init_picture", "mask")
}
"""Plain settings with their defaults: all but the prompt, the atom files and the pictures."""


def check_order(order: Order, max_side: int = MAX_SIDE) -> None:
    """See that texts and numbers are such as can be painted.

    Args:
        max_side: the operator's cap, px.

    Raises:
        AtomError: the prompt is empty or too long, or a number is out of range.
    """
    for what, text in (("prompt", order.prompt), ("negative prompt", order.negative_prompt)):
        check_text(text, f"the {what}")
        if len(text) > MAX_PROMPT:
            raise AtomError(f"the {what} has {len(text)} characters; it takes {MAX_PROMPT}")
        parse_prompt(text)
    if not order.prompt.strip():
        raise AtomError("the prompt is empty; say what it should show")
    for name, (low, high) in LIMITS.items():
        number: Any = getattr(order, name)
        if name in ("width", "height"):
            if number:
                check_side(name, number, most=max_side, least=int(low))
        elif number is SETTINGS[name] is None:
            continue
        elif not low <= number <= high:  # NaN is refused too
            shown = clip(str(number), 40)
            raise AtomError(f"{SAID[name]} is {shown}; it goes from {low} to {high}")
    check_sampler(order.scheduler, order.schedule, order.num_inference_steps)
    canvas = {name: getattr(order, name) for name in CANVAS}
    check_canvas(**canvas, num_inference_steps=order.num_inference_steps)
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
    for id in order.strength_schedules:
        if id not in ids:
            raise AtomError(f"there is a schedule for {clip(id)!r}, which is not among the files")
        parse_schedule(order.strength_schedules[id])


def check_second_pass(order: Order, side: int, max_side: int = MAX_SIDE) -> None:
    """See that a second pass stays within the sizes painted here.

    Args:
        side: the base's own, px.
        max_side: the operator's cap, px.

    Raises:
        AtomError: it does not.
    """
    if order.hires_scale == 1:
        return
    sides = complete_size(order.width or None, order.height or None, side)
    for name, own in zip(("width", "height"), sides, strict=True):
        enlarged = round((own or side) * order.hires_scale / STEP) * STEP
        check_side(f"second pass's {name}", enlarged, most=max_side)


def list_paint_settings(order: Order) -> dict[str, Any]:
    """The order as `sdatoms.diffusion.pipeline.paint` takes it, without prompt and seed."""
    return {
        **{name: getattr(order, name) for name in TAKEN_OVER},
        "negative_prompt": order.negative_prompt or None,
        "width": order.width or None,
        "height": order.height or None,
        **{name: getattr(order, name) for name in CANVAS},
    }


def make_recipe(
    order: Order,
    entries: Sequence[tuple[Entry, Strength]],
    size: tuple[int, int],
    seed: int,
    base: tuple[str, dict[str, list[float]]],
) -> Recipe:
    """All that a picture of the order depends on.

    Args:
        entries: the order's atom files with their strengths.
        size: width and height in px of the first pass.
        seed: the picture's own.
        base: id and fingerprint.
    """
    adapters = [
        UsedAtoms(
            entry.id,
            entry.sha256,
            dict(strength) if isinstance(strength, Mapping) else float(strength),
            entry.trigger,
            str(parse_schedule(order.strength_schedules[entry.id]))
            if entry.id in order.strength_schedules
            else "",
        )
        for entry, strength in entries
    ]
    return Recipe(
        prompt=order.prompt,
        **{name: getattr(order, name) for name in TAKEN_OVER},
        seed=seed,
        width=size[0],
        height=size[1],
        base_model=base[0],
        base_fingerprint=base[1],
        adapters=tuple(adapters),
        **describe_canvas({name: getattr(order, name) for name in CANVAS}),
        versions=list_versions(),
    )
