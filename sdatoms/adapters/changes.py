r"""What a file would change in a model, layer by layer, with nothing loaded into it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from sdatoms.adapters.load import load_atoms
from sdatoms.adapters.plan import choose_modules
from sdatoms.adapters.state import read_pristine
from sdatoms.files.anatomy import FROZEN, drop_word
from sdatoms.files.atom_file import AtomFile
from sdatoms.models.families import BLOCKS

__all__ = [
    "LayerChange",
    "measure_changes",
]
LOOKING = "sdatoms.anatomy"
"""Name of an adapter that is there while it is looked at, at strength 0."""


@dataclass(frozen=True)
class LayerChange:
    """How much of one layer a file rewrites at strength 1."""

    component: str
    path: str
    block: str
    """`down`, `mid` or `up` in a UNet, else the first part of the path."""
    change: float
    """‖ΔW‖_F / ‖W‖_F."""
    parameters: int
    """Trained numbers of the layer."""


def measure_changes(file: AtomFile, target: Any) -> list[LayerChange]:
    """‖ΔW‖/‖W‖ of every layer of the file, on the base weights of `target`, in the file's order.

    Args:
        file: an atom file.
        target: a pipeline, or one module; adapters baked into it do not count.

    Raises:
        AtomError: a layer of the file is not there.
    """
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another base: its changes are still what they are
        adapters = load_atoms(target, drop_word(file), name=LOOKING, strength=0.0)
    try:
        for component, module in choose_modules(target, file, None).items():
            for path, maps in file.maps(component).items():
                where = path if isinstance(target, nn.Module) else f"{component}.{path}"
                delta = adapters.delta(LOOKING, where)
                norm = float(read_pristine(module, path).float().norm())
                change = float(delta.norm()) / max(norm, 1e-30)
                parts = [t for m in maps for name, t in m.tensors.items() if name not in FROZEN]
                trained = sum(t.numel() for t in parts)
                rows.append(LayerChange(component, path, name_block(path), change, trained))
    finally:
        adapters.remove(LOOKING)
    return rows


def name_block(path: str) -> str:
    first = path.split(".")[0]
    return BLOCKS.get(first, first)
