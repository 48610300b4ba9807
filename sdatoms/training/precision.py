"""What the frozen base is held in while atoms train, and what its layers compute in.

Atoms are float32 always. A weight of 16 bits meets their change in float32 and the sum is rounded
once; as a term of its own the change would cost a second convolution and come out no truer, since
the activations round by as much (`scripts/bench_base_dtype.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

from sdatoms.diffusion.family import describe_base
from sdatoms.errors import AtomError

__all__ = [
    "BASE_DTYPES",
    "BaseDtype",
    "Precision",
    "choose_precision",
    "hold_float32",
    "read_own_dtype",
    "widen_norms",
]

BaseDtype = Literal["auto", "float32", "float16", "bfloat16"]
BASE_DTYPES: tuple[BaseDtype, ...] = get_args(BaseDtype)
MIXED = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Precision(NamedTuple):
    """Of one run."""

    base: torch.dtype
    """What frozen weights are held in."""
    mixed: Literal["no", "fp16", "bf16"]
    """What autocast computes in; "no" without it."""

    @property
    def base_name(self) -> str:
        return str(self.base).removeprefix("torch.")

    def describe(self) -> str:
        """One line for the log; atoms are float32 whatever it says."""
        computes = "" if self.mixed == "no" else f", computing in {self.mixed}"
        return f"the base is held in {self.base_name}{computes}"


def choose_precision(
    wanted: str, mixed: str, device: torch.device, own: torch.dtype | None
) -> Precision:
    """The dtype of the base, and the precision its layers need to compute with it.

    A 16-bit base computes in its own dtype where no precision is asked for. "auto" takes 16 bits on
    a GPU alone: those of the precision, else the file's own, else bfloat16 where the GPU has it.
    Even on a CPU with bfloat16 arithmetic they save too little time for other pictures than those
    the same base paints there in float32.

    Args:
        wanted: one of `BASE_DTYPES`.
        mixed: "no", "fp16" or "bf16".
        own: the dtype of the base's own file, where it is known.

    Raises:
        AtomError: float16 is asked for on a CPU.
    """
    names = {dtype: name for name, dtype in MIXED.items()}
    if wanted != "auto":
        base = getattr(torch, wanted)
    elif device.type != "cuda":
        base = torch.float32
    elif mixed in MIXED:
        base = MIXED[mixed]
    elif own == torch.float16 or not torch.cuda.is_bf16_supported(including_emulation=False):
        base = torch.float16
    else:
        base = torch.bfloat16
    chosen = names.get(base, "no") if mixed == "no" else mixed
    if device.type == "cpu" and base == torch.float16:
        raise AtomError(
            "the base is to be held in float16, in which nothing trains on a CPU; --base_dtype "
            "bfloat16 takes as little memory"
        )
    if device.type == "cpu" and chosen == "fp16":  # which accelerate leaves off there, unsaid
        chosen = "no"
    return Precision(base, chosen)  # pyright: ignore[reportArgumentType]


def read_own_dtype(base: str | None, variant: str | None) -> torch.dtype | None:
    """The dtype of a base's own weights; None where they do not lie here."""
    try:
        return describe_base(base, variant).dtype
    except AtomError:
        return None


def widen_norms(unet: nn.Module) -> None:
    """Hold a UNet's normalizations in float32: on a CPU quantized layers hand float32 on, which
    normalizations in 16 bits do not take there."""
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.float()


@contextmanager
def hold_float32(module: nn.Module) -> Iterator[None]:
    """A module in float32 for the time of a `with` block, its own bits again afterwards: 16-bit
    autoencoders lose colours, and SDXL's overflows in float16."""
    dtypes = {name: t.dtype for name, t in module.state_dict(keep_vars=True).items()}
    if all(dtype == torch.float32 for dtype in dtypes.values() if dtype.is_floating_point):
        yield
        return
    module.float()
    try:
        yield
    finally:
        for name, tensor in module.state_dict(keep_vars=True).items():
            tensor.data = tensor.data.to(dtypes[name])
