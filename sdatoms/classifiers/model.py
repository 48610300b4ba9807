"""Image classifiers from anywhere, with a fresh head, and the file that holds a trained head.

An atom file holds atoms alone; the head, and norms or statistics if they were trained, are in
`head.safetensors` beside it, under their state-dict names.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from sdatoms.errors import AtomError, clip, first_line
from sdatoms.models.families import MODELS
from sdatoms.models.open import SETS, build_model, open_model
from sdatoms.storage import reach_hub, write_whole

__all__ = [
    "MEAN",
    "SPREAD",
    "Classifier",
    "classify",
    "list_norms",
    "load_head",
    "open_classifier",
    "pack_head",
    "save_head",
]

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which published weights are trained with unless their processor says otherwise."""
FORMAT = "sdatoms-head/1"


@dataclass
class Classifier:
    """A model, where its head is, and what pictures it takes."""

    model: nn.Module
    head_path: str
    size: int
    """Side of the pictures, px."""
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    source: str

    @property
    def head(self) -> nn.Linear:
        head = self.model.get_submodule(self.head_path)
        assert isinstance(head, nn.Linear)
        return head

    def place(self, device: torch.device) -> None:
        """Move the model there, its channels innermost, as convolutions take them fastest."""
        model: Any = self.model  # torch's types leave `memory_format` out
        model.to(device, memory_format=torch.channels_last)

    def normalize(self, pictures: Tensor) -> Tensor:
        """uint8 `(B, 3, size, size)` → float32, as the weights were trained to see."""
        mean, spread = (
            torch.tensor(t, device=pictures.device).view(3, 1, 1) for t in (self.mean, self.spread)
        )
        return (pictures.float() / 255 - mean) / spread


def open_classifier(
    where: str, classes: int, *, seed: int = 0, resolution: int | None = None
) -> Classifier:
    """A classifier in float32 whose head is new: `classes` outputs, seeded small weights.

    Args:
        where: a transformers image classifier's folder or hub name; `timm/NAME` or
            `torchvision/NAME`; a `.safetensors` file of a CIFAR ResNet, of EfficientNet-Lite0
            or of a known model; a known name such as `vit-base`, which has random weights.
        resolution: px; None for what the model was trained at.

    Raises:
        AtomError: nothing opens under that name, or what does has no linear head.
    """
    path, library = Path(where), where.partition("/")[0]
    size, mean, spread = None, MEAN, SPREAD
    if where in MODELS:
        model = build_model(where, torch.float32, seed)
    elif library in SETS and not path.exists():
        model = open_from_set(library, where.partition("/")[2])
        size, mean, spread = read_timm(getattr(model, "pretrained_cfg", None) or {})
    elif path.is_file():
        model = open_model(path).model
        mean, spread = getattr(model, "mean", MEAN), getattr(model, "spread", SPREAD)
    else:
        model, processor = open_transformers(where)
        size, mean, spread = read_processor(processor)
    head_path, old = find_head(model, where)
    head = nn.Linear(old.in_features, classes)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        head.weight.copy_(0.02 * torch.randn(head.weight.shape, generator=generator))
        head.bias.zero_()
    model.set_submodule(head_path, head)
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.num_labels = classes
    size = resolution or size or guess_size(model)
    return Classifier(model.float().eval(), head_path, size, mean, spread, where)


def open_from_set(library: str, name: str) -> nn.Module:
    """A model of timm or torchvision with its published weights."""
    try:
        models = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except ImportError:
        raise AtomError(
            f"{library} cannot be imported; install it to open {clip(name)!r}"
        ) from None
    try:
        if library == "timm":
            return models.create_model(name, pretrained=True)
        return models.get_model(name, weights="DEFAULT")
    except Exception as error:  # both raise many kinds for unknown names and failed downloads
        reason = first_line(error)
        raise AtomError(f"{library} opens no model {clip(name)!r}: {reason}") from None


def open_transformers(where: str) -> tuple[nn.Module, Mapping[str, Any]]:
    from transformers import AutoModelForImageClassification, BaseImageProcessor

    try:
        with reach_hub(where):
            model = AutoModelForImageClassification.from_pretrained(where, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise AtomError(
            f"there is no image classifier {clip(where)!r}, as folder, file or name: {reason}"
        ) from None
    try:
        with reach_hub(where):
            processor, _ = BaseImageProcessor.get_image_processor_dict(where)
    except (OSError, ValueError):
        processor = {}
    return model, processor


def read_processor(
    table: Mapping[str, Any],
) -> tuple[int | None, tuple[float, ...], tuple[float, ...]]:
    """Side in px, mean and standard deviation from a `preprocessor_config.json`."""
    size = table.get("crop_size") or table.get("size")
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    mean, spread = (tuple(table.get(k) or ()) for k in ("image_mean", "image_std"))
    whole = len(mean) == len(spread) == 3
    return (
        size if isinstance(size, int) else None,
        mean if whole else MEAN,
        spread if whole else SPREAD,
    )


def read_timm(table: Mapping[str, Any]) -> tuple[int | None, tuple[float, ...], tuple[float, ...]]:
    """The same from timm's `pretrained_cfg`; torchvision's models have none and take ImageNet's."""
    side = (table.get("input_size") or (None,))[-1]
    return side, tuple(table.get("mean") or MEAN), tuple(table.get("std") or SPREAD)


def guess_size(model: nn.Module) -> int:
    """Side of the pictures a model takes, px: its config's, 32 for CIFAR ResNets, else 224."""
    config: Any = getattr(model, "config", None)
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(size, int):
        return size
    return 32 if type(model).__name__ == "CifarResNet" else 224


def find_head(model: nn.Module, where: str) -> tuple[str, nn.Linear]:
    """The linear layer that makes the logits, with its path: the last one, if nothing but it
    follows."""
    linear = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    last = linear[-1][0] if linear else ""
    if last.partition(".")[0] not in ("classifier", "head", "heads", "fc", "linear", "_fc"):
        raise AtomError(f"{clip(where)!r}, a {type(model).__name__}, has no linear head to replace")
    return linear[-1]


def classify(model: nn.Module, x: Tensor) -> Tensor:
    """Logits `(B, classes)`, whatever the model wraps them in."""
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def list_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Path → normalization layer."""
    return {path: m for path, m in model.named_modules() if "norm" in type(m).__name__.lower()}


def save_head(
    path: str | os.PathLike[str],
    classifier: Classifier,
    classes: Sequence[str],
    extras: Sequence[str] = (),
) -> Path:
    """Write the head, and what else was trained by its state-dict names, whole or not at all."""
    return write_whole(Path(path), pack_head(classifier, classes, extras))


def pack_head(classifier: Classifier, classes: Sequence[str], extras: Sequence[str] = ()) -> bytes:
    state = classifier.model.state_dict()
    names = [f"{classifier.head_path}.weight", f"{classifier.head_path}.bias", *extras]
    tensors = {name: state[name].detach().cpu().contiguous() for name in names}
    header = {
        "format": FORMAT,
        "head": classifier.head_path,
        "classes": json.dumps(list(classes)),
        "base_model": classifier.source,
    }
    return save_tensors(tensors, header)


def load_head(model: nn.Module, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Give `model` the head in a file, and what else the file holds; returns the class names.

    Raises:
        AtomError: it is no head file, or fits another model; nothing is changed.
    """
    name = Path(path).name
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError):
        raise AtomError(f"{name!r} is no safetensors file") from None
    if header.get("format") != FORMAT:
        raise AtomError(f"{name!r} is no head file: its format is {header.get('format')!r:.60}")
    own, place = model.state_dict(), header.get("head", "")
    weight = tensors.pop(f"{place}.weight", None)
    bias = tensors.pop(f"{place}.bias", None)
    old = dict(model.named_modules()).get(place)
    if not isinstance(old, nn.Linear) or weight is None or bias is None:
        raise AtomError(f"{name!r} holds the head {clip(place)!r}, which this model has not")
    if weight.shape != (len(bias), old.in_features):
        raise AtomError(
            f"the head in {name!r} takes {tuple(weight.shape)[1:]} features; this model has "
            f"{old.in_features}"
        )
    for key, tensor in tensors.items():
        if key not in own or own[key].shape != tensor.shape:
            raise AtomError(f"the tensor {clip(key)!r} in {name!r} fits nothing in this model")
    head = nn.Linear(old.in_features, len(bias)).to(old.weight)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        for key, tensor in tensors.items():
            own[key].copy_(tensor)
    model.set_submodule(place, head)
    return tuple(json.loads(header.get("classes", "[]")))
