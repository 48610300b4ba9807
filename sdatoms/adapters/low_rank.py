"""The nearest matrix of a given rank, as a product of two.

`U Uᵀ M` is nearest to M where U holds the first left singular vectors, which are eigenvectors of
`M Mᵀ`. Where few are wanted of a large matrix they are looked for in a Krylov subspace, grown from
random directions; the error comes within 1e-3 of the least one, also where the singular values
hardly fall, as those of atoms' deltas do.

References: Eckart, Young, "The approximation of one matrix by another of lower rank", Psychometrika
1936; Musco, Musco, "Randomized block Krylov methods for stronger and faster approximate singular
value decomposition", NeurIPS 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "factor",
]

SPARE = 8
"""Random directions beyond the rank."""
ROUNDS = 5
"""Multiplications of the directions by `M Mᵀ`."""
WORTH = 2
"""How many times smaller than the matrix the subspace has to be for the search to pay."""


def factor(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`up (m, r)` and `down (r, n)` with `up @ down` nearest to a float32 `matrix` `(m, n)`.

    Each takes half of every singular value; r is `rank`, or the shorter side where that is less. A
    matrix has the same factors at every call.
    """
    if matrix.shape[0] > matrix.shape[1]:
        up, down = factor(matrix.T, rank)
        return down.T, up.T
    r = min(rank, len(matrix))
    width = (rank + SPARE) * (ROUNDS + 1)
    if width * WORTH <= len(matrix):
        space = span_krylov(matrix, rank + SPARE)
        left = space @ find_left(space.T @ matrix, r)
    else:
        left = find_left(matrix, r)
    right = left.T @ matrix
    root = right.norm(dim=1).sqrt()
    return left * root, right / root.clamp(min=1e-30)[:, None]


def find_left(matrix: Tensor, rank: int) -> Tensor:
    """The first `rank` left singular vectors, as columns."""
    wide = matrix.double()
    return torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:].flip(1).to(matrix)


def span_krylov(matrix: Tensor, width: int) -> Tensor:
    """An orthonormal basis, as columns, that holds the first left singular vectors nearly."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix)
    blocks = [torch.linalg.qr(matrix @ start).Q]
    for _ in range(ROUNDS):
        blocks.append(torch.linalg.qr(matrix @ (matrix.T @ blocks[-1])).Q)
    return torch.linalg.qr(torch.cat(blocks, 1)).Q
