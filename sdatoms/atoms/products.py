r"""Block atoms in product form: two small matrices per weight, and no encoder.

The map of a channel block is taken as a Kronecker product, `T = (I + L) ⊗ (I + R) − I`: with `L̂`
and `R̂` the block-diagonal matrices of one b×b matrix (or one a block) over output and input
channels,

    ΔW = L̂ W + W R̂ + L̂ W R̂        at every kernel position.

Read from the weight it is a sum of three small products a block. Read from the activations nothing
weight-sized is formed and no weight gradient is needed: `f = layer((I + R̂) x)`,
`y = f + L̂ (f − bias)`. At L = R = 0 either way *is* the layer, to the bit.

References: OFT and BOFT (Qiu et al. 2023, https://arxiv.org/abs/2306.07280; one side, orthogonal),
LoKr (Yeh et al. 2023, https://arxiv.org/abs/2309.14859; an additive Kronecker product) are its
relatives; the two-sided multiplicative form over filter blocks is ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdatoms.atoms.decompose import View

__all__ = [
    "FACTORS",
    "apply_factors",
    "compare_factors",
    "factor_shapes",
    "fold_factors",
    "keep_layout",
    "mix_channels",
    "run_factors",
]

FACTORS = ("output_factor", "input_factor")
"""Names of the trained tensors L and R."""


def factor_shapes(view: View, each: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of L and R: `(b, b)`, or `(blocks, b, b)` with a matrix of its own for each block of
    the absolute output channels g·o and input channels g·i."""
    bo, bi = view.block
    if not each:
        return (bo, bo), (bi, bi)
    return (view.shape[0] // bo, bo, bo), (view.channels // bi, bi, bi)


def mix_channels(x: Tensor, factor: Tensor, dim: int) -> Tensor:
    """`M̂ x` over the channels at `dim`: `(M̂ x)_i = Σ_j M[i, j] x_j` within each block of b.

    Args:
        factor: `(b, b)`, or `(channels/b, b, b)`.
        dim: 1 for `(B, channels, …)`, −1 for channels last.
    """
    b = factor.shape[-1]
    factor = factor.to(x.dtype)
    if dim == -1:
        parts = x.unflatten(-1, (-1, b))
        if factor.dim() == 2:
            return (parts @ factor.mT).flatten(-2)
        return torch.einsum("...kj,kij->...ki", parts, factor).flatten(-2)
    shape = x.shape
    parts = x.reshape(shape[0], shape[1] // b, b, -1)
    return (factor @ parts).reshape(shape)


def apply_factors(
    part: Tensor, view: View, output_factor: Tensor, input_factor: Tensor, start: int = 0
) -> Tensor:
    """`ΔW = L̂ W + W R̂ + L̂ W R̂` in float32, for the output channels of `part`.

    Args:
        part: `(channels, i, *kernel)`, whole blocks of the weight's output channels.
        view: of the whole weight, `(g·o, i, *kernel)`.
        start: the first of them. With groups and one factor a block, `part` is the whole weight.
    """
    w = part.float().reshape(len(part), view.shape[1], -1)
    left, right = output_factor.float(), input_factor.float()
    if left.dim() == 3:
        bo = left.shape[-1]
        left = left[start // bo : (start + len(part)) // bo]
    if right.dim() == 3 and view.groups > 1:
        # The rows of a group meet the factors of its own input channels.
        grouped = w.unflatten(0, (view.groups, -1))
        factors = right.unflatten(0, (view.groups, -1))
        turned = [mix_channels(g, f.mT, 1) for g, f in zip(grouped, factors, strict=True)]
        turned = torch.cat(turned)
    else:
        turned = mix_channels(w, right.mT, 1)
    mixed = mix_channels((w + turned).flatten(1)[None], left, 1)[0].reshape(w.shape)
    return (turned + mixed).reshape(part.shape)


def run_factors(
    x: Tensor,
    output_factor: Tensor,
    input_factor: Tensor,
    bias: Tensor | None,
    run: Callable[[Tensor], Tensor],
    dim: int,
) -> Tensor:
    """The layer with `W + ΔW`, from its own forward pass `run` and the activations.

    Args:
        x: `(B, i, …)` with `dim` 1, `(…, i)` with `dim` −1.
        run: the base layer, bias included.
        dim: where channels are, in input and output alike.
    """
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            mixed = add_mixed(x, x, input_factor, dim)
        f = run(mixed)
        with torch.autocast(x.device.type, enabled=False):
            return add_mixed(f, take_off(f, bias, dim), output_factor, dim)
    f = run(add_mixed(x, x, input_factor, dim))
    return add_mixed(f, take_off(f, bias, dim), output_factor, dim)


def take_off(f: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    """`f − bias`, with the channels of f at `dim`."""
    if bias is None:
        return f
    return f - (bias.to(f.dtype).view(-1, *[1] * (f.dim() - 2)) if dim == 1 else bias.to(f.dtype))


def add_mixed(base: Tensor, x: Tensor, factor: Tensor, dim: int) -> Tensor:
    """`base + M̂ x`, as `mix_channels`, product and sum in one."""
    b = factor.shape[-1]
    factor = factor.to(x.dtype)
    if factor.dim() == 3:
        return base + mix_channels(x, factor, dim)
    if dim == -1:
        mixed = torch.addmm(base.reshape(-1, b), x.reshape(-1, b), factor.mT).view(x.shape)
        return keep_layout(mixed, base)
    size = x.shape[2:].numel()
    parts = x.reshape(-1, b, size)
    many = factor.expand(len(parts), b, b)
    mixed = torch.baddbmm(base.reshape(-1, b, size), many, parts).view(x.shape)
    return keep_layout(mixed, base)


def keep_layout(y: Tensor, x: Tensor) -> Tensor:
    """`y` laid out in memory as `x` of the same shape is: products round by layout, and layers
    give the base's own bits only where they read what the base would."""
    return y if y.stride() == x.stride() else torch.empty_like(x, dtype=y.dtype).copy_(y)


def compare_factors(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """The inner product `⟨T_1, T_2⟩` of two products' maps, blocks averaged: with white filters
    `⟨ΔW_1, ΔW_2⟩ = ‖W‖² ⟨T_1, T_2⟩ / p`. Of `T = A ⊗ B − I` that is
    `⟨A_1, A_2⟩⟨B_1, B_2⟩ − tr A_1 tr B_1 − tr A_2 tr B_2 + p`."""
    whole = lambda factor: factor.double() + torch.eye(factor.shape[-1], dtype=torch.float64)
    trace = lambda m: float(m.diagonal(dim1=-2, dim2=-1).sum(-1).mean())
    (a, b), (c, d) = ([whole(factor) for factor in pair] for pair in (first, second))
    inner = [float((m * n).sum((-2, -1)).mean()) for m, n in ((a, c), (b, d))]
    p = a.shape[-1] * b.shape[-1]
    return inner[0] * inner[1] - trace(a) * trace(b) - trace(c) * trace(d) + p


def fold_factors(output_factor: Tensor, input_factor: Tensor) -> Tensor:
    """The map of shared factors as one full matrix `T (bo·bi, bo·bi)` of the channel view, in the
    factors' dtype: `X T` are the rows of ΔW."""
    left = torch.eye(len(output_factor), dtype=output_factor.dtype) + output_factor
    right = torch.eye(len(input_factor), dtype=input_factor.dtype) + input_factor
    whole = torch.kron(left.mT.contiguous(), right.contiguous())
    return whole - torch.eye(len(whole), dtype=whole.dtype)
