"""95 % intervals of paired differences over subjects × prompts × seeds.

A pigeonhole bootstrap (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007): each
of the three is drawn anew with replacement, independently, so that a method that wins on one
subject alone, or by one seed alone, does not pass for one that wins everywhere.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Interval", "measure_interval"]

DRAWS = 4000
CHUNK = 500


class Interval(NamedTuple):
    """A mean and where it lies in 95 % of the draws; NaN where there is nothing to take it of."""

    mean: float
    low: float
    high: float


def measure_interval(values: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The mean of `values (subjects, prompts, seeds)` with its interval; NaN marks what is absent.

    With one subject, prompt or seed, what it would vary by is not in the interval. Of few, a draw
    with replacement varies by too little, n − 1 of n parts of the variance: draws are spread about
    the mean by the least of them, √(n / (n − 1)).
    """
    known = ~np.isnan(values)
    if not known.any():
        return Interval(*[float("nan")] * 3)
    filled, found = np.where(known, values, 0.0), []
    generator = np.random.default_rng(seed)
    for start in range(0, draws, CHUNK):
        count = min(CHUNK, draws - start)
        a, b, c = (generator.multinomial(n, np.full(n, 1 / n), count) for n in values.shape)
        total, weight = (
            np.einsum("rs,rsk,rk->r", a, np.einsum("rp,spk->rsk", b, part), c, optimize=True)
            for part in (filled, known.astype(float))
        )
        found.append((total / np.where(weight, weight, 1))[weight > 0])
    mean = float(np.mean(values[known]))
    few = min((n for n in values.shape if n > 1), default=0)
    spread = math.sqrt(few / (few - 1)) if few else 1.0
    low, high = mean + spread * (np.quantile(np.concatenate(found), (0.025, 0.975)) - mean)
    return Interval(mean, float(low), float(high))
