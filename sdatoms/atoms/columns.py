r"""The other way to run a layer with atoms: their maps on the input's columns.

`y[o] = Σ_c W[o,c,:] (I + T_c) x[c,:]`, where `x[c,:]` are the p entries of one input channel under
the kernel. Read from the left it is one convolution with `W + ΔW`, whose delta, and in the backward
pass whose gradient, are as large as the weight. Read from the right, small maps meet small columns,
and what is left is one product with the frozen weight, whose gradient nobody asks for.

Block atoms mix b output channels as well. With `W` read as `(o/b, b·i·p)`, the b outputs of a block
are b products of the same rows with b sets of columns, each b times as long:
`y[O,o'] = Σ W[O,(o,c,r)] Z[(o,c,r),o']`, `Z[·,o'] = (I + T_block)[·,(o',c',q)] x[c',q]`, and a
spatial map adds to the part of Z where o = o'.

Columns are smaller than the weight where a batch has fewer output positions than output channels
(over b²): in the deep levels of a UNet, where most of its weights are. `scripts/bench_columns.py`
times both ways on a CPU, `scripts/bench_gpu.sh` on a GPU; `WORTH` holds what follows for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from sdatoms.atoms.deltas import Delta

__all__ = [
    "WORTH",
    "convolve_columns",
    "count_positions",
    "keep_bits",
    "multiply_columns",
    "pick_columns",
]

WORTH = {"cpu": 1.0, "cuda": 1.0}
"""Device → columns are taken up to this many output positions (times b²) per output channel. Of
these the CPU's is measured; the GPU's is the same until `scripts/bench_gpu.sh` says another."""


def pick_columns(layer: Any, positions: int) -> dict[str, Delta] | None:
    """View → delta of a layer whose atoms should meet the input's columns; None: form the weight.

    Only while training: without gradients a layer with atoms at zero takes the base's own
    convolution or product, and gives the base's own bits; `keep_bits` sees to it with them.

    Args:
        positions: of the whole batch, in the output.
    """
    if not torch.is_grad_enabled() or getattr(layer, "groups", 1) != 1:
        return None
    deltas = layer.views()
    if not deltas or any(d.sparse or d.form for d in deltas.values()):
        return None
    side = max(delta.view.block[0] for delta in deltas.values())
    most = WORTH.get(layer.weight.device.type, 1.0) * len(layer.weight)
    if positions * side**2 > most or not layer.weight.is_contiguous():
        return None
    atoms = [p for delta in deltas.values() for p in delta.parameters()]
    return deltas if any(p.requires_grad for p in atoms) else None


def keep_bits(y: Tensor, deltas: dict[str, Delta], run_base: Callable[[], Tensor]) -> Tensor:
    """`y`, or before the atoms' first step the base's own bits with the gradients of `y`.

    Whether atoms are still at zero is asked, which makes a GPU wait, only until something has
    written to them; a compiled model is not asked.
    """
    if torch.compiler.is_compiling():
        return y
    atoms = [p for delta in deltas.values() for p in delta.parameters()]
    if any(p._version for p in atoms) or any(d.delta_atoms().any() for d in deltas.values()):
        return y
    with torch.no_grad():
        base = run_base()
    return base + (y - y.detach())


def convolve_columns(layer: nn.Conv2d, x: Tensor, deltas: dict[str, Delta]) -> Tensor:
    """`conv(x, W + ΔW)` for `x (B, i, height, width)` and an ungrouped convolution, by one product
    with W."""
    height, width = measure_output(layer, x)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, find_pads(layer), mode=mode)
    columns = F.unfold(padded, layer.kernel_size, layer.dilation, stride=layer.stride)
    columns = rearrange(columns, "b (i p) n -> i (b n) p", i=layer.in_channels)
    y = multiply(columns, layer.weight, layer.bias, deltas)
    y = rearrange(y, "(b h w) o -> b o h w", h=height, w=width)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def multiply_columns(layer: nn.Linear, x: Tensor, deltas: dict[str, Delta]) -> Tensor:
    """`x (W + ΔW)ᵀ + bias` for `x (…, i)`, by one product with W."""
    columns = x.reshape(-1, x.shape[-1]).T[..., None]
    return multiply(columns, layer.weight, layer.bias, deltas).unflatten(0, x.shape[:-1])


def multiply(
    columns: Tensor, weight: Tensor, bias: Tensor | None, deltas: dict[str, Delta]
) -> Tensor:
    """`columns (i, n, p)` through the maps and W: `(n, o)`. The maps act in float32 or what is
    wider, and their result is cast once to the dtype of the columns."""
    block = deltas.get("block")
    with torch.autocast(columns.device.type, enabled=False):
        wide = columns.to(torch.promote_types(columns.dtype, torch.float32))
        moved = wide
        if "spatial" in deltas:
            change = deltas["spatial"].transform().to(wide.dtype)
            moved = wide @ (change + make_identity(change)).mT
        if block is not None:
            moved = mix_blocks(wide, moved, block)
        moved = moved.to(columns.dtype)
    if block is None:
        return F.linear(rearrange(moved, "i n p -> n (i p)"), weight.flatten(1), bias)
    side = block.view.block[0]
    rows = rearrange(moved, "I n s o c p -> (n s) (o I c p)")
    y = F.linear(rows, weight.reshape(len(weight) // side, -1))
    y = rearrange(y, "(n s) O -> n (O s)", s=side)
    return y if bias is None else y + bias.to(y.dtype)


def mix_blocks(columns: Tensor, kept: Tensor, block: Delta) -> Tensor:
    """`columns (i, n, p)` through a block map, plus `kept (i, n, p)` where a block's output is its
    own: Z as `(i/b, n, output in the block, W's row in the block, b, p)`."""
    bo, bi = block.view.block
    change = block.transform().to(columns.dtype)
    if block.view.kind == "joint":
        change = rearrange(change, "(o c r) (s d q) -> (d q) (s o c r)", o=bo, c=bi, s=bo, d=bi)
        mixed = rearrange(columns, "(I d) n q -> I n (d q)", d=bi) @ change
        mixed = rearrange(mixed, "I n (s o c r) -> I n s o c r", s=bo, o=bo, c=bi)
    else:
        change = rearrange(change, "(o c) (s d) -> (s o c) d", o=bo, c=bi, s=bo, d=bi)
        mixed = change @ rearrange(columns, "(I d) n p -> I d (n p)", d=bi)
        mixed = rearrange(mixed, "I (s o c) (n p) -> I n s o c p", s=bo, o=bo, p=columns.shape[-1])
    kept = rearrange(kept, "(I c) n p -> I n 1 1 c p", c=bi)
    return mixed + make_identity(mixed[0, 0, :, :, 0, 0])[:, :, None, None] * kept


def make_identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def count_positions(layer: nn.Conv2d, x: Tensor) -> int:
    """Output positions of a batch."""
    height, width = measure_output(layer, x)
    return len(x) * height * width


def measure_output(layer: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """Height and width of the convolution's output."""
    left, right, top, bottom = find_pads(layer)
    padded = (x.shape[2] + top + bottom, x.shape[3] + left + right)
    height, width = (
        (side - dilation * (taps - 1) - 1) // stride + 1
        for side, taps, dilation, stride in zip(
            padded, layer.kernel_size, layer.dilation, layer.stride, strict=True
        )
    )
    return height, width


def find_pads(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top and bottom; `same` may pad one side more."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return left, right, top, bottom
