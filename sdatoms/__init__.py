"""sdatoms: Stable Diffusion personalization with filter atoms."""

from sdatoms.adapters import AdapterSet, load_atoms
from sdatoms.attention import AtomMultiheadAttention
from sdatoms.checkpoint import AtomFile, read_atoms, save_atoms
from sdatoms.compose import compose
from sdatoms.errors import AtomError
from sdatoms.inject import AtomConfig, Injection, inject
from sdatoms.layers import AtomConv1d, AtomConv2d, AtomConv3d, AtomLinear

__version__ = "0.1.0"

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
    "compose",
    "inject",
    "load_atoms",
    "read_atoms",
    "save_atoms",
]
