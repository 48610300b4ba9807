"""Which layers of a model carry atoms, and why others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

from sdatoms.atom_config import AtomConfig
from sdatoms.errors import AtomError

__all__ = ["Places", "choose_targets", "is_spatial"]

FAMILY_TARGETS = {
    "CLIPTextModel": ("*.self_attn.*", "*.mlp.*"),
    "CLIPTextModelWithProjection": ("*.self_attn.*", "*.mlp.*"),
    "T5EncoderModel": ("*.SelfAttention.*", "*.DenseReluDense.*"),
    "SD3Transformer2DModel": ("transformer_blocks.*.attn*", "transformer_blocks.*.ff*"),
    "FluxTransformer2DModel": (
        "transformer_blocks.*.attn.*",
        "transformer_blocks.*.ff*",
        "single_transformer_blocks.*.attn.*",
        "single_transformer_blocks.*.proj_*",
    ),
}
"""Layers a model family without spatial filters tunes while `target_modules` is None: attention and
feed-forward, with block atoms in every variant; no embedder, modulation or output layer."""

FAMILY_EXCLUDES = {
    "UNet2DConditionModel": (
        "time_embedding.*",
        "*.time_emb_proj",
        "add_embedding.*",
        "class_embedding.*",
    ),
    "UNet2DModel": ("time_embedding.*", "*.time_emb_proj"),
    "ConvNextForImageClassification": ("classifier",),
    "ViTForImageClassification": ("classifier",),
    "ViTModel": ("pooler.*",),
    "ResNetForImageClassification": ("classifier.*",),
    "SwinForImageClassification": ("classifier",),
    "CifarResNet": ("linear",),
    # The same class names in timm and torchvision, whose heads are called differently.
    "ConvNeXt": ("head.*", "classifier.*"),
    "VisionTransformer": ("head", "heads.*"),
    "ResNet": ("fc",),
    "SwinTransformer": ("head", "head.*"),
}
"""Layers a model family leaves out while `target_modules` and `exclude_modules` are None: the time
embeddings of UNets, which hold no pictures, and the heads of classifiers, which are trained whole.
"""


class Places:
    """Where the modules of a model stand, and how often its parameters are held."""

    def __init__(self, model: nn.Module) -> None:
        self.parents: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
        """Module → the parents that hold it and the names they hold it under."""
        self.holders: Counter[int] = Counter()
        for parent in model.modules():
            self.holders.update(id(p) for p in parent._parameters.values() if p is not None)
            for name, child in parent._modules.items():
                if child is not None:
                    self.parents.setdefault(child, []).append((parent, name))

    def inside(self, module: nn.Module, kind: type[nn.Module]) -> bool:
        """Whether a module of class `kind` holds this one directly."""
        return any(isinstance(parent, kind) for parent, _ in self.parents.get(module, []))

    def refuse(self, module: nn.Conv2d | nn.Linear) -> str:
        """Why this layer cannot carry atoms, or an empty string.

        Raises:
            AtomError: the layer has no weights yet.
        """
        if self.inside(module, nn.MultiheadAttention):
            return "left out: nn.MultiheadAttention reads this weight without calling the layer"
        weight = module._parameters.get("weight")
        if weight is None:
            return "left out: its weight is computed from others (weight_norm, pruning?)"
        if is_lazy(weight):
            raise AtomError("the model has no weights yet; run it once before injecting")
        if weight.is_meta:
            raise AtomError(
                "the model lies on the meta device and has no weights yet; load its weights "
                "before injecting"
            )
        if type(module) not in (nn.Conv2d, nn.Linear):
            return f"left out: {type(module).__name__} is a layer of another library"
        if not weight.is_floating_point():
            return f"left out: its weight is stored as {weight.dtype}"
        if not weight.numel():
            return "left out: its weight is empty"
        if self.holders[id(weight)] > 1:
            return "left out: its weight is tied to another layer"
        return ""


def choose_targets(
    model: nn.Module, config: AtomConfig
) -> Iterator[tuple[str, nn.Conv2d | nn.Linear, bool]]:
    """Yield `(path, module, named)` for the layers asked for; `named` when a pattern chose it.

    Patterns are the config's, else those of the model's family.

    Raises:
        AtomError: a pattern of `target_modules` matches no convolution or linear layer.
    """
    targets, excludes = config.target_modules, config.exclude_modules
    if excludes is None:
        excludes = () if targets is not None else FAMILY_EXCLUDES.get(type(model).__name__, ())
    layers = [
        (path, module)
        for path, module in model.named_modules()
        if path and isinstance(module, nn.Conv2d | nn.Linear)
    ]
    for pattern in targets or ():
        if not any(fnmatchcase(path, pattern) for path, _ in layers):
            raise AtomError(
                f"target_modules pattern {pattern!r} matches no convolution or linear layer of "
                f"this {type(model).__name__}"
            )
    if targets is None:
        targets = FAMILY_TARGETS.get(type(model).__name__)
    for path, module in layers:
        if any(fnmatchcase(path, pattern) for pattern in excludes):
            continue
        if targets is not None:
            if any(fnmatchcase(path, pattern) for pattern in targets):
                yield path, module, True
        elif is_spatial(module) or config.variant in ("coefficients", "full"):
            yield path, module, False


def is_spatial(module: nn.Module) -> bool:
    """Whether the layer has spatial filters: a convolution larger than 1×1."""
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
