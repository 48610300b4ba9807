"""Models by name, from a folder or from a `.safetensors` file, without a network.

Named models have their published shapes and random weights: enough to count atoms, to measure
speed and to train a step. Unknown names are answered with the known ones.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sdatoms.errors import AtomError, check_text, clip, first_line
from sdatoms.models.cifar_resnet import CifarResNet
from sdatoms.models.efficientnet import EfficientNetLite
from sdatoms.models.families import MODELS, Blueprint
from sdatoms.models.header import UNOPENED
from sdatoms.models.recognize import choose_files, find_dtype, read_checkpoint
from sdatoms.models.single_file import open_unet
from sdatoms.storage import read_table

__all__ = [
    "SETS",
    "OpenedModel",
    "build_empty",
    "build_model",
    "fill_weights",
    "list_names",
    "open_model",
]

TILE = (1 << 22) - 3
"""Random numbers drawn for a model; they repeat over its weights, never in step with their rows."""
SETS = {"timm": "timm/NAME", "torchvision": "torchvision/NAME"}
"""Libraries whose own model names are taken behind a slash, where they can be imported."""
PARTS = ("unet", "transformer")
"""The component of a pipeline that carries atoms, in order of choice."""


class OpenedModel(NamedTuple):
    """A model, what atom files call it, and where it came from."""

    model: nn.Module
    component: str
    source: str


def list_names() -> list[str]:
    """What `build_model` takes; sets of names that cannot be imported are left out."""
    sets = [names for library, names in SETS.items() if importlib.util.find_spec(library)]
    return [*MODELS, *sets]


def build_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A model with its published config and random weights, in evaluation mode.

    Args:
        name: one of `list_names()`.
        dtype: of all weights.
        seed: of the random weights.
        changes: config entries to set otherwise, such as smaller widths.

    Raises:
        AtomError: the name is unknown, or its library cannot be imported.
    """
    library, slash, inner = name.partition("/")
    if name in MODELS:
        blueprint = MODELS[name]
        model = build_empty(blueprint, {**blueprint.cut, **(changes or {})})
    elif slash and library in SETS:
        model = build_from_set(library, inner)
    else:
        raise AtomError(f"there is no model {clip(name)!r}; known are {', '.join(list_names())}")
    return fill_weights(model, dtype, seed).eval()


def build_empty(blueprint: Blueprint, changes: Mapping[str, Any]) -> nn.Module:
    """The model with its buffers and no weights."""
    library = importlib.import_module(blueprint.library)
    kind = getattr(library, blueprint.kind)
    config = {**blueprint.config, **changes}
    with init_empty_weights(include_buffers=False):
        if blueprint.library == "diffusers":
            return kind(**config)
        return kind(kind.config_class(**config))


def build_from_set(library: str, name: str) -> nn.Module:
    """A model of timm or torchvision by its name there, without weights."""
    try:
        models = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except ImportError:
        raise AtomError(f"{library} cannot be imported; install it to build {name!r}") from None
    build = models.create_model if library == "timm" else models.get_model
    try:
        with init_empty_weights(include_buffers=False):
            return build(name)
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise AtomError(f"{library} builds no model {clip(name)!r}: {reason}") from None


@torch.no_grad()
def fill_weights(
    model: nn.Module, dtype: torch.dtype, seed: int = 0, device: torch.device | str = "cpu"
) -> nn.Module:
    """Give every weight on the meta device numbers: N(0, 1/fan-in); ones for gains, zeros for
    biases. They are the same on every device but for rounding; buffers stay where they are."""
    generator = torch.Generator().manual_seed(seed)
    tile = torch.randn(TILE, generator=generator, device="cpu").to(device)
    place, made = 0, dict[nn.Parameter, nn.Parameter]()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if parameter not in made:
                weight = torch.empty(parameter.shape, dtype=dtype, device=device)
                if parameter.dim() < 2:
                    weight.fill_(0.0 if "bias" in name else 1.0)
                else:
                    place = fill_from(tile, place, weight)
                made[parameter] = nn.Parameter(weight)
            module._parameters[name] = made[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)
    return model


def fill_from(tile: Tensor, place: int, weight: Tensor) -> int:
    """Copy scaled numbers from `place` on, beginning anew at the end; returns the next place."""
    flat, scale, done = weight.flatten(), math.prod(weight.shape[1:]) ** -0.5, 0
    while done < len(flat):
        count = min(len(tile) - place, len(flat) - done)
        flat[done : done + count] = tile[place : place + count] * scale
        done, place = done + count, (place + count) % len(tile)
    return place


def open_model(
    where: str | os.PathLike[str], dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> OpenedModel:
    """A named model, or the weights in a folder or file.

    Args:
        where: one of `list_names()`; a diffusers pipeline's folder, whose UNet or transformer is
            taken; a diffusers or transformers model's folder; a `.safetensors` file with a base in
            its original layout, whose UNet is taken, or with the weights of a CIFAR ResNet, of
            EfficientNet-Lite0 or of a named model.
        dtype: of named models; weights from disk keep theirs.
        seed: of named models.

    Raises:
        AtomError: the name is unknown, or the folder or file holds no model.
    """
    text, path = check_text(str(where), "the path of the model"), Path(where)
    if text in MODELS:
        blueprint = MODELS[text]
        return OpenedModel(build_model(text, dtype, seed), blueprint.component, blueprint.source)
    if path.is_dir():
        return open_folder(path)
    if path.is_file():
        return open_weights(path)
    return OpenedModel(build_model(text, dtype, seed), "model", text)


def open_folder(folder: Path) -> OpenedModel:
    index = folder / "model_index.json"
    if index.is_file():
        entries = read_table(index)
        part = next((p for p in PARTS if p in entries), None)
        if part is None:
            raise AtomError(f"the pipeline in {str(folder)!r} has no {' and no '.join(PARTS)}")
        return OpenedModel(load_folder(folder / part), part, str(folder))
    return OpenedModel(load_folder(folder), "model", str(folder))


def load_folder(folder: Path) -> nn.Module:
    """The model of a diffusers or transformers folder, by the class its config names."""
    config = folder / "config.json"
    if not config.is_file():
        raise AtomError(f"the folder {str(folder)!r} holds no config.json and no model_index.json")
    table = read_table(config)
    library, kinds = "diffusers", [table.get("_class_name")]
    if kinds == [None]:
        library, kinds = "transformers", table.get("architectures") or [None]
    named = getattr(importlib.import_module(library), str(kinds[0]), None)
    if not (isinstance(named, type) and issubclass(named, nn.Module)):
        raise AtomError(
            f"the config in {str(folder)!r} names {clip(str(kinds[0]))!r}, which is no model of "
            f"{library}"
        )
    kind: Any = named
    try:
        own = find_dtype(choose_files(folder.glob("*.safetensors"))) or torch.float32
    except AtomError:  # which opening it says in its own words
        own = torch.float32
    asked = {"dtype" if library == "transformers" else "torch_dtype": own}
    try:
        model = kind.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, **asked
        )
    except UNOPENED as error:
        reason = first_line(error)
        raise AtomError(f"the model in {str(folder)!r} cannot be opened: {reason}") from None
    return model.eval()


def open_weights(path: Path) -> OpenedModel:
    """The model whose names and shapes the file's tensors have."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError):
        raise AtomError(f"{str(path)!r} is no safetensors file") from None
    if any(name.endswith("input_blocks.0.0.weight") for name in shapes):
        checkpoint = read_checkpoint(path)
        return OpenedModel(open_unet(checkpoint, checkpoint.dtype), "unet", str(path))
    model, component = find_architecture(shapes)
    if model is None:
        raise AtomError(
            f"the tensors in {str(path)!r} are those of no known model: no CIFAR ResNet, no "
            f"EfficientNet-Lite0, and none of {', '.join(MODELS)}"
        )
    model.load_state_dict(load_file(path), strict=False, assign=True)
    return OpenedModel(model.eval(), component, str(path))


def find_architecture(shapes: Mapping[str, tuple[int, ...]]) -> tuple[nn.Module | None, str]:
    """The model, without weights, that has exactly these tensors; and its component."""
    with init_empty_weights(include_buffers=False):
        model = build_classifier(shapes)
    if model is not None and same_shapes(model, shapes):
        return model, "model"
    for blueprint in MODELS.values():
        model = build_empty(blueprint, {})
        if same_shapes(model, shapes):
            return model, blueprint.component
    return None, ""


def build_classifier(shapes: Mapping[str, tuple[int, ...]]) -> nn.Module | None:
    """The classifier of this library that has tensors of these names, sized by them."""
    if "linear.weight" in shapes and "layer1.0.conv1.weight" in shapes:
        blocks = sum(name.startswith("layer1.") for name in shapes) // 10
        return CifarResNet(max(1, blocks), shapes["linear.weight"][0])
    if "_conv_stem.weight" in shapes and "_fc.weight" in shapes:
        return EfficientNetLite(shapes["_fc.weight"][0])
    return None


def same_shapes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the file has every tensor of the model and no other, counters aside."""
    own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    weights = lambda table: {k: v for k, v in table.items() if not k.endswith("batches_tracked")}
    return weights(own) == weights(shapes)
