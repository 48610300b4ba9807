"""sdatoms: Stable Diffusion personalization with filter atoms.

Every public name is imported when it is first asked for: `import sdatoms` costs next to nothing,
`inject` and `load_atoms` bring torch, `train` and `load_base` diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdatoms.version import __version__

if TYPE_CHECKING:
    from sdatoms.adapters.load import AdapterSet, load_atoms
    from sdatoms.atoms.config import AtomConfig
    from sdatoms.diffusion.open import load_base
    from sdatoms.errors import AtomError
    from sdatoms.files.atom_file import AtomFile
    from sdatoms.files.compose import compose
    from sdatoms.files.reader import read_atoms
    from sdatoms.files.writer import save_atoms
    from sdatoms.layers.atom_layers import AtomConv1d, AtomConv2d, AtomConv3d, AtomLinear
    from sdatoms.layers.attention import AtomMultiheadAttention
    from sdatoms.layers.inject import Injection, inject
    from sdatoms.training.config import TrainConfig
    from sdatoms.training.loop import train

__all__ = [
    "AdapterSet",
    "AtomConfig",
    "AtomConv1d",
    "AtomConv2d",
    "AtomConv3d",
    "AtomError",
    "AtomFile",
    "AtomLinear",
    "AtomMultiheadAttention",
    "Injection",
    "TrainConfig",
    "__version__",
    "compose",
    "inject",
    "load_atoms",
    "load_base",
    "read_atoms",
    "save_atoms",
    "train",
]

LAZY = {
    "AdapterSet": "sdatoms.adapters.load",
    "AtomConfig": "sdatoms.atoms.config",
    "AtomConv1d": "sdatoms.layers.atom_layers",
    "AtomConv2d": "sdatoms.layers.atom_layers",
    "AtomConv3d": "sdatoms.layers.atom_layers",
    "AtomError": "sdatoms.errors",
    "AtomFile": "sdatoms.files.atom_file",
    "AtomLinear": "sdatoms.layers.atom_layers",
    "AtomMultiheadAttention": "sdatoms.layers.attention",
    "Injection": "sdatoms.layers.inject",
    "TrainConfig": "sdatoms.training.config",
    "compose": "sdatoms.files.compose",
    "inject": "sdatoms.layers.inject",
    "load_atoms": "sdatoms.adapters.load",
    "load_base": "sdatoms.diffusion.open",
    "read_atoms": "sdatoms.files.reader",
    "save_atoms": "sdatoms.files.writer",
    "train": "sdatoms.training.loop",
}
"""Public name → the module it is fetched from."""


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'sdatoms' has no attribute {name!r}")
    return getattr(import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
