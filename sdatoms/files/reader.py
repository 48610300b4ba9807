"""Read an atom file that anybody may have made: judged by content, never by suffix or trust.

The header is read and limited before the tensors are; nothing is ever unpickled; tensors must be
finite and agree with each other and with the layout the header gives for their layer.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from sdatoms.atoms.codes import OVERCOMPLETE, unit_atoms
from sdatoms.atoms.config import AtomConfig
from sdatoms.atoms.decompose import MAX_WIDTH
from sdatoms.atoms.keys import (
    Views,
    find_blocks,
    find_owners,
    group_tensors,
    is_word,
    split_key,
)
from sdatoms.atoms.products import FACTORS
from sdatoms.atoms.shared import OWN, SHARED
from sdatoms.errors import AtomError, clip, first_line
from sdatoms.files.atom_file import FORMAT, AtomFile
from sdatoms.models.header import read_opening

__all__ = [
    "check_file",
    "read_atoms",
    "read_header",
]

MAX_HEADER = 16 << 20
"""Bytes of header that are read."""
MAX_MAPS = 1 << 26
"""The most numbers the maps of one view may have, g·i·p²: a small file must not ask for more."""
TRAINED = ({"atoms"}, {"inner_coefficients", "inner_atoms"}, {"channel_atoms"})
"""The sets of trained tensors a view may hold beside its encoder or base atoms; a block view takes
the first."""
BASES = {"linear": "encoder", "sparse": "base_atoms"}
"""Decomposition → the frozen tensor of every view."""
MAX_ITERATIONS = 10_000
"""The most iterations of a solver a file may ask for."""


def read_atoms(path: str | os.PathLike[str]) -> AtomFile:
    """Read and validate an atom file. No model is needed, nothing is unpickled.

    Raises:
        AtomError: the file is missing, truncated, no safetensors file, of another or a future
            format, or its tensors contradict each other.
    """
    path = Path(path)
    where = f"the file {path.name!r}"
    try:
        if not path.is_file():
            raise AtomError(f"there is no file {str(path)!r}")
        with path.open("rb") as file:
            # A checkpoint of gigabytes is refused by its header, before its tensors are read.
            start, header = read_header(file, where)
            metadata = check_metadata(header, where)
            data = start + file.read()
    except OSError as error:
        raise AtomError(f"{where} cannot be read: {error.strerror or error}") from None
    try:
        tensors = load_tensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise AtomError(f"{where} is cut short or damaged: {first_line(error)}") from None
    config = parse_entry(metadata, "config", where)
    try:
        parsed = AtomConfig.from_dict(config)
    except (AtomError, TypeError) as error:
        raise AtomError(f"{where} has a config of another kind: {clip(str(error), 300)}") from None
    file = AtomFile(parsed, metadata, dict(sorted(tensors.items())))
    check_file(file, where)
    return file


def check_file(file: AtomFile, where: str) -> None:
    """Refuse a file whose parts contradict each other, also where it was changed in memory.

    Raises:
        AtomError: as in `read_atoms`.
    """
    layers, prints = (
        parse_entry(file.metadata, entry, where) for entry in ("layers", "base_fingerprints")
    )
    check_fingerprints(prints, where)
    check_tensors(file.tensors, layers, BASES[file.config.decomposition], where)
    check_word(file, where)


def read_header(file: BinaryIO, where: str) -> tuple[bytes, dict[str, Any]]:
    """`read_opening` of an atom file, whose header is far smaller than a base's may be."""
    return read_opening(file, where, MAX_HEADER)


def check_metadata(header: Mapping[str, Any], where: str) -> dict[str, str]:
    """The header's text entries, if they are those of an atom file this version reads."""
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AtomError(f"{where} has a header whose metadata is not plain text")
    came = metadata.get("format", "none")
    if came != FORMAT and came.startswith("sdatoms/"):
        raise AtomError(
            f"{where} is an atom file of format {clip(came)!r} where {FORMAT!r} fits; "
            "a newer sdatoms may read it"
        )
    if came != FORMAT:
        raise AtomError(
            f"{where} is not an atom file: its format is {clip(came)!r} where {FORMAT!r} fits"
        )
    return metadata


def parse_entry(metadata: Mapping[str, str], entry: str, where: str) -> dict[str, Any]:
    """A header entry that holds a JSON table."""
    if entry not in metadata:
        raise AtomError(f"{where} lacks the header entry {entry!r}")
    try:
        table = json.loads(metadata[entry])
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise AtomError(f"{where} has a header entry {entry!r} that is no JSON table")
    return table


def check_fingerprints(prints: Mapping[str, Any], where: str) -> None:
    """Refuse fingerprints that are not four finite numbers by component and module path."""
    for component, table in prints.items():
        if not isinstance(table, dict):
            raise AtomError(f"{where} has fingerprints of {clip(component)!r} that are no table")
        for path, numbers in table.items():
            if not (
                isinstance(numbers, list)
                and len(numbers) == 4
                and all(type(v) in (int, float) and abs(v) < 1e30 for v in numbers)
            ):
                raise AtomError(f"{where}: the fingerprint of {clip(path)!r} is not four numbers")


def check_tensors(
    tensors: Mapping[str, Tensor], layers: Mapping[str, Any], basis: str, where: str
) -> None:
    """Refuse tensors that are not finite, of another dtype, or contradict the layout.

    Args:
        basis: the frozen tensor of every view, by the config's decomposition.
    """
    if not tensors:
        raise AtomError(f"{where} holds no tensors")
    for key, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise AtomError(
                f"{where}: {clip(key)!r} is {tensor.dtype} where a floating-point type fits"
            )
        if not torch.isfinite(tensor).all():
            raise AtomError(f"{where}: {clip(key)!r} holds NaN or infinite numbers")
    try:
        grouped = group_tensors(tensors)
    except AtomError as error:
        raise AtomError(f"{where}: {error}") from None
    for component, paths in grouped.items():
        for path, views in paths.items():
            layout = layers.get(f"{component}.{path}")
            for view, found in views.items():
                if view in find_owners(layout):
                    continue  # looked at with its owner's, below
                problem = check_layout(layout, view) or check_shapes(
                    found, layout or {}, view, basis
                )
                if not problem and basis == BASES["sparse"]:
                    problem = check_book(found[basis], (layout or {}).get("sparse"), view)
                if problem:
                    raise AtomError(f"{where}: {clip(f'{component}.{path}.{view}')!r} {problem}")
    for key, layout in layers.items():
        component, _, path = key.partition(".")
        for view, owner in find_owners(layout).items():
            check_path(component, path, view, where)
            found = grouped.get(component, {})
            problem = check_layout(layout, view) or check_owner(layers, found, key, view, owner)
            if problem:
                raise AtomError(f"{where}: {clip(f'{component}.{path}.{view}')!r} {problem}")


def check_path(component: str, path: str, view: str, where: str) -> None:
    """Refuse a layer that holds no tensors of its own under a name that no tensor could have."""
    key = f"{component}.{path}.{view}.{SHARED[0]}"
    try:
        key.encode()
        fits = split_key(key) == (component, path, view, SHARED[0])
    except (AtomError, UnicodeEncodeError):
        fits = False
    if not fits:
        raise AtomError(f"{where}: {clip(f'{component}.{path}')!a} is no name of a layer")


def check_owner(
    layouts: Mapping[str, Any], found: Mapping[str, Views], key: str, view: str, owner: Any
) -> str:
    """What is wrong with a layer that shares another's atoms, or an empty string.

    Args:
        found: the tensors of its component by module path.
        key: `<component>.<module path>` of the layer.
    """
    component, _, path = key.partition(".")
    held = found.get(path, {}).get(view, {})
    if set(held) - {OWN[0]}:
        return "holds tensors beside those it shares"
    tensors = found.get(owner, {}).get(view, {}) if isinstance(owner, str) else {}
    if set(tensors) != set(OWN if held else SHARED):
        return f"shares atoms with {clip(str(owner))!r}, which has none to share"
    own, other = (find_blocks(layouts[k], view) for k in (key, f"{component}.{owner}"))
    if (own["view"], own["block"]) != (other.get("view"), other.get("block")):
        return f"has a layout of another block than {clip(owner)!r}, whose atoms it shares"
    return check_shared(dict(tensors) | held, layouts[key], own, "encoder") if held else ""


def check_word(file: AtomFile, where: str) -> None:
    """Refuse embeddings without a word, a word without embeddings, and what is no word."""
    word, rows = file.metadata.get("tokens"), list(file.embeddings.values())
    if (word is None) != (not rows):
        raise AtomError(f"{where} needs both or none of embeddings and the header entry 'tokens'")
    if word is None:
        return
    if not is_word(word):
        raise AtomError(f"{where} brings {clip(word)!r}, which is no word such as <dog>")
    if any(t.dim() != 2 or not t.numel() or len(t) != len(rows[0]) for t in rows):
        raise AtomError(f"{where} has embeddings that are no matrices of as many rows")


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
