"""A look at the first step's gradients: atoms that none reaches would stay what they are, in
silence."""

from __future__ import annotations

from torch import nn

from sdatoms.errors import AtomError
from sdatoms.inject import Injection

__all__ = ["check_gradients"]

WAITING = "inner_coefficients"
"""Their gradient is zero as long as the inner atoms they multiply are."""


def check_gradients(unet: Injection, held: list[nn.Parameter], compiled: str | None) -> list[str]:
    """Names of the UNet's trained tensors whose gradient is zero.

    Compiled kernels have been seen to lose gradients without a word, torch 2.13's inductor under
    autocast in bfloat16 on the CPU among them.

    Args:
        held: what the optimizer trains; others are not looked at.
        compiled: the backend of `torch.compile`, which must lose nothing that plain kernels have.

    Raises:
        AtomError: no tensor has a gradient, or one has none in a compiled UNet.
    """
    ids = {id(parameter) for parameter in held}
    looked = [
        (name, parameter)
        for name, parameter in unet.named_parameters()
        if id(parameter) in ids and not name.endswith(WAITING)
    ]
    silent = [name for name, p in looked if p.grad is None or not bool(p.grad.any())]
    if silent and (compiled or len(silent) == len(looked)):
        cure = (
            f"; --dynamo_backend {compiled} loses it: try --mixed_precision no, or "
            "--dynamo_backend no"
            if compiled
            else "; the base's output may not depend on them, or everything is masked"
        )
        raise AtomError(
            f"no gradient reaches {len(silent)} of {len(looked)} tensors of atoms in the first "
            f"step, first {silent[0]}{cure}"
        )
    return silent
