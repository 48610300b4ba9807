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
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdatoms.atom_config import AtomConfig
from sdatoms.codes import CodeBook
from sdatoms.decompose import Kind, View
from sdatoms.errors import AtomError
from sdatoms.fingerprint import hash_tensors
from sdatoms.sparse import Solver

__all__ = [
    "FORMAT",
    "FROZEN",
    "TOKENS",
    "AtomFile",
    "LayerMap",
    "clip",
    "describe_books",
    "find_blocks",
    "group_tensors",
    "hash_content",
    "is_word",
    "join_key",
    "list_maps",
    "split_key",
    "write_whole",
]

FORMAT = "sdatoms/1"
KEY = re.compile(r"([A-Za-z_]\w*)\.(.+)\.(spatial|sparse|block(?:_[1-9][0-9]*)?)\.([a-z_]+)")
FROZEN = (".encoder", "base_atoms")
"""Ends of the keys of tensors that no training changes."""
BASE_ATOMS = {"spatial": "base_atoms", "block": "block_base_atoms"}
"""View → what its base atoms are called under `sparse`."""

TOKENS = re.compile(r"([A-Za-z_]\w*)\.tokens\.embeddings")
"""Key of the embeddings of a new word; the header's `tokens` names the word."""

Views = dict[str, dict[str, Tensor]]
"""View → tensor name → tensor, for one layer."""


@dataclass(frozen=True, eq=False)
class LayerMap:
    """One view's unit-strength delta of one layer: `ΔX = X T`, or `ΔX = A ΔD` of sparse codes."""

    kind: Kind
    block: tuple[int, int]
    groups: int
    kernel: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    """The encoder, or the base atoms, and the trained tensors of the view."""
    book: CodeBook | None = None
    """What decides the codes A; None with the linear decomposition."""
    codes: Tensor | None = None
    """A, where it is known already."""

    @property
    def channels(self) -> int | None:
        """g·i where every absolute input channel has a map of its own, else None."""
        names = [n for n in ("inner_coefficients", "channel_atoms") if n in self.tensors]
        return len(self.tensors[names[0]]) if names else None

    @property
    def delta(self) -> Tensor:
        """ΔD `(m, p)`, or ΔD_c `(g·i, m, p)` where every channel has its own; float64 on the CPU.

        Formed anew each time, as `transform` is: both may be a thousand times larger than the
        tensors they come from, and a file is checked against the model before it may ask for them.
        """
        t = {n: v.detach().to("cpu", torch.float64) for n, v in self.tensors.items()}
        if "inner_atoms" in t:
            return torch.einsum("caj,ajp->cap", t["inner_coefficients"], t["inner_atoms"])
        return t["atoms"] if "atoms" in t else t["channel_atoms"]

    @property
    def transform(self) -> Tensor:
        """What filters or codes are multiplied by, float64 on the CPU: `T = E ΔD (p, p)` or
        `(g·i, p, p)`, with sparse codes ΔD itself."""
        if self.book:
            return self.delta
        return self.tensors["encoder"].detach().to("cpu", torch.float64) @ self.delta

    def view(self, weight: Tensor) -> View:
        return View(self.kind, tuple(weight.shape), self.groups, self.block)


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
        """Text encoder → embeddings `(n, width)` of the word the file brings; see tokens.py."""
        found = {TOKENS.fullmatch(key): tensor for key, tensor in self.tensors.items()}
        return {match[1]: tensor for match, tensor in found.items() if match}

    @property
    def num_parameters(self) -> int:
        """Trained numbers; encoders and base atoms do not count."""
        return sum(t.numel() for key, t in self.tensors.items() if not key.endswith(FROZEN))

    @property
    def sha256(self) -> str:
        """Hash of names, shapes and bytes of all tensors."""
        return hash_tensors(self.tensors)

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
        """Write the file whole or not at all."""
        return write_whole(Path(path), save_tensors(self.tensors, self.metadata))


def list_maps(
    grouped: Mapping[str, Views], layouts: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[LayerMap]]:
    """Module path → one map a view, from the tensors and the layouts by module path."""
    found: dict[str, list[LayerMap]] = {}
    for path, views in grouped.items():
        layout = layouts[path]
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
                )
            )
    return found


def is_word(text: str) -> bool:
    """Whether a file may bring this word: lower case, since tokenizers lower prompts, and in angle
    brackets, so that it is found inside no other word."""
    return re.fullmatch(r"<[^<>\s]{1,60}>", text) is not None and text == text.lower()


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


def find_blocks(layout: Mapping[str, Any], view: str) -> Any:
    """Where a layout gives the kind and the block sides of a view; None in the spatial view.

    One block view is described in the layout itself, further ones (`block_2`, …: sums of files with
    other blocks hold them) in tables of their own.
    """
    if view == "spatial":
        return None
    return layout if view == "block" else layout.get(view)


def group_tensors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Views]]:
    """component → module path → view → tensor name → tensor."""
    grouped: dict[str, dict[str, Views]] = {}
    for key, tensor in tensors.items():
        if TOKENS.fullmatch(key):
            continue
        component, path, view, name = split_key(key)
        views = grouped.setdefault(component, {}).setdefault(path, {})
        views.setdefault(view, {})[name] = tensor
    return grouped


def split_key(key: str) -> tuple[str, str, str, str]:
    """Component, module path, view and tensor name.

    Raises:
        AtomError: the key is not of that form.
    """
    match = KEY.fullmatch(key)
    if not match:
        raise AtomError(
            f"the tensor {clip(key)!r} is not named "
            "<component>.<module path>.<spatial|block>.<tensor>"
        )
    if match[3] == "sparse":
        view = next((view for view, name in BASE_ATOMS.items() if name == match[4]), None)
        if view is None:
            raise AtomError(
                f"the tensor {clip(key)!r} is none of the base atoms "
                f"sparse.{' | sparse.'.join(BASE_ATOMS.values())}"
            )
        return match[1], match[2], view, "base_atoms"
    return match[1], match[2], match[3], match[4]


def join_key(view: str, name: str) -> str:
    """The end of a tensor's key, after the module path; the inverse of `split_key`."""
    return f"sparse.{BASE_ATOMS[view]}" if name == "base_atoms" else f"{view}.{name}"


def hash_content(tensors: Mapping[str, Tensor]) -> str:
    """`modelspec.hash_sha256`: SHA-256 of a file's bytes after its header, with `0x` in front."""
    data = save_tensors(dict(tensors))
    start = 8 + int.from_bytes(data[:8], "little")
    return "0x" + hashlib.sha256(memoryview(data)[start:]).hexdigest()


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write to a temporary file beside `path`, flush, rename: `path` is complete or untouched."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def clip(text: str, length: int = 120) -> str:
    """Untrusted text made fit for one line: control characters blanked, cut to `length`."""
    plain = "".join(c if c.isprintable() else " " for c in str(text)[: length + 1])
    return plain if len(plain) <= length else plain[: length - 1] + "…"
