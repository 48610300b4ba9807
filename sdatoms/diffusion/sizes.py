"""Sizes of pictures: what a base takes, what it was trained on, and the side that is not given."""

from __future__ import annotations

import math
from typing import Any

from sdatoms.diffusion.family import find_side
from sdatoms.errors import AtomError

__all__ = [
    "MAX_SIDE",
    "STEP",
    "check_side",
    "choose_size",
    "complete_size",
    "describe_choice",
    "enlarge_size",
    "fit_proportions",
    "fit_size",
    "list_sizes",
    "name_shape",
]

STEP = 8
"""px; a base whose autoencoder shrinks by more has a larger one."""
MAX_SIDE = 2048
XL_SIDE = 1024
XL_SIZES = (
    (1024, 1024),
    (1152, 896),
    (896, 1152),
    (1216, 832),
    (832, 1216),
    (1344, 768),
    (768, 1344),
    (1536, 640),
    (640, 1536),
)
"""Width and height in px of Stable Diffusion XL's own sizes; no two have a side in common."""


def list_sizes(side: int) -> list[tuple[int, int]]:
    """Width and height in px of square, portrait and landscape pictures.

    Those of Stable Diffusion XL are the sizes it was trained on; other bases, trained on squares,
    also paint a little beyond them.

    Args:
        side: the base's own, px.
    """
    if side == XL_SIDE:
        return list(XL_SIZES)
    pairs = [(side, side)]
    for part in (5, 6):  # quarters of the side: 4:5 and 2:3
        long = side * part // 4 // STEP * STEP
        pairs += [(side, long), (long, side)] if long > side else []
    return [*pairs, (pairs[-1][0], pairs[-1][0])] if len(pairs) > 1 else pairs


def name_shape(width: int, height: int) -> str:
    """Square, portrait or landscape."""
    return "square" if width == height else "portrait" if width < height else "landscape"


def check_side(
    name: str, side: int, step: int = STEP, most: int = MAX_SIDE, least: int = 0
) -> None:
    """See that a side can be painted.

    Args:
        name: width or height.
        side: px.
        least: px; one step if not given.

    Raises:
        AtomError: it is no multiple of the step, or out of range; names the nearest that fits.
    """
    low, high = max(least, step), most // step * step
    if not low <= side <= high or side % step:
        nearest = math.floor(min(max(low, side), high) / step + 0.5) * step
        raise AtomError(
            f"the {name} is {side} px; it takes multiples of {step} px from {low} to {high}, and "
            f"the nearest is {nearest}"
        )


def complete_size(
    width: int | None, height: int | None, side: int, step: int = STEP
) -> tuple[int | None, int | None]:
    """Width and height in px; where one is given, the other makes the base's own area.

    A side of Stable Diffusion XL's own sizes gets its partner there.

    Args:
        side: the base's own, px.
    """
    given = width if height is None else height if width is None else None
    if given is None:
        return width, height
    pairs = dict(XL_SIZES) if side == XL_SIDE else {}
    other = round(side**2 / given / step) * step
    other = pairs.get(given, min(max(step, other), MAX_SIDE // step * step))
    return (given, other) if height is None else (other, given)


def describe_choice(
    given: tuple[int | None, int | None], chosen: tuple[int | None, int | None]
) -> str | None:
    """What is said where one side was given, width and height in px; None where nothing is."""
    if (given[0] is None) == (given[1] is None):
        return None
    name = "width" if given[0] is None else "height"
    return f"{chosen[0]}×{chosen[1]} px: the {name} is what makes the base's own area"


def choose_size(pipe: Any, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """`complete_size` for a pipeline; None for both is its own.

    Raises:
        AtomError: a side is no multiple of what the base takes, or too large.
    """
    step = math.lcm(STEP, pipe.vae_scale_factor)
    for name, side in (("width", width), ("height", height)):
        if side is not None:
            check_side(name, side, step)
    side = find_side(pipe)
    return complete_size(width, height, side, step)


def fit_proportions(
    side: int, shape: tuple[int, int], step: int = STEP, most: int = MAX_SIDE
) -> tuple[int, int]:
    """Width and height in px that make the base's own area in a picture's proportions, which count
    up to 4:1.

    Args:
        side: the base's own, px.
        shape: width and height of the picture.
        most: px, of either side; the area is smaller where it is reached.
    """
    if shape[0] == shape[1]:
        return min(side, most), min(side, most)
    root = min(max(shape[0] / shape[1], 1 / 4), 4) ** 0.5
    side = min(side, int(most / max(root, 1 / root)))
    width, height = (max(step, round(own / step) * step) for own in (side * root, side / root))
    return width, height


def fit_size(
    pipe: Any, width: int | None, height: int | None, shape: tuple[int, int] | None = None
) -> tuple[int, int]:
    """`choose_size` with nothing left open.

    Args:
        shape: width and height of a picture that gives the proportions where no side is given.

    Raises:
        AtomError: as `choose_size`.
    """
    chosen = choose_size(pipe, width, height)
    side = find_side(pipe)
    if chosen[0] is None or chosen[1] is None:
        return fit_proportions(side, shape or (1, 1), math.lcm(STEP, pipe.vae_scale_factor))
    return chosen[0], chosen[1]


def enlarge_size(pipe: Any, size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height in px of a second pass.

    Raises:
        AtomError: a side becomes too large.
    """
    if scale == 1:
        return size
    step = math.lcm(STEP, pipe.vae_scale_factor)
    width, height = (round(side * scale / step) * step for side in size)
    for name, side in (("second pass's width", width), ("second pass's height", height)):
        check_side(name, side, step)
    return width, height
