"""What an atom file holds, layer by layer, without a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdatoms.atom_file import AtomFile, LayerMap

__all__ = ["LayerRow", "report_file"]


@dataclass(frozen=True)
class LayerRow:
    """One view of one layer."""

    layer: str
    """`<component>.<module path>`"""
    view: str
    """`spatial`, `channel 4x4` or `joint 2x2`"""
    atoms: int
    parameters: int
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
                frozen = m.tensors["encoder"].T if m.book is None else m.book.atoms
                trained = [
                    t for name, t in m.tensors.items() if name not in ("encoder", "base_atoms")
                ]
                rows.append(
                    LayerRow(
                        layer=f"{component}.{path}",
                        view=f"{m.kind}{block}",
                        atoms=len(frozen),
                        parameters=sum(t.numel() for t in trained),
                        bytes=sum(t.numel() * t.element_size() for t in m.tensors.values()),
                        change=measure_change(m),
                    )
                )
    return rows


def measure_change(m: LayerMap) -> float | None:
    """The RMS of ΔD, where the encoder is a principal one, as training makes it; sparse codes have
    that change on average only."""
    if m.book or not is_principal(m.tensors["encoder"].double()):
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
