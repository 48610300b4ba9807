r"""Codes of a weight against stored atoms: the coefficients `A` of the sparse decomposition.

    ΔX = A ΔD,  A = C diag(c),  C = argmin ½‖X − C D‖² + λ‖C‖₁

Codes are as large as the weight (n·m numbers), so no file and no state dict holds them: whoever has
the weight, the atoms D and λ finds them again, without random numbers.

Scale: `c_a = ‖X‖_F / (√(m·p) ‖C_a‖)` gives every column of A the norm that the columns of the
linear decomposition have. An RMS of r in ΔD is then a relative weight change `‖ΔW‖/‖W‖` of exactly
r when it lies in one atom, and of r on average over its directions otherwise (columns of A are not
orthogonal). Atoms that hardly any filter uses are not blown up: norms below a tenth of the RMS over
the columns count as that tenth, and such atoms move the weight by less than r.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sdatoms.decompose import View
from sdatoms.errors import AtomError
from sdatoms.sparse import Solver, encode_rows, learn_atoms, measure_penalty

__all__ = ["OVERCOMPLETE", "CodeBook", "Codes", "encode_weight", "fit_codes", "unit_atoms"]

OVERCOMPLETE = 8
"""The most atoms a column of a view: codes hold at most this many numbers for each weight."""
RARE = 0.1
"""Share of the RMS column norm below which an atom counts as rare."""


@dataclass(frozen=True, eq=False)
class CodeBook:
    """The atoms of one view of one layer, and all that decides the codes beside the weight."""

    atoms: Tensor
    """D `(m, p)` with unit-norm rows."""
    penalty: float
    """λ, in units of the weight."""
    solver: Solver = field(default_factory=Solver)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all of it: equal for two books only if they code every weight alike."""
        atoms = self.atoms.detach().to("cpu", torch.float32).contiguous()
        facts = f"{tuple(atoms.shape)};{self.penalty!r};{self.solver!r};"
        return hashlib.sha256(facts.encode() + atoms.numpy().tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Codes:
    """A code book and the codes of one weight."""

    book: CodeBook
    values: Tensor
    """A `(n, m)`, float32, scaled."""


def fit_codes(
    weight: Tensor, view: View, num_atoms: int, sparsity: float, seed: int
) -> tuple[Codes, float]:
    """Learn at most `num_atoms` atoms for a weight; its codes, and `‖X − C D‖/‖X‖`.

    Raises:
        AtomError: the weight is zero or not finite, or λ leaves no code.
    """
    rows = view.rows(weight.detach().float())
    atoms = learn_atoms(rows, num_atoms, sparsity, seed=seed)
    book = CodeBook(atoms, measure_penalty(rows, sparsity))
    codes = encode_rows(rows, atoms, book.penalty, book.solver)
    missed = sum(
        float((part - code @ atoms).square().sum(dtype=torch.float64))
        for part, code in zip(rows.split(1 << 16), codes.split(1 << 16), strict=True)
    )
    whole = float(torch.linalg.vector_norm(rows, dtype=torch.float64))
    return Codes(book, scale_codes(codes, rows)), missed**0.5 / whole


def encode_weight(weight: Tensor, view: View, book: CodeBook) -> Tensor:
    """The scaled codes `A (n, m)` of a weight, float32, on its device.

    Raises:
        AtomError: λ leaves no code.
    """
    rows = view.rows(weight.detach().float())
    codes = encode_rows(rows, book.atoms, book.penalty, book.solver)
    return scale_codes(codes, rows)


def scale_codes(codes: Tensor, rows: Tensor) -> Tensor:
    """Bring the columns to the norm `‖X‖_F/√(m·p)`, in place; see the module's text on rare atoms.

    Raises:
        AtomError: all codes are zero.
    """
    norms = torch.linalg.vector_norm(codes, dim=0, dtype=torch.float64)
    typical = norms.square().mean().sqrt()
    if not typical > 0:
        raise AtomError("its filters are too small for the atoms' sparsity: every code is zero")
    aim = torch.linalg.vector_norm(rows, dtype=torch.float64)
    aim = aim / (codes.shape[1] * rows.shape[1]) ** 0.5
    return codes.mul_((aim / norms.clamp(min=RARE * typical)).float())


def unit_atoms(atoms: Tensor) -> bool:
    """Whether the atoms have unit norms, up to the rounding of 16 bits."""
    norms = torch.linalg.vector_norm(atoms.float(), dim=1)
    return bool((norms - 1).abs().max() <= 1e-2)
