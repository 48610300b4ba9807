"""Strengths of adapters: one number, or numbers by block, module path or pattern.

    0.8
    down=0.2, mid=0, up=0.7
    0.8, down.1=0.5, text_encoder=0, *attn2*=1.2

The second and third lines are mappings as text. A number alone is for all layers; where several
names are a layer's, the last one counts; a layer that none names has 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

from sdatoms.errors import AtomError, clip, is_finite
from sdatoms.models.families import BLOCK_NAMES, BLOCKS

__all__ = [
    "ALL",
    "MAX_NAMES",
    "Strength",
    "check_names",
    "check_number",
    "check_strength",
    "is_name",
    "list_blocks",
    "names_layer",
    "parse_strength",
    "read_strength",
    "scale_strength",
    "write_number",
    "write_strength",
]

Strength = float | Mapping[str, float]
"""One number, or numbers by name: of the UNet's `down`, `mid` and `up` blocks, of one of them such
as `down.1`, of a component such as `text_encoder`, of a module path and all below it, or of an
fnmatch pattern. The last name that is a layer's counts; 1 where none is."""

ALL = "*"
"""The pattern of a number that stands alone in a text."""
MAX_NAMES = 64
COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer", "model")
NUMBERED = re.compile(r"(down|up)\.(\d{1,3})")
NAME = re.compile(r"[\w.*?!\[\]-]{1,200}", re.ASCII)
WILD = re.compile(r"[*?\[]")


def check_strength(strength: Any, what: str) -> float | dict[str, float]:
    """The strength as plain numbers, whoever gave it.

    Args:
        what: begins the sentence of an error, such as "the strength of 'dog'".

    Raises:
        AtomError: a number is not finite, a name is none of a block, a component, a module path
            and a pattern, or there are too many.
    """
    if not isinstance(strength, Mapping):
        return check_number(strength, what)
    if len(strength) > MAX_NAMES:
        raise AtomError(f"{what} names {len(strength)} blocks; it takes at most {MAX_NAMES}")
    for name in strength:
        if not is_name(name):
            raise AtomError(
                f"{what} names a block {clip(repr(name))}; blocks are "
                f"{', '.join(BLOCK_NAMES[:-1])} and {BLOCK_NAMES[-1]}, one of them such as down.0, "
                "a text encoder, a module path, or a pattern such as *attn2*"
            )
    return {name: check_number(number, what) for name, number in strength.items()}


def is_name(name: Any) -> bool:
    """Whether a strength may be given for it: paths have a dot, so that a misspelt block is told
    from one."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return False
    known = name in BLOCK_NAMES or name in BLOCKS or name in COMPONENTS
    return known or "." in name.strip(".") or WILD.search(name) is not None


def check_number(number: Any, what: str) -> float:
    """One finite number.

    Raises:
        AtomError: it is none; truth values and texts are none.
    """
    if not isinstance(number, Real) or not is_finite(number):
        raise AtomError(f"{what} is {clip(repr(number))}; it takes a finite number")
    return float(number)


def check_names(strength: Strength, layers: Mapping[str, Iterable[str]], what: str) -> None:
    """See that every name is some layer's; a component needs none, and of `down`, `mid` and `up`
    one needs some.

    Args:
        layers: component → module paths that have a strength.

    Raises:
        AtomError: a name fits no layer.
    """
    if not isinstance(strength, Mapping):
        return
    pairs = [(component, path) for component, paths in layers.items() for path in paths]
    blocked = any(names_layer(name, *pair) for name in BLOCK_NAMES for pair in pairs)
    for name in strength:
        if name in COMPONENTS or name == ALL or (name in BLOCK_NAMES and blocked):
            continue
        if not any(names_layer(name, *pair) for pair in pairs):
            blocks = clip(", ".join(list_blocks(layers)), 200)
            raise AtomError(
                f"{what} names {clip(name)!r}, which none of its {len(pairs)} layers is in; they "
                f"are in {blocks}"
            )


def names_layer(name: str, component: str, path: str) -> bool:
    """Whether the name of a strength is one of the layer at a module path."""
    if name in BLOCK_NAMES:
        return BLOCKS.get(path.split(".")[0]) == name
    if WILD.search(name):
        return fnmatchcase(path, name) or fnmatchcase(f"{component}.{path}", name)
    numbered = NUMBERED.fullmatch(name)
    if numbered:
        name = f"{numbered[1]}_blocks.{numbered[2]}"
    return any(f"{whole}.".startswith(f"{name}.") for whole in (path, f"{component}.{path}"))


def read_strength(strength: Strength, path: str, component: str = "") -> float:
    """The number for the layer at a module path of a component; 1 where no name is its."""
    if not isinstance(strength, Mapping):
        return float(strength)
    for name in reversed(list(strength)):
        if names_layer(name, component, path):
            return float(strength[name])
    return 1.0


def scale_strength(strength: Strength, factor: float) -> Strength:
    """Every layer's number times `factor`."""
    if factor == 1:
        return strength
    if not isinstance(strength, Mapping):
        return float(strength) * factor
    return {name: number * factor for name, number in ({ALL: 1.0} | dict(strength)).items()}


def list_blocks(layers: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Name → number of layers of the blocks that have some, in the order that pictures go through.

    Names are such as strengths take: `conv_in`, `down.0`, `mid`, `up.1` and `conv_out` in a UNet,
    behind them other components.

    Args:
        layers: component → module paths.
    """
    found: dict[str, int] = {}
    for component, paths in layers.items():
        for path in paths:
            name = name_block(component, path)
            found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items(), key=lambda pair: rank_block(pair[0])))


def rank_block(name: str) -> tuple[int, int]:
    side, _, number = name.partition(".")
    order = ("conv_in", *BLOCK_NAMES, "conv_out")
    place = order.index(side) if side in order else len(order)
    return place, int(number) if number.isdecimal() else 0


def name_block(component: str, path: str) -> str:
    first, second = (*path.split("."), "")[:2]
    if first in ("down_blocks", "up_blocks") and second.isdecimal():
        return f"{BLOCKS[first]}.{second}"
    if first == "mid_block":
        return BLOCKS[first]
    return first if first in BLOCKS else component


def parse_strength(text: str, what: str) -> float | dict[str, float]:
    """A strength as it is written in a command or a form.

    Args:
        what: begins the sentence of an error, such as "the strength of 'dog'".

    Raises:
        AtomError: a part is no number and no NAME=NUMBER, a name comes twice, or as
            `check_strength`.
    """
    found: dict[str, float] = {}
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        name, mark, number = (word.strip() for word in part.rpartition("="))
        name = name if mark else ALL
        try:
            value = float(number)
        except ValueError:
            raise AtomError(
                f"{what} holds {clip(part, 60)!r}; it takes 0.8, or down.0=0.5, mid=0, *attn2*=0.8"
            ) from None
        if name in found:
            raise AtomError(f"{what} names {clip(name, 60)!r} twice")
        found[name] = value
    if list(found) == [ALL]:
        return check_number(found[ALL], what)
    return check_strength(found, what)


def write_strength(strength: Strength) -> str:
    """The text that `parse_strength` reads back to the bit."""
    if not isinstance(strength, Mapping):
        return write_number(strength)
    first = next(iter(strength), None) == ALL and len(strength) > 1
    parts = [f"{name}={write_number(number)}" for name, number in strength.items()]
    return ", ".join([write_number(strength[ALL]), *parts[1:]] if first else parts)


def write_number(number: float) -> str:
    """The shortest text of the same float."""
    return repr(float(number)).removesuffix(".0")
