"""What is wrong with one view of a layer in an atom file, its layout or its tensors.

Every function answers with the end of a sentence about the view, or with an empty string.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sdatoms.atoms.codes import OVERCOMPLETE, unit_atoms
from sdatoms.atoms.decompose import MAX_WIDTH
from sdatoms.atoms.keys import find_blocks
from sdatoms.atoms.products import FACTORS
from sdatoms.atoms.shared import OWN, SHARED
from sdatoms.errors import clip

__all__ = ["check_book", "check_layout", "check_shapes", "check_shared"]

MAX_MAPS = 1 << 26
"""The most numbers the maps of one view may have, g·i·p²: a small file must not ask for more."""
TRAINED = ({"atoms"}, {"inner_coefficients", "inner_atoms"}, {"channel_atoms"})
"""The sets of trained tensors a view may hold beside its encoder or base atoms; a block view takes
the first."""
MAX_ITERATIONS = 10_000
"""The most iterations of a solver a file may ask for."""


def check_layout(layout: Any, view: str) -> str:
    """What is wrong with a layer's layout, or an empty string."""
    whole = lambda v: isinstance(v, int) and not isinstance(v, bool) and 1 <= v < 1 << 31
    if not isinstance(layout, dict):
        return "has no layout in the header"
    kernel = layout.get("kernel")
    if not isinstance(kernel, list) or len(kernel) > 3 or not all(map(whole, kernel)):
        return "has a layout without a kernel of up to three whole numbers, none for a linear layer"
    if not whole(layout.get("groups")):
        return "has a layout without a number of groups"
    if view == "spatial":
        return ""
    blocks = find_blocks(layout, view)
    sides = blocks.get("block") if isinstance(blocks, dict) else None
    if not isinstance(sides, list) or len(sides) != 2 or not all(map(whole, sides)):
        return "has a layout without a pair of block sides"
    if blocks.get("view") not in ("channel", "joint"):
        return "has a layout that names no block view"
    return ""


def check_book(atoms: Tensor, facts: Any, view: str) -> str:
    """What is wrong with a view's base atoms and what the layout says of their codes, or an empty
    string."""
    penalties = facts.get("penalties") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or not isinstance(penalties, dict):
        return "has a layout without the penalties of its sparse codes"
    penalty, tolerance = penalties.get(view), facts.get("tolerance")
    if not is_between(penalty, 1e-38, 1e38):
        return "has a layout whose penalty is no number above 0"
    if facts.get("solver") != "fista":
        return f"has codes of the solver {clip(str(facts.get('solver')))!r} where 'fista' fits"
    iterations = facts.get("iterations")
    if not isinstance(iterations, int) or not is_between(iterations, 1, MAX_ITERATIONS):
        return f"has a solver whose iterations are no whole number from 1 to {MAX_ITERATIONS}"
    if not is_between(tolerance, 0, 1):
        return "has a solver whose tolerance is no number from 0 to 1"
    return "" if unit_atoms(atoms) else "has base atoms that are not of unit norm"


def is_between(value: Any, least: float, most: float) -> bool:
    """Whether the value is a number in that range."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and least <= value <= most


def check_shapes(
    found: Mapping[str, Tensor], layout: Mapping[str, Any], view: str, basis: str
) -> str:
    """What is wrong with one view's tensors, or an empty string."""
    if FACTORS[0] in found:
        return check_factors(found, find_blocks(layout, view), basis)
    if {*SHARED, *OWN} & set(found):
        return check_shared(found, layout, find_blocks(layout, view), basis)
    names = set(found) - {basis}
    blocks = find_blocks(layout, view)
    if basis not in found or names not in (TRAINED[:1] if blocks else TRAINED):
        held = clip(", ".join(sorted(found)))
        kind = "one encoder" if basis == "encoder" else "base atoms"
        return f"holds {held}: not {kind} with one set of trained tensors"
    p = math.prod(blocks["block"]) if blocks else 1
    if not blocks or blocks["view"] == "joint":
        p *= math.prod(layout["kernel"])
    if p > MAX_WIDTH:
        return f"has {p} columns where at most {MAX_WIDTH} fit"
    if any(not tensor.numel() for tensor in found.values()):
        return "holds an empty tensor"
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    frozen = shapes[basis]
    if basis == "encoder":
        if len(frozen) != 2 or frozen[0] != p or frozen[1] > p:
            return f"has an encoder of shape {frozen} where ({p}, at most {p}) fits"
    elif len(frozen) != 2 or frozen[1] != p or frozen[0] > OVERCOMPLETE * p:
        return f"has base atoms of shape {frozen} where (at most {OVERCOMPLETE * p}, {p}) fits"
    m = frozen[1 if basis == "encoder" else 0]
    channels = max((shapes[n][0] for n in names - {"atoms", "inner_atoms"} if shapes[n]), default=0)
    if channels * p * p > MAX_MAPS:
        return f"asks for {channels} maps of {p}×{p} numbers where {MAX_MAPS} numbers fit in all"
    inner = shapes.get("inner_atoms", ())
    expected = {
        "encoder": (p, m),
        "base_atoms": (m, p),
        "atoms": (m, p),
        "channel_atoms": (channels, m, p),
        "inner_coefficients": (channels, m, *inner[1:2]),
        "inner_atoms": (m, *inner[1:2], p),
    }
    for name, shape in shapes.items():
        if shape != expected[name]:
            return f"has {name} of shape {shape} where {expected[name]} fits"
    return ""


def check_factors(found: Mapping[str, Tensor], blocks: Any, basis: str) -> str:
    """What is wrong with the factors of a product, or an empty string."""
    if set(found) - {"strength"} != set(FACTORS):
        return f"holds {clip(', '.join(sorted(found)))}: not two factors"
    if basis != "encoder" or not blocks or blocks["view"] != "channel":
        return "holds factors, which a linear file's channel blocks alone may have"
    shapes = [tuple(found[name].shape) for name in FACTORS]
    sides = [(b, b) for b in blocks["block"]]
    alike = [shape[-2:] for shape in shapes] == sides and len(shapes[0]) == len(shapes[1])
    if not alike or len(shapes[0]) > 3 or max(blocks["block"]) > MAX_WIDTH:
        return f"has factors of shapes {shapes[0]} and {shapes[1]} where {sides} fit"
    if not all(map(math.prod, shapes)):
        return "holds an empty tensor"
    if "strength" in found and found["strength"].shape != (1,):
        return f"has a strength of shape {tuple(found['strength'].shape)} where (1,) fits"
    return ""


def check_shared(
    found: Mapping[str, Tensor], layout: Mapping[str, Any], blocks: Any, basis: str
) -> str:
    """What is wrong with atoms that layers share, and their encoder or a layer's coefficients, or
    an empty string."""
    names = OWN if OWN[0] in found else SHARED
    if set(found) != set(names):
        return f"holds {clip(', '.join(sorted(found)))}: not an encoder and atoms to share"
    if basis != "encoder" or not blocks or blocks["view"] != "channel" or blocks["block"][0] != 1:
        return "holds shared atoms, which a linear file's rows alone may have"
    p = blocks["block"][1]
    first, atoms = (tuple(found[name].shape) for name in names)
    r = atoms[0] if atoms else 0
    if p > MAX_WIDTH or not 1 <= r <= p or atoms != (r, p):
        return (
            f"has shared atoms of shape {atoms} where (r, {p}) fits, with p at most {MAX_WIDTH} "
            "and r at most p"
        )
    if names == SHARED and first != (p, r):
        return f"has an encoder of shape {first} where ({p}, {r}) fits"
    rows = layout["groups"] * math.prod(layout["kernel"])
    if names == OWN and (len(first) != 2 or first[1] != r or not first[0] or first[0] % rows):
        return f"has coefficients of shape {first} where (a multiple of {rows}, {r}) fits"
    return ""
