"""Work on many weights at once, each by one thread.

No thread waits for another, and no bit depends on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["work_side_by_side"]

ENOUGH = 1 << 22
"""Numbers from which on several threads are worth starting."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def work_side_by_side(
    work: Callable[[Job], Result], jobs: Sequence[Job], weights: Iterable[Tensor]
) -> list[Result]:
    """`work` on every job, the results in their order.

    Args:
        weights: what the jobs read; only plain numbers on the CPU are shared out.
    """
    threads, mode = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def run(job: Job) -> Result:
        with torch.inference_mode(mode):  # a thread of its own knows nothing of the caller's
            return work(job)

    held = list(weights)
    plain = all(w.device.type == "cpu" and w.is_floating_point() for w in held)
    try:
        if threads > 1 and plain and sum(w.numel() for w in held) >= ENOUGH:
            with ThreadPoolExecutor(threads, "sdatoms", torch.set_num_threads, (1,)) as pool:
                return list(pool.map(run, jobs))
        torch.set_num_threads(1)
        return [run(job) for job in jobs]
    finally:
        torch.set_num_threads(threads)
