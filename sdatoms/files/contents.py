"""What an atom file holds, layer by layer, and where its bytes go; no model is needed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdatoms.atoms.keys import TOKENS, is_frozen, split_key
from sdatoms.atoms.maps import LayerMap
from sdatoms.atoms.products import FACTORS
from sdatoms.files.atom_file import AtomFile
from sdatoms.files.reader import read_atoms, read_header

__all__ = [
    "Budget",
    "LayerRow",
    "Share",
    "measure_budget",
    "report_file",
]


@dataclass(frozen=True)
class Share:
    """What one part of a file takes."""

    parameters: int
    """Trained numbers."""
    bytes: int
    """Bytes of its tensors, encoders included."""


@dataclass(frozen=True)
class Budget:
    """Where a file's bytes go; `prefix + header + tensors` is the size of the file."""

    file: int
    """Bytes on disk."""
    prefix: int
    """The 8 bytes that give the header's length."""
    header: int
    """Bytes of the JSON header: names, shapes, fingerprints, thumbnail."""
    tensors: int
    """Bytes of all tensors."""
    encoders: int
    """Bytes of the frozen encoders, or base atoms, among them."""
    parameters: int
    """Trained numbers."""
    layers: dict[str, Share]
    """`<component>.<module path>` → its share; `<component>.tokens` for a new word."""


@dataclass(frozen=True)
class LayerRow:
    """One view of one layer."""

    layer: str
    """`<component>.<module path>`"""
    view: str
    """`spatial`, `channel 4x4`, `joint 2x2`, `product 16x16` or `shared 1x768`"""
    atoms: int
    parameters: int
    """Trained numbers; those that layers share count with the layer that keeps them."""
    bytes: int
    """Of its encoder, or base atoms, and its trained tensors."""
    change: float | None
    """‖ΔW‖/‖W‖ at strength 1, or None where only the weight could tell: the RMS of ΔD, which
    equals it behind a principal encoder (per channel: up to how the weight spreads over channels).
    """


def report_file(file: AtomFile) -> list[LayerRow]:
    """One row per view of every layer, in the order of the file."""
    rows = []
    for component in file.components:
        for path, maps in file.maps(component).items():
            for m in maps:
                block = "" if m.kind == "spatial" else f" {m.block[0]}x{m.block[1]}"
                form = "product" if m.factors else "shared" if m.shared or m.own else m.kind
                atoms = len(FACTORS) if m.factors else count_frame(m)
                trained = [t for name, t in m.held.items() if not is_frozen(name)]
                rows.append(
                    LayerRow(
                        layer=f"{component}.{path}",
                        view=f"{form}{block}",
                        atoms=atoms,
                        parameters=sum(t.numel() for t in trained),
                        bytes=sum(t.numel() * t.element_size() for t in m.held.values()),
                        change=measure_change(m),
                    )
                )
    return rows


def count_frame(m: LayerMap) -> int:
    """The atoms of an encoder, base atoms, or shared ones."""
    atoms = m.book.atoms if m.book else m.own[1] if m.own else m.encoder.T
    return len(atoms)


def measure_change(m: LayerMap) -> float | None:
    """The RMS of ΔD, where the encoder is a principal one, as training makes it; sparse codes have
    that change on average only."""
    if m.book or m.factors or m.shared or m.own or not is_principal(m.encoder.double()):
        return None
    return float(m.delta.square().mean().sqrt())


def is_principal(encoder: Tensor) -> bool:
    """Whether the columns are orthogonal, but not simply those of the identity (a sum's)."""
    gram = encoder.T @ encoder
    diagonal = gram.diagonal()
    scale = (diagonal[:, None] * diagonal).sqrt()
    off = (gram - torch.diag(diagonal)).abs()
    eye = torch.eye(*encoder.shape, dtype=encoder.dtype)
    plain = len(encoder) > 1 and torch.equal(encoder, eye)
    return bool((off <= 1e-2 * scale).all()) and not plain


def measure_budget(path: str | os.PathLike[str]) -> Budget:
    """Where the bytes of an atom file go, from its header; the parts add up to the file.

    Raises:
        AtomError: it is no atom file.
    """
    path = Path(path)
    file = read_atoms(path)
    with path.open("rb") as opened:
        start, header = read_header(opened, f"the file {path.name!r}")
    layers: dict[str, Share] = {}
    encoders = total = 0
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        word = TOKENS.fullmatch(key)
        component, module, _, name = (word[1], "tokens", "", "") if word else split_key(key)
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        frozen = is_frozen(name)
        total += size
        encoders += size if frozen else 0
        old = layers.get(f"{component}.{module}", Share(0, 0))
        trained = 0 if frozen else file.tensors[key].numel()
        layers[f"{component}.{module}"] = Share(old.parameters + trained, old.bytes + size)
    return Budget(
        file=path.stat().st_size,
        prefix=8,
        header=len(start) - 8,
        tensors=total,
        encoders=encoders,
        parameters=file.num_parameters,
        layers=layers,
    )
