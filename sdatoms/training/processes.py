"""Several processes as one: gradients are averaged by one all-reduce, decisions are shared.

Atoms are a few thousand numbers, so no model needs a wrapper, and text encoders, two forward passes
a step and changing inputs need no special care.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import Tensor
from torch import distributed as dist

__all__ = [
    "agree",
    "average",
    "is_main",
]


def average(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its mean over the processes, in place."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    flat = torch.cat([tensor.flatten().float() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def agree(flag: bool) -> bool:
    """Whether any process says so."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    said = torch.tensor([float(flag)], device=device)
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return bool(said.item())


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return PartialState().is_main_process
