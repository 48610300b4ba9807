"""Three ways to recognize tensors: to tolerance, by their bits, and by names and bits.

- `fingerprint` tells whether a weight is the one a file was trained on: casts to 16 bits pass.
- `checksum` tells whether a weight was written to since: it changes with any bit and any order.
- `hash_tensors` names the contents of a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["checksum", "fingerprint", "hash_tensors", "matches"]

PROJECTION_PERIOD = 65_521
TOLERANCE = 2e-2
"""How far norms (relative) and projections may lie apart: casts do not reach it."""
ROW = 1 << 15
"""Words of 64 bits that get multipliers of their own in a checksum; with them they fit a cache."""


def fingerprint(weight: Tensor) -> list[float]:
    """`‖W‖_F` and three seeded ±1 projections of W divided by it, 5 significant digits.

    The signs are `RandomState(0).randint` numbers, a frozen stream, with a period of 65,521.
    """
    flat = weight.detach().float().flatten()
    norm = float(flat.double().norm()) if flat.numel() < 1 << 20 else float(flat.norm())
    if norm == 0:
        return [0.0, 0.0, 0.0, 0.0]
    whole = flat.numel() // PROJECTION_PERIOD * PROJECTION_PERIOD
    folded = torch.zeros(PROJECTION_PERIOD, device=flat.device)
    if whole:
        folded += flat[:whole].reshape(-1, PROJECTION_PERIOD).sum(0)
    folded[: flat.numel() - whole] += flat[whole:]
    projections = draw_signs() @ folded.double().cpu().numpy() / norm
    return [float(f"{v:.5g}") for v in (norm, *projections)]


@cache
def draw_signs() -> np.ndarray:
    """The signs of the three projections, float64."""
    signs = np.random.RandomState(0).randint(0, 2, (3, PROJECTION_PERIOD)) * 2 - 1
    return signs.astype(np.float64)


def matches(stored: Sequence[float], found: Sequence[float]) -> bool:
    """Whether two fingerprints are of one weight, up to rounding."""
    norm = abs(stored[0] - found[0]) <= TOLERANCE * max(stored[0], found[0])
    pairs = zip(stored[1:], found[1:], strict=True)
    return norm and all(abs(a - b) <= TOLERANCE for a, b in pairs)


def checksum(tensor: Tensor) -> int:
    """A sum over the raw bits, every word times an odd number of its place, modulo 2^64.

    Odd multipliers make every change of one word visible; their places make reorderings visible.
    """
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    words = torch.nn.functional.pad(raw, (0, -len(raw) % 8)) if len(raw) % 8 else raw
    words, odd = words.view(torch.int64), draw_multipliers(raw.device)
    total = 0
    for row in words.split(ROW):
        # `dot` keeps no products; of whole numbers only the CPU's knows them.
        factors = odd[: len(row)]
        row_sum = torch.dot(row, factors) if row.device.type == "cpu" else (row * factors).sum()
        total = (3 * total + int(row_sum)) % 2**64
    return total


@cache
def draw_multipliers(device: torch.device) -> Tensor:
    """`ROW` odd numbers, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-(2**62), 2**62, (ROW,), generator=generator, device="cpu")
    return numbers.to(device) * 2 + 1


def hash_tensors(tensors: Mapping[str, Tensor], more: str = "") -> str:
    """SHA-256 of names, dtypes, shapes and bytes, and of `more`, a text that belongs to them."""
    digest = hashlib.sha256(more.encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
