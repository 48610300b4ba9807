"""Read the weights that bitsandbytes stores in fewer bits.

Imported only where a layer of bitsandbytes is met; `import sdatoms` does without the package.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from bitsandbytes.functional import (
    dequantize_4bit,
    dequantize_blockwise,
    int8_vectorwise_dequant,
)
from bitsandbytes.nn.modules import (
    Linear4bit,
    Linear8bitLt,
)
from torch import Tensor, nn

__all__ = [
    "dequantize",
    "read_bits",
]


@torch.no_grad()
def dequantize(module: nn.Module) -> Tensor:
    """The weight `(o, i)` as floating-point numbers, a fresh tensor in the dtype it came from."""
    if isinstance(module, Linear4bit):
        data, state = read_4bit(module)
        return dequantize_4bit(data.reshape(-1, 1), state)
    return int8_vectorwise_dequant(*read_8bit(module))


@torch.no_grad()
def read_bits(module: nn.Module) -> Tensor:
    """The stored numbers as bytes, equal in all the layouts bitsandbytes keeps them in.

    Scales count in bfloat16, which is all that is left of them in the layout for some CPUs.
    """
    if isinstance(module, Linear4bit):
        codes, state = read_4bit(module)
        scales = state.absmax
        if state.nested:
            scales = dequantize_blockwise(scales, state.state2) + state.offset
    else:
        codes, scales = read_8bit(module)
    parts = [codes.contiguous(), scales.to(torch.bfloat16)]
    return torch.cat([part.flatten().view(torch.uint8) for part in parts])


def read_8bit(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Codes `(o, i)` and scales `(o,)` of an 8-bit layer; its first call moves the scales."""
    assert isinstance(module, Linear8bitLt)
    scales = getattr(module.weight, "SCB", None)
    scales = module.state.SCB if scales is None else scales
    assert scales is not None
    return module.weight.data, scales


def read_4bit(module: nn.Module) -> tuple[Tensor, Any]:
    """Codes and quantization state of a 4-bit layer, in their common order."""
    state = getattr(module.weight, "quant_state", None) or module.quant_state
    data = module.weight.data
    assert isinstance(data, Tensor)
    packed = getattr(state, "packing_format_for_cpu", False)
    return unpack(data, state) if packed else (data, state)


def unpack(data: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Codes in their common order from the one some CPUs compute in.

    bitsandbytes' own way back re-quantizes the scales of doubly quantized weights and leaves
    others transposed; here they stay what they are.
    """
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    state = copy.copy(state)
    scales = state.absmax.T.reshape(-1).float().contiguous()
    state.original_nested = False
    data, state = _convert_weight_packed_for_cpu_inverse(data, state)
    state.absmax = scales
    return data, state
