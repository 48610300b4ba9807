r"""Sparse coding of filters: learn a dictionary of unit-norm atoms, and code rows against it.

    min over A of ½‖X − A D‖² + λ‖A‖₁,  X (n, p), A (n, m), D (m, p) with unit-norm rows, any m

λ is `sparsity` times the root mean square of the rows' norms, so that it means the same in every
layer. Codes come from FISTA, a convex problem with one answer and no random numbers; only learning
draws a seeded sample of rows. Nothing larger than the codes is kept, and rows are coded a
cache-full at a time.

Reference: Chen, Miao, Qiu, https://arxiv.org/abs/2403.00269, equation 2; Beck and Teboulle, "A Fast
Iterative Shrinkage-Thresholding Algorithm", SIAM J. Imaging Sciences 2009, section 4; dictionary
update by the method of optimal directions, Engan, Aase, Husøy, ICASSP 1999.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdatoms.errors import AtomError

__all__ = ["encode_rows", "learn_atoms", "measure_penalty"]

CHUNK_ROWS = 8192
SAMPLE_ROWS = 16_384


def measure_penalty(rows: Tensor, sparsity: float) -> float:
    """λ for these rows: `sparsity` × the root mean square of their norms."""
    norm = float(torch.linalg.vector_norm(rows, dtype=torch.float64))
    return sparsity * norm / max(1, len(rows)) ** 0.5


def encode_rows(rows: Tensor, atoms: Tensor, penalty: float, *, iterations: int = 200) -> Tensor:
    """FISTA codes `A (n, m)` in float32 of `rows (n, p)` against unit-norm `atoms (m, p)`.

    Deterministic: the same rows, atoms and penalty give the same codes, however many rows come at
    once. A row stops changing the result once its chunk has converged to 1e-7 of the penalty.
    """
    atoms = atoms.to(device=rows.device, dtype=torch.float32)
    gram = atoms @ atoms.T
    step = 1 / float(torch.linalg.eigvalsh(gram.double())[-1])
    momenta = [1.0]
    for _ in range(iterations):
        momenta.append((1 + (1 + 4 * momenta[-1] ** 2) ** 0.5) / 2)
    shrink = torch.eye(len(atoms), device=rows.device) - step * gram
    codes = torch.empty(len(rows), len(atoms), device=rows.device)
    for start in range(0, len(rows), CHUNK_ROWS):
        target = step * (rows[start : start + CHUNK_ROWS].float() @ atoms.T)
        current = torch.zeros_like(target)
        ahead = current
        for k in range(iterations):
            proposed = torch.nn.functional.softshrink(
                torch.addmm(target, ahead, shrink), step * penalty
            )
            change = proposed - current
            if k % 10 == 9 and float(change.abs().max()) <= 1e-7 * penalty:
                current = proposed
                break
            ahead = torch.add(proposed, change, alpha=(momenta[k] - 1) / momenta[k + 1])
            current = proposed
        codes[start : start + CHUNK_ROWS] = current
    return codes


def learn_atoms(
    rows: Tensor, num_atoms: int, sparsity: float, *, seed: int = 0, rounds: int = 30
) -> Tensor:
    """A dictionary `D (m, p)` of unit-norm atoms for `rows (n, p)`, float32, from a seeded sample
    of rows.

    Alternates codes and the least-squares dictionary; an atom that no row uses is replaced by the
    row that the others serve worst. Each atom's largest entry is positive and atoms stand in
    falling order of use.

    Raises:
        AtomError: the rows are zero or not finite.
    """
    if not torch.isfinite(rows).all():
        raise AtomError(
            "the weight holds NaN or infinite numbers; filter atoms need a finite weight"
        )
    generator = torch.Generator().manual_seed(seed)
    norms = torch.linalg.vector_norm(rows.float(), dim=1)
    alive = (norms > 1e-6 * norms.max()).nonzero().flatten()
    if len(alive) == 0:
        raise AtomError("the weight is zero everywhere, so it has no filter subspace to tune")
    order = torch.randperm(len(alive), generator=generator)[:SAMPLE_ROWS].to(rows.device)
    sample = rows[alive[order]].float()
    if len(sample) < num_atoms:
        raise AtomError(
            f"{num_atoms} atoms need at least as many filters; the weight has {len(sample)}"
        )
    penalty = measure_penalty(sample, sparsity)
    atoms = torch.nn.functional.normalize(sample[:num_atoms], dim=1)
    eye = torch.eye(num_atoms, device=rows.device)
    for _ in range(rounds):
        codes = encode_rows(sample, atoms, penalty, iterations=40)
        moments = codes.T @ codes
        ridge = 1e-6 * float(moments.trace()) / num_atoms + 1e-30
        solved = torch.linalg.solve(moments + ridge * eye, codes.T @ sample)
        dead = (moments.diagonal() <= 1e-8 * moments.diagonal().max()).nonzero().flatten()
        if len(dead):
            misfit = torch.linalg.vector_norm(sample - codes @ atoms, dim=1)
            solved[dead] = sample[misfit.topk(len(dead)).indices]
        atoms = torch.nn.functional.normalize(solved, dim=1)
    use = encode_rows(sample, atoms, penalty).square().sum(0)
    atoms = atoms[use.argsort(descending=True, stable=True)]
    largest = atoms.gather(1, atoms.abs().argmax(1, keepdim=True))
    return atoms * largest.sign()
