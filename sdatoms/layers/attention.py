"""`AtomMultiheadAttention`, and the fused transformer paths that would pass atoms by.

nn.MultiheadAttention reads the weights of its projections without calling a layer, so it is
replaced as a whole: `q_proj`, `k_proj` and `v_proj` (thirds of `in_proj_weight`, or parameters of
their own) and `out_proj` each carry atoms of their own. The computation is torch's own, over tuned
weights: every mask, flag and fast path is the base's.

PEFT computes a LoRA here by merging it for the length of every call, and for good where it is asked
to: it takes `in_proj_weight` away and puts `W + L` in its place. What was taken away is kept, and
linear atoms read that: `W + L + Δ(W)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.errors import AtomError
from sdatoms.layers.atom_layers import AtomLayer, add_deltas
from sdatoms.layers.merged import list_merged
from sdatoms.layers.weights import list_above

__all__ = [
    "AtomMultiheadAttention",
    "is_passed_by",
    "switch_off_fused",
]

BEFORE = "_sdatoms_before_merge"
"""Name of the weights that PEFT last took away, by parameter."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class AtomMultiheadAttention(AtomLayer, nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose four projections are `W + ΔW`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deltas = nn.ModuleDict()

    def carry(self, name: str, deltas: Mapping[str, nn.Module]) -> nn.ModuleDict:
        table = self.deltas[name] = nn.ModuleDict(deltas)
        return table

    def __delattr__(self, name: str) -> None:
        if name == "in_proj_weight" and not list_merged(self):
            weights = {name: self.in_proj_weight, "out_proj.weight": self.out_proj.weight}
            self.__dict__[BEFORE] = weights
        super().__delattr__(name)

    def read_before(self, name: str, weight: Tensor) -> Tensor:
        """A parameter as it was before PEFT merged something into it; `weight`, which it is now,
        where nothing is merged.

        Raises:
            AtomError: something is merged that did not show what it replaced.
        """
        merged = list_merged(self)
        if not merged:
            return weight
        if name not in self.__dict__.get(BEFORE, {}):
            raise AtomError(
                f"the adapter {merged[0][1]!r} is merged into attention weights that linear atoms "
                "read and cannot be told apart from them; call unmerge_adapter()"
            )
        return self.__dict__[BEFORE][name]

    def tune(self, name: str, weight: Tensor, before: Tensor) -> Tensor:
        """`W + ΔW` of one projection, with a change of what it was before something was merged."""
        table = self.deltas[name] if name in self.deltas else None
        return add_deltas(weight, table, before) if isinstance(table, nn.ModuleDict) else weight

    def tuned_weights(self) -> dict[str, Tensor]:
        """The projections that carry atoms as `W + ΔW`, under the base's own names.

        `in_proj_weight (3e, e)` or `q_proj_weight (e, e)`, `k_proj_weight (e, kdim)`,
        `v_proj_weight (e, vdim)`, and `out_proj.weight (e, e)`.
        """
        found = {}
        if self.in_proj_weight is not None:
            if any(name in self.deltas for name in PROJECTIONS):
                weight = self.in_proj_weight
                before = self.read_before("in_proj_weight", weight)
                parts = weight.chunk(3)
                befores = parts if before is weight else before.chunk(3)
                thirds = zip(PROJECTIONS, parts, befores, strict=True)
                found["in_proj_weight"] = torch.cat([self.tune(*part) for part in thirds])
        else:
            for name in PROJECTIONS:
                if name in self.deltas:
                    weight = getattr(self, f"{name}_weight")
                    found[f"{name}_weight"] = self.tune(name, weight, weight)
        if "out_proj" in self.deltas:
            weight = self.out_proj.weight
            before = self.read_before("out_proj.weight", weight)
            found["out_proj.weight"] = self.tune("out_proj", weight, before)
        return found

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        tuned = self.tuned_weights()
        if not tuned:
            return super().forward(*args, **kwargs)
        return nn.MultiheadAttention.forward(TunedAttention(self, tuned), *args, **kwargs)  # pyright: ignore[reportArgumentType]


class TunedAttention:
    """What `nn.MultiheadAttention.forward` reads of an attention, with tuned weights in it.

    The module itself is not written to, so that threads may share it.
    """

    def __init__(self, base: nn.MultiheadAttention, tuned: Mapping[str, Tensor]) -> None:
        self.base = base
        self.in_proj_weight = tuned.get("in_proj_weight", base.in_proj_weight)
        self.q_proj_weight = tuned.get("q_proj_weight", base.q_proj_weight)
        self.k_proj_weight = tuned.get("k_proj_weight", base.k_proj_weight)
        self.v_proj_weight = tuned.get("v_proj_weight", base.v_proj_weight)
        self.out_proj = TunedLinear(base.out_proj, tuned.get("out_proj.weight"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)


class TunedLinear:
    """A linear layer's weight and bias."""

    def __init__(self, base: nn.Linear, weight: Tensor | None) -> None:
        self.weight = base.weight if weight is None else weight
        self.bias = base.bias


def switch_off_fused(model: nn.Module) -> Callable[[], None]:
    """Keep torch's encoder from reading the weights of layers it does not call.

    In eval mode without gradients `nn.TransformerEncoderLayer` takes a fused path unless there are
    hooks (eject removes them), and `nn.TransformerEncoder` hands padded batches to it as nested
    tensors.

    Returns:
        A function that brings the nested tensors back.
    """
    kept: list[tuple[nn.TransformerEncoder, bool]] = []
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder):
            continue
        if not any(isinstance(child, AtomLayer) for child in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoder):
            kept.append((module, module.use_nested_tensor))
            module.use_nested_tensor = False
        else:
            module.register_forward_hook(do_nothing)

    def switch_on() -> None:
        for encoder, nested in kept:
            encoder.use_nested_tensor = nested

    return switch_on


def is_passed_by(model: nn.Module, path: str) -> bool:
    """Whether torch's fused path may read the weight at `path` without calling its layer."""
    return any(isinstance(m, nn.TransformerEncoderLayer) for m in list_above(model, path))


def do_nothing(*_: Any) -> None:
    """A forward hook; its presence is all that counts."""
