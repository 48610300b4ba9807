"""Strengths of adapters: one number, or numbers for the blocks of a UNet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from sdatoms.errors import AtomError, clip
from sdatoms.models.families import BLOCK_NAMES, BLOCKS

__all__ = [
    "Strength",
    "check_number",
    "check_strength",
    "read_strength",
]

Strength = float | Mapping[str, float]
"""One number, or numbers for the UNet's `down`, `mid` and `up` blocks (1 where not given)."""


def check_strength(strength: Any, what: str) -> float | dict[str, float]:
    """The strength as plain numbers, whoever gave it.

    Args:
        what: begins the sentence of an error, such as "the strength of 'dog'".

    Raises:
        AtomError: a number is not finite, or a block is none of down, mid and up.
    """
    if not isinstance(strength, Mapping):
        return check_number(strength, what)
    for block in strength:
        if block not in BLOCK_NAMES:
            raise AtomError(
                f"{what} names a block {clip(repr(block))}; blocks are "
                f"{', '.join(BLOCK_NAMES[:-1])} and {BLOCK_NAMES[-1]}"
            )
    return {block: check_number(number, what) for block, number in strength.items()}


def check_number(number: Any, what: str) -> float:
    """One finite number.

    Raises:
        AtomError: it is none; truth values and texts are none.
    """
    if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
        raise AtomError(f"{what} is {clip(repr(number))}; it takes a finite number")
    return float(number)


def read_strength(strength: Strength, path: str) -> float:
    """The number for the layer at a module path; 1 in a block that is not named."""
    if isinstance(strength, Mapping):
        return float(strength.get(BLOCKS.get(path.split(".")[0], ""), 1.0))
    return float(strength)
