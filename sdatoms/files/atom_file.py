"""`AtomFile`: the trained tensors, encoders and header of one adapter, in memory and on disk.

Keys are `<component>.<module path>.<view>.<tensor>`; base atoms of the sparse decomposition stand
under `<component>.<module path>.sparse`, those of a block view as `block_base_atoms`. The header
holds the config, the layout of every layer, fingerprints of the base weights and the `modelspec.*`
keys that model browsers read.
Files are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdatoms.atoms.codes import CodeBook
from sdatoms.atoms.config import AtomConfig
from sdatoms.atoms.keys import (
    TOKENS,
    Views,
    find_blocks,
    find_owners,
    group_tensors,
    is_frozen,
    split_key,
)
from sdatoms.atoms.maps import LayerMap
from sdatoms.atoms.sparse import Solver
from sdatoms.errors import AtomError, check_text, clip
from sdatoms.fingerprint import hash_tensors
from sdatoms.storage import write_whole

__all__ = [
    "FORMAT",
    "MAX_HEADER",
    "STORED",
    "AtomFile",
    "describe_books",
    "hash_content",
    "list_maps",
]

FORMAT = "sdatoms/1"
STORED = (torch.float32, torch.float16, torch.bfloat16)
"""What a file's numbers may be."""
MAX_HEADER = 16 << 20
"""Bytes; a base's may be far larger."""


@dataclass(frozen=True, eq=False)
class AtomFile:
    """A validated atom file in memory; needs no model."""

    config: AtomConfig
    metadata: dict[str, str]
    """The header's text entries, as stored."""
    tensors: dict[str, Tensor]

    @property
    def components(self) -> tuple[str, ...]:
        """Pipeline components the file holds atoms for, such as `unet`."""
        keys = [key for key in self.tensors if not TOKENS.fullmatch(key)]
        return tuple(dict.fromkeys(split_key(key)[0] for key in keys))

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """Text encoder → embeddings `(n, width)` of the word the file brings (`adapters.words`)."""
        found = {TOKENS.fullmatch(key): tensor for key, tensor in self.tensors.items()}
        return {match[1]: tensor for match, tensor in found.items() if match}

    @property
    def num_parameters(self) -> int:
        """Trained numbers; encoders and base atoms do not count."""
        return sum(t.numel() for key, t in self.tensors.items() if not is_frozen(key))

    @property
    def sha256(self) -> str:
        """Hash of names, shapes and bytes of all tensors, and of which layers share them."""
        found = {key: find_owners(layout) for key, layout in self.layers.items()}
        sharing = {key: owners for key, owners in found.items() if owners}
        return hash_tensors(self.tensors, json.dumps(sharing) if sharing else "")

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """`<component>.<module path>` → kernel, groups, block sides and block view."""
        return json.loads(self.metadata["layers"])

    @property
    def fingerprints(self) -> dict[str, dict[str, list[float]]]:
        """component → module path → norm and three projections of the base weight."""
        return json.loads(self.metadata["base_fingerprints"])

    @property
    def trigger(self) -> str | None:
        return self.metadata.get("trigger")

    def maps(self, component: str) -> dict[str, list[LayerMap]]:
        """Module path → the maps its weight goes through at strength 1."""
        prefix = f"{component}."
        layouts = {k[len(prefix) :]: v for k, v in self.layers.items() if k.startswith(prefix)}
        return list_maps(group_tensors(self.tensors).get(component, {}), layouts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file whole or not at all.

        Raises:
            AtomError: the metadata hold what is no text, or more than a reader takes.
        """
        for key, text in self.metadata.items():
            check_text(text, f"the file's {key}")
        data = save_tensors(self.tensors, self.metadata)
        length = int.from_bytes(data[:8], "little")
        if length > MAX_HEADER:
            key = max(self.metadata, key=lambda name: len(self.metadata[name]))
            raise AtomError(
                f"the file's header would have {length:,} bytes, most of them in {clip(key)!r}; "
                f"at most {MAX_HEADER:,} are read"
            )
        return write_whole(Path(path), data)


def list_maps(
    grouped: Mapping[str, Views], layouts: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[LayerMap]]:
    """Module path → one map a view, from the tensors and the layouts by module path; a layer that
    shares the atoms of another has that one's tensors."""
    found: dict[str, list[LayerMap]] = {}
    sharing = {path: find_owners(layout) for path, layout in layouts.items()}
    for path in dict.fromkeys([*grouped, *(path for path, owners in sharing.items() if owners)]):
        layout, owners, views = layouts[path], sharing[path], dict(grouped.get(path, {}))
        kept = {view: grouped.get(owner, {}).get(view) for view, owner in owners.items()}
        views |= {view: held | views.get(view, {}) for view, held in kept.items() if held}
        for view, tensors in views.items():
            blocks = find_blocks(layout, view)
            found.setdefault(path, []).append(
                LayerMap(
                    kind=blocks["view"] if blocks else "spatial",
                    block=(blocks["block"][0], blocks["block"][1]) if blocks else (1, 1),
                    groups=layout["groups"],
                    kernel=tuple(layout["kernel"]),
                    tensors=tensors,
                    book=read_book(layout, view, tensors),
                    owner=owners.get(view),
                )
            )
    return found


def read_book(
    layout: Mapping[str, Any], view: str, tensors: Mapping[str, Tensor]
) -> CodeBook | None:
    """The code book of a view of the sparse decomposition; None with the linear one."""
    if "base_atoms" not in tensors:
        return None
    facts = layout["sparse"]
    solver = Solver(facts["solver"], facts["iterations"], facts["tolerance"])
    return CodeBook(tensors["base_atoms"], facts["penalties"][view], solver)


def describe_books(books: Mapping[str, CodeBook]) -> dict[str, Any]:
    """What a layout says about the code books of a layer by view, the inverse of `read_book`;
    nothing about no books."""
    if not books:
        return {}
    solver = next(iter(books.values())).solver
    return {
        "sparse": {
            "solver": solver.name,
            "iterations": solver.iterations,
            "tolerance": solver.tolerance,
            "penalties": {view: book.penalty for view, book in books.items()},
        }
    }


def hash_content(tensors: Mapping[str, Tensor]) -> str:
    """`modelspec.hash_sha256`: SHA-256 of a file's bytes after its header, with `0x` in front."""
    data = save_tensors(dict(tensors))
    start = 8 + int.from_bytes(data[:8], "little")
    return "0x" + hashlib.sha256(memoryview(data)[start:]).hexdigest()
