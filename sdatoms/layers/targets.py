"""Which layers of a model carry atoms, and why others cannot."""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from sdatoms.atoms.config import BLOCK_VARIANTS, AtomConfig
from sdatoms.errors import AtomError
from sdatoms.layers.adopt import find_kind
from sdatoms.layers.weights import LayerWeight, list_layers, list_weights, unwrap
from sdatoms.models.families import FAMILY_EXCLUDES, FAMILY_TARGETS

__all__ = [
    "Target",
    "choose_targets",
    "count_holders",
    "find_readers",
    "is_spatial",
    "refuse_target",
]


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """One weight that was asked for."""

    path: str
    """The weight's; the layer's own where it has one weight."""
    layer_path: str
    name: str
    """The weight's within its layer; empty where there is one."""
    module: nn.Module
    weight: LayerWeight
    named: bool
    """Whether a pattern of the caller's chose it."""


def count_holders(model: nn.Module) -> Counter[int]:
    """Parameter (by `id`) → the modules that hold it."""
    return Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )


def find_readers(model: nn.Module) -> dict[nn.Module, str]:
    """Layers whose weight the parent's `forward` reads without calling them → the parent's class.

    An atom layer there would be passed by in silence (torchvision's Swin, BEiT). Readings are
    looked for in the source of `forward`; where there is no source (frozen applications, classes
    typed into a prompt) none is found: the layer gets its atoms, and the log says so once a class.
    """
    return {
        unwrap(child): type(parent).__name__
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and has_filters(unwrap(child)) and name in list_read(type(parent))
    }


@cache
def list_read(kind: type[nn.Module]) -> frozenset[str]:
    """Attributes whose weight the source of `kind.forward` hands on, as in
    `F.linear(x, self.qkv.weight)`; its dtype, device or shape is no reading."""
    if issubclass(kind, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        return frozenset()  # replaced as a whole, and with its fused path switched off
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError, SyntaxError):
        logger.warning(
            "there is no source of %s.forward to look in; where it reads a layer's weight without "
            "calling the layer, exclude that layer, since atoms in it would change nothing",
            kind.__name__,
        )
        return frozenset()
    found = set()
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or getattr(call.func, "id", "") == "isinstance":
            continue
        for value in (*call.args, *(keyword.value for keyword in call.keywords)):
            part = value.value if isinstance(value, ast.Subscript) else value
            match part:
                case ast.Attribute(ast.Attribute(ast.Name("self"), name), "weight"):
                    found.add(name)
    return frozenset(found)


def refuse_target(target: Target, holders: Counter[int], readers: dict[nn.Module, str]) -> str:
    """Why this weight cannot carry atoms, or an empty string.

    Raises:
        AtomError: the layer has no weights yet, or stores them in 8-bit floating-point numbers.
    """
    module, held = target.module, target.weight.held
    kind = type(module).__name__
    if held is None:
        return "left out: its weight is computed from others (weight_norm, pruning?)"
    if is_lazy(held):
        raise AtomError("the model has no weights yet; run it once before injecting")
    if isinstance(module, _ConvTransposeNd):
        return f"left out: {kind} spreads its input, and filter atoms fit plain convolutions only"
    if find_kind(module) is None:
        return f"left out: {kind} is a layer of another library"
    if target.weight.offloaded:
        raise AtomError(
            "the model's weights are offloaded layer by layer; take the offload off before "
            "injecting (remove_all_hooks() of its pipeline)"
        )
    if held.is_meta:
        raise AtomError(
            "the model lies on the meta device and has no weights yet; load its weights "
            "before injecting"
        )
    if target.weight.coarse:
        raise AtomError(
            f"the model's weights are stored as {held.dtype}, whose rounding is larger than what "
            "atoms change; load the model in 16 or 32 bits, without enable_layerwise_casting, "
            "before injecting"
        )
    if type(held.data) is not Tensor:
        return f"left out: its weight is stored as {type(held.data).__name__}"
    if target.weight.quantized:
        if held.is_floating_point():
            return "left out: its weight is not quantized yet; move the model to its device first"
    elif not held.is_floating_point():
        return f"left out: its weight is stored as {held.dtype}"
    if not held.numel():
        return "left out: its weight is empty"
    if module in readers:
        return f"left out: {readers[module]} reads its weight without calling the layer"
    if holders[id(held)] > 1:
        return "left out: its weight is tied to another layer"
    return ""


def choose_targets(model: nn.Module, config: AtomConfig) -> Iterator[Target]:
    """Yield the weights asked for, those that cannot carry atoms included.

    A pattern may name a layer or, in nn.MultiheadAttention, one of its projections.

    Raises:
        AtomError: a pattern of `target_modules` matches no layer that has filters.
    """
    targets, excludes = config.target_modules, config.exclude_modules
    if excludes is None:
        excludes = () if targets is not None else FAMILY_EXCLUDES.get(type(model).__name__, ())
    layers = [(path, layer) for path, layer in list_layers(model) if has_filters(layer)]
    weights = [
        (path, f"{path}.{name}" if name else path, name, layer, weight)
        for path, layer in layers
        for name, weight in list_weights(layer).items()
    ]
    for pattern in targets or ():
        if not any(fnmatchcase(p, pattern) for row in weights for p in row[:2]):
            raise AtomError(
                f"target_modules pattern {pattern!r} matches no convolution, linear layer or "
                f"nn.MultiheadAttention of this {type(model).__name__}"
            )
    if targets is None:
        targets = FAMILY_TARGETS.get(type(model).__name__)
    for layer_path, path, name, layer, weight in weights:
        matches = lambda pattern, names=(layer_path, path): any(
            fnmatchcase(p, pattern) for p in names
        )
        if any(map(matches, excludes)):
            continue
        if targets is not None:
            if any(map(matches, targets)):
                yield Target(path, layer_path, name, layer, weight, True)
        elif is_spatial(layer) or config.variant in BLOCK_VARIANTS:
            yield Target(path, layer_path, name, layer, weight, False)


def has_filters(module: nn.Module) -> bool:
    """Whether the layer is of a kind whose weight one would look for atoms in."""
    if isinstance(module, _ConvNd | nn.Linear | nn.MultiheadAttention):
        return True
    # GPT-2's linear layer, whose weight is the transpose of nn.Linear's.
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def is_spatial(module: nn.Module) -> bool:
    """Whether the layer has spatial filters: a convolution larger than 1×1."""
    return isinstance(module, _ConvNd) and max(module.kernel_size) > 1
