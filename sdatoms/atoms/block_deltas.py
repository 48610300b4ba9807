r"""Deltas of block views without a frozen encoder.

- `ProductDelta`: a block view's map as a product of two small matrices (`products.py`): variants
  `coefficients` and `full` with `block_form` "product".
- `SharedDelta`: whole rows as filters, atoms and a trained encoder that many layers share
  (`shared.py`): the same variants with `block_form` "shared".
- `OwnDelta`: the same atoms with coefficients of each layer's own: `block_factors` "each" there.

Those called fixed hold a loaded file's tensors for an attached layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.atoms.decompose import View
from sdatoms.atoms.deltas import Delta, make_zeros
from sdatoms.atoms.products import FACTORS, apply_factors, factor_shapes
from sdatoms.atoms.shared import OWN, SHARED, apply_shared, draw_atoms

__all__ = [
    "FixedOwnDelta",
    "FixedProductDelta",
    "FixedSharedDelta",
    "OwnDelta",
    "ProductDelta",
    "RowDelta",
    "SharedDelta",
    "SharingDelta",
    "fix_atoms",
]


def hold_fixed(delta: Delta, names: Iterable[str], tensors: Iterable[Tensor]) -> None:
    """Give a delta float32 tensors that no gradient reaches and no state dict holds."""
    for name, tensor in zip(names, tensors, strict=True):
        delta.register_buffer(name, tensor.to(torch.float32), persistent=False)


class ProductDelta(Delta):
    """Trained `output_factor` L and `input_factor` R, both zero at the start.

    Args:
        each: a matrix of its own for every block of channels, `(blocks, b, b)`, instead of one
            `(b, b)` that all share.
    """

    form = "product"
    strength = 1.0

    def __init__(self, view: View, each: bool, like: Tensor) -> None:
        nn.Module.__init__(self)
        self.view, self.sparse = view, False
        left, right = factor_shapes(view, each)
        self.output_factor = nn.Parameter(make_zeros(like, *left))
        self.input_factor = nn.Parameter(make_zeros(like, *right))

    @property
    def num_atoms(self) -> int:
        """The two factors."""
        return 2

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            change = apply_factors(weight, self.view, self.output_factor, self.input_factor)
        return change if self.strength == 1.0 else self.strength * change

    def extra_repr(self) -> str:
        (bo, bi), shared = self.view.block, self.output_factor.dim() == 2
        trained = self.output_factor.numel() + self.input_factor.numel()
        return f"product {bo}x{bi}, {'shared' if shared else 'each'}, parameters={trained}"


class FixedProductDelta(ProductDelta):
    """Factors at a strength, which no gradient reaches and no state dict holds."""

    def __init__(self, view: View, factors: tuple[Tensor, Tensor], strength: float) -> None:
        nn.Module.__init__(self)
        self.view, self.sparse, self.strength = view, False, strength
        hold_fixed(self, FACTORS, factors)


class RowDelta(Delta):
    """A delta of whole rows, whose atoms another layer's delta may keep."""

    form = "shared"
    shared_atoms: nn.Parameter
    """D `(r, p)`, the keeper's where another layer keeps it."""

    def __init__(self, view: View, owner: str = "") -> None:
        nn.Module.__init__(self)
        self.view, self.sparse, self.owner = view, False, owner

    def __getattr__(self, name: str) -> Any:
        """What layers share is the keeper's, unless this delta has it."""
        keeper = self.__dict__.get("keeper")
        if keeper is not None and name in SHARED:
            return getattr(keeper, name)
        return super().__getattr__(name)


def fix_atoms(delta: RowDelta, atoms: Tensor) -> None:
    """Set a delta's shared atoms `(r, p)`, which stay in its state dict and are trained no more."""
    atoms = atoms.detach().to(delta.shared_atoms.device, torch.float32, copy=True)
    del delta.shared_atoms
    delta.register_buffer("shared_atoms", atoms)


class SharedDelta(RowDelta):
    """Trained `shared_encoder` E `(p, r)`, zero at the start, and `shared_atoms` D `(r, p)`, which
    the deltas of other layers may use too (`SharingDelta`).

    Args:
        view: whole rows, of kind `channel` with blocks of 1×i.
        atoms: r.
        seed: of the atoms.
        owner: path of the layer that keeps the tensors in state dicts and files.
    """

    def __init__(self, view: View, atoms: int, seed: int, like: Tensor, owner: str = "") -> None:
        RowDelta.__init__(self, view, owner)
        self.shared_encoder = nn.Parameter(make_zeros(like, view.width, atoms))
        self.shared_atoms = nn.Parameter(draw_atoms(atoms, view.width, seed).to(like.device))

    @property
    def num_atoms(self) -> int:
        return len(self.shared_atoms)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return apply_shared(weight, self.view, self.shared_encoder, self.shared_atoms)

    def extra_repr(self) -> str:
        return f"shared atoms={self.num_atoms}, width={self.view.width}, with {self.owner!r}"


class SharingDelta(SharedDelta):
    """The delta of another weight with the very tensors of a `SharedDelta`, which alone has them
    among its parameters and in its state dict."""

    def __init__(self, view: View, keeper: SharedDelta) -> None:
        RowDelta.__init__(self, view, keeper.owner)
        self.__dict__["keeper"] = keeper  # no submodule: its tensors are the owner's alone


class FixedSharedDelta(SharedDelta):
    """Shared atoms, their strength in the encoder, which no gradient reaches and no state dict
    holds."""

    def __init__(self, view: View, encoder: Tensor, atoms: Tensor) -> None:
        RowDelta.__init__(self, view)
        hold_fixed(self, SHARED, (encoder, atoms))


class OwnDelta(RowDelta):
    """Trained `coefficients` C `(n, r)`, zero at the start, of `shared_atoms` D `(r, p)`, which one
    layer keeps for all that share them.

    Args:
        view: as in `SharedDelta`.
        atoms: D to start from, or the delta that keeps it.
        owner: path of the layer that keeps it.
    """

    def __init__(self, view: View, atoms: Tensor | OwnDelta, like: Tensor, owner: str) -> None:
        RowDelta.__init__(self, view, owner)
        if isinstance(atoms, Tensor):
            self.shared_atoms = nn.Parameter(atoms.to(like.device))
        else:
            self.__dict__["keeper"] = atoms  # no submodule: its atoms are the owner's alone
        self.coefficients = nn.Parameter(make_zeros(like, view.height, self.num_atoms))

    @property
    def num_atoms(self) -> int:
        return len(self.shared_atoms)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            own, atoms = (t.to(weight.device) for t in (self.coefficients, self.shared_atoms))
            return self.view.fold(own @ atoms)

    def extra_repr(self) -> str:
        return f"coefficients of {self.num_atoms} atoms, width={self.view.width}, {self.owner!r}"


class FixedOwnDelta(OwnDelta):
    """Coefficients at a strength and their atoms, which no gradient reaches and no state dict
    holds."""

    def __init__(self, view: View, coefficients: Tensor, atoms: Tensor) -> None:
        RowDelta.__init__(self, view)
        hold_fixed(self, OWN, (coefficients, atoms))
