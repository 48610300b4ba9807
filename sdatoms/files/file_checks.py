"""What makes an atom file one: a header's tables, and tensors that agree with them.

Tensors must be finite, named as views are, and agree with each other and with the layout that the
header gives for their layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdatoms.atoms.keys import (
    Views,
    find_blocks,
    find_owners,
    group_tensors,
    is_word,
    split_key,
)
from sdatoms.atoms.shared import OWN, SHARED
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import STORED, AtomFile
from sdatoms.files.view_checks import check_book, check_layout, check_shapes, check_shared

__all__ = ["check_file", "parse_entry"]

BASES = {"linear": "encoder", "sparse": "base_atoms"}
"""Decomposition → the frozen tensor of every view."""


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
        if tensor.dtype not in STORED:
            raise AtomError(
                f"{where}: {clip(key)!r} is {tensor.dtype} where a floating-point type of 16 or 32 "
                "bits fits"
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
