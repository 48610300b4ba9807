r"""Weights as matrices of filters, and the encoder that turns them into coefficients.

A weight `W (g·o, i, h, w)` is read as a matrix of filters `X (n, p)` in one of three exact,
reversible views:

- `spatial`: rows are the g·o·i filters, p = h·w;
- `channel`: rows are the b×b channel blocks at every kernel position, p = b²;
- `joint`: rows are the b×b channel blocks with their kernels, p = b²·h·w.

The linear decomposition is `A = X E` with the encoder `E (p, m)` from the top-m eigenpairs of
`G = XᵀX`: `E = V_m Λ_m^(-1/2) · ‖X‖_F / √(m·p)`. Columns of `X E` are orthogonal, and an RMS of r
in the atoms' delta `ΔD (m, p)` is a relative weight change `‖ΔW‖/‖W‖ = r` in every layer and view.
The delta needs no stored coefficients: `ΔX = A ΔD = X (E ΔD) = X T`, one small p×p map `T`.

Reference: Chen, Miao, Qiu, "Large Convolutional Model Tuning via Filter Subspace", ICLR 2025,
https://arxiv.org/abs/2403.00269, equation 2; the encoder form is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from sdatoms.errors import AtomError

__all__ = [
    "CHUNK",
    "MAX_WIDTH",
    "Kind",
    "View",
    "fit_encoder",
    "measure_gram",
    "relative_error",
    "split_side",
    "walk_channels",
]

Kind = Literal["spatial", "channel", "joint"]


EIGENVALUE_FLOOR = 1e-6
"""Eigenvalues below this share of the largest are dropped: below lies float16's rounding."""
MAX_WIDTH = 4096
"""The most columns a view may have: its maps are p×p numbers, whatever a setting or a file asks."""
CHUNK = 1 << 16
"""Weights converted to float64 at once while the Gram matrix is accumulated: they stay in a core's
own cache, which is twice as fast as two million are."""


def split_side(size: int, asked: int) -> int:
    """The largest divisor of `size` that is not above `asked`."""
    return next(b for b in range(min(size, asked), 0, -1) if size % b == 0)


@dataclass(frozen=True)
class View:
    """How one weight is read as a matrix of filters; `rows` and `fold` are exact inverses.

    A linear weight `(o, i)` is a convolution with a 1×1 kernel. Blocks divide the output channels
    *per group*, so that none crosses a group and grouped convolutions need no group axis.

    Raises:
        AtomError: the block does not divide the channels per group.
    """

    kind: Kind
    shape: tuple[int, ...]
    """The weight's own shape, `(g·o, i)` or `(g·o, i, *kernel)`."""
    groups: int = 1
    block: tuple[int, int] = (1, 1)
    """Block sides over output and input channels; (1, 1) in the spatial view."""

    def __post_init__(self) -> None:
        o, i = self.shape[0] // self.groups, self.shape[1]
        if o % self.block[0] or i % self.block[1]:
            raise AtomError(
                f"{self.block[0]}×{self.block[1]} blocks do not divide {o}×{i} channels per group"
            )

    @property
    def taps(self) -> int:
        """Kernel positions, h·w."""
        return math.prod(self.shape[2:])

    @property
    def width(self) -> int:
        """p, the columns of the view."""
        area = self.block[0] * self.block[1]
        return {"spatial": self.taps, "channel": area, "joint": area * self.taps}[self.kind]

    @property
    def height(self) -> int:
        """n, the rows of the view."""
        return math.prod(self.shape) // self.width

    @property
    def channels(self) -> int:
        """g·i, the absolute input channels."""
        return self.groups * self.shape[1]

    def cut(self, channels: int) -> View:
        """The view of so many output channels in a row: whole blocks, and of several groups all."""
        groups = self.groups if channels == self.shape[0] else 1
        return View(self.kind, (channels, *self.shape[1:]), groups, self.block)

    def rows(self, weight: Tensor) -> Tensor:
        """`(g·o, i, …)` → `(n, p)`; the same memory in the spatial view."""
        w = weight.reshape(weight.shape[0], self.shape[1], -1)
        bo, bi = self.block
        if self.kind == "spatial":
            return w.reshape(-1, self.taps)
        if self.kind == "channel":
            return rearrange(w, "(O a) (I b) k -> (O I k) (a b)", a=bo, b=bi)
        return rearrange(w, "(O a) (I b) k -> (O I) (a b k)", a=bo, b=bi)

    def fold(self, rows: Tensor) -> Tensor:
        """`(n, p)` → `(g·o, i, …)`."""
        bo, bi = self.block
        I, k = self.shape[1] // bi, self.taps
        if self.kind == "channel":
            rows = rearrange(rows, "(O I k) (a b) -> (O a) (I b) k", I=I, k=k, a=bo, b=bi)
        elif self.kind == "joint":
            rows = rearrange(rows, "(O I) (a b k) -> (O a) (I b) k", I=I, k=k, a=bo, b=bi)
        return rows.reshape(self.shape)


def walk_channels(weight: Tensor, views: Iterable[View], most: int) -> Iterator[slice]:
    """Yield output channels in parts of at most so many weights, or whole blocks of every view;
    blocks cross no group, so that none cares where groups begin."""
    side = math.lcm(*(view.block[0] for view in views))
    step = max(1, most // max(1, weight.shape[1:].numel()) // side) * side
    for start in range(0, len(weight), step):
        yield slice(start, min(start + step, len(weight)))


def walk_rows(weight: Tensor, view: View) -> Iterator[Tensor]:
    """Yield the view's rows in float64, a few output channels at a time: nothing weight-sized."""
    for span in walk_channels(weight, [view], CHUNK):
        yield view.rows(weight.detach()[span].to(torch.float64))


def measure_gram(weight: Tensor, view: View) -> Tensor:
    """`XᵀX (p, p)` in float64 on the CPU, accumulated in one pass over the weight."""
    gram = torch.zeros(view.width, view.width, dtype=torch.float64, device=weight.device)
    for rows in walk_rows(weight, view):
        gram += rows.T @ rows
    return gram.cpu()


def fit_encoder(gram: Tensor, num_atoms: int | None) -> Tensor:
    """The encoder `E (p, m)`, float64, with m = `min(num_atoms, rank)`; None takes the rank.

    Deterministic: eigenvalues in falling order, each eigenvector's largest entry made positive.

    Raises:
        AtomError: the weight is zero or not finite.
    """
    if not torch.isfinite(gram).all():
        raise AtomError(
            "the weight holds NaN or infinite numbers; filter atoms need a finite weight"
        )
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    if values[0] <= 0:
        raise AtomError("the weight is zero everywhere, so it has no filter subspace to tune")
    rank = int((values > EIGENVALUE_FLOOR * values[0]).sum())
    m = rank if num_atoms is None else min(num_atoms, rank)
    values, vectors = values[:m], vectors[:, :m]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    scale = gram.trace().sqrt() / (m * len(gram)) ** 0.5
    return vectors * largest.sign() * values.rsqrt() * scale


def relative_error(gram: Tensor, encoder: Tensor) -> float:
    """`‖X − A D‖_F / ‖X‖_F` for the best `D` under `A = X E`; 0 where atoms span all filters."""
    coded = encoder.T.to(gram) @ gram
    explained = (torch.linalg.solve(coded @ encoder.to(gram), coded) * coded).sum()
    return float((1 - explained / gram.trace()).clamp(min=0).sqrt())
