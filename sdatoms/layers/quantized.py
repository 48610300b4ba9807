"""bitsandbytes layers as frozen bases: `y = x (dequantize(W) + ΔW)ᵀ + bias` in one product.

Nothing weight-sized is kept between calls: the backward pass dequantizes again. An 8-bit layer
multiplies with its weight as stored and the input as it comes; where bitsandbytes multiplies whole
numbers it rounds the input to 8 bits too, and a fresh injection differs from it by that rounding.

Imported only where a layer of bitsandbytes is met; `import sdatoms` does without the package.
"""

from __future__ import annotations

from typing import Any

from bitsandbytes.nn.modules import (
    Int8Params,
    Linear4bit,
    Linear8bitLt,
    LinearFP4,
    LinearNF4,
    Params4bit,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdatoms.layers.atom_layers import (
    AtomLayer,
    OneWeightLayer,
    add_deltas,
    replace_modules,
    sum_deltas,
)
from sdatoms.layers.bits import dequantize

__all__ = [
    "KINDS",
    "AtomLinear4bit",
    "AtomLinear8bitLt",
    "AtomLinearFP4",
    "AtomLinearNF4",
    "quantize_linears",
]


class QuantizedAtomLayer(OneWeightLayer):
    """What the atom layers over bitsandbytes share."""

    bias: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deltas = nn.ModuleDict()

    def delta_weight(self) -> Tensor | None:
        return sum_deltas(dequantize(self), self.deltas)

    def tuned_weight(self) -> Tensor:
        """`dequantize(W) + ΔW` in float32."""
        return add_deltas(dequantize(self).float(), self.deltas)

    def forward(self, x: Tensor) -> Tensor:
        if not self.deltas:
            return super().forward(x)
        return checkpoint(self.multiply, x, use_reentrant=False, preserve_rng_state=False)

    def multiply(self, x: Tensor) -> Tensor:
        dtype = getattr(self, "compute_dtype", None) or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        if self.mixture():
            weight = dequantize(self).to(dtype)
            y = self.run_mixture(x.to(dtype), lambda z: nn.functional.linear(z, weight, bias), 0)
            if y is not None:
                return y.to(x.dtype)
        weight = self.tuned_weight().to(dtype)
        return nn.functional.linear(x.to(dtype), weight, bias).to(x.dtype)


class AtomLinear4bit(QuantizedAtomLayer, Linear4bit):
    """bitsandbytes' `Linear4bit` (nf4 or fp4) with atoms."""


class AtomLinearNF4(QuantizedAtomLayer, LinearNF4):
    """bitsandbytes' `LinearNF4` with atoms."""


class AtomLinearFP4(QuantizedAtomLayer, LinearFP4):
    """bitsandbytes' `LinearFP4` with atoms."""


class AtomLinear8bitLt(QuantizedAtomLayer, Linear8bitLt):
    """bitsandbytes' `Linear8bitLt` with atoms."""


def quantize_linears(model: nn.Module, bits: str) -> None:
    """Put bitsandbytes' layers in the place of all plain linear ones, with their weights.

    They quantize when they are next moved to a device, the CPU included. On any device: diffusers'
    own way to load a model so wants a GPU.

    Args:
        bits: "8bit", or "4bit" for nf4.
    """
    places: dict[nn.Module, nn.Module] = {}
    nf4: dict[str, Any] = {"requires_grad": False, "quant_type": "nf4"}
    int8: dict[str, Any] = {"requires_grad": False, "has_fp16_weights": False}
    for linear in model.modules():
        if type(linear) is not nn.Linear:
            continue
        shape, bias = (linear.in_features, linear.out_features), linear.bias is not None
        if bits == "4bit":
            small: Any = Linear4bit(*shape, bias=bias, quant_type="nf4", device="meta")
            small.weight = Params4bit(linear.weight.data, **nf4 | {"module": small})
        else:
            small = Linear8bitLt(*shape, bias=bias, has_fp16_weights=False, device="meta")
            small.weight = Int8Params(linear.weight.data, **int8)
        small.bias = linear.bias
        places[linear] = small.train(linear.training)
    replace_modules(model, places)


KINDS: dict[type[nn.Module], type[AtomLayer]] = {
    Linear4bit: AtomLinear4bit,
    LinearNF4: AtomLinearNF4,
    LinearFP4: AtomLinearFP4,
    Linear8bitLt: AtomLinear8bitLt,
}
"""bitsandbytes' layer → the one with atoms."""
