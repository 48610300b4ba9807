"""LoRA files beside atom files: baked into the same weights, mixed and taken out in the same way.

Names are read by diffusers' own converters, which know kohya's, the original release's and several
spellings of their own; the change `B A` is then added like any adapter's, so that strengths by
block and step, offload modes and the exact restore hold for LoRA as they do for atoms.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sdatoms.atoms.lora import LoraMap
from sdatoms.errors import AtomError, clip, first_line
from sdatoms.files.lora_file import ALPHA, LoraFile
from sdatoms.layers.weights import LayerWeight, find_weight

__all__ = [
    "check_lora_fit",
    "place_lora",
]

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
A, B = ".lora_A.weight", ".lora_B.weight"


def place_lora(file: LoraFile, modules: Mapping[str, nn.Module]) -> dict[str, dict[str, LoraMap]]:
    """Component → module path → the change of that layer at strength 1; nothing is changed.

    Args:
        modules: those of a pipeline by name, or one module under an empty name, which is taken for
            the UNet.

    Raises:
        AtomError: a layer of the file is not there.
    """
    found = {name or "unet": module for name, module in modules.items()}
    placed: dict[str, dict[str, LoraMap]] = {}
    for name, (down, up) in sorted(convert(file, found.get("unet")).items()):
        component, _, path = name.partition(".")
        if component not in found:
            family = "; it was made for Stable Diffusion XL" * (component == "text_encoder_2")
            raise AtomError(
                f"the LoRA changes the component {clip(component)!r}, which is not there{family}"
            )
        inner = find_path(found[component], component, path)
        rank = len(down)
        map = LoraMap(
            down.detach().float().reshape(rank, -1), up.detach().float().reshape(-1, rank)
        )
        placed.setdefault(component, {})[inner] = map
    return placed


def convert(file: LoraFile, unet: nn.Module | None) -> dict[str, tuple[Tensor, Tensor]]:
    """`<component>.<module path>` → A and scaled B, under diffusers' and PEFT's names.

    Raises:
        AtomError: a name is none that diffusers knows.
    """
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
    from diffusers.utils.state_dict_utils import (
        StateDictType,
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    state = scale_ups(file)
    try:
        config = getattr(unet, "config", None)
        state = StableDiffusionXLLoraLoaderMixin.lora_state_dict(state, unet_config=config)[0]
        inner = {
            component: {
                key.removeprefix(f"{component}."): tensor
                for key, tensor in state.items()
                if key.startswith(f"{component}.")
            }
            for component in COMPONENTS
        }
        lost = len(state) - sum(map(len, inner.values()))
        if lost:
            key = next(k for k in state if k.partition(".")[0] not in COMPONENTS)
            raise AtomError(
                f"the LoRA changes {clip(key, 80)!r}, which is no layer of Stable Diffusion"
            )
        renamed = {"unet": convert_unet_state_dict_to_peft(inner["unet"])}
        for component in COMPONENTS[1:]:
            if inner[component]:
                renamed[component] = inner[component]
            if not all(key.endswith((A, B)) for key in inner[component]):
                old = any("_lora." in key for key in inner[component])
                kind = StateDictType.DIFFUSERS_OLD if old else None  # diffusers' guess needs to_out
                renamed[component] = convert_state_dict_to_peft(
                    convert_state_dict_to_diffusers(inner[component], kind)
                )
    except AtomError:
        raise
    except (ValueError, KeyError, IndexError, RuntimeError, AttributeError) as error:
        raise AtomError(f"the LoRA's names cannot be read: {first_line(error)}") from None
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for component, tensors in renamed.items():
        for key, tensor in tensors.items():
            if key.endswith(A):
                layer = key.removesuffix(A)
                other = tensors.get(layer + B)
                if other is None:
                    raise AtomError(f"the LoRA's layer {clip(layer, 80)!r} has no second matrix")
                pairs[f"{component}.{layer}"] = (tensor, scale(file, component, layer, other))
            elif not key.endswith(B):
                raise AtomError(f"the LoRA holds {clip(key, 80)!r}, which diffusers does not know")
    return pairs


def scale_ups(file: LoraFile) -> dict[str, Tensor]:
    """The file's matrices, `alpha / r` multiplied into each B, without the alphas."""
    state = {key: t for key, t in file.tensors.items() if not key.endswith(ALPHA)}
    for layer, (down, up) in file.pairs.items():
        alpha = file.tensors.get(f"{layer}{ALPHA}")
        if alpha is not None:
            state[up] = state[up].float() * (float(alpha) / len(file.tensors[down]))
    return state


def scale(file: LoraFile, component: str, layer: str, up: Tensor) -> Tensor:
    """B times what PEFT's settings in the header say of its layer; as it is without any."""
    settings, rank = file.settings, up.shape[1]
    alpha = settings.get(f"{component}.lora_alpha")
    patterns = settings.get(f"{component}.alpha_pattern")
    for pattern, own in (patterns if isinstance(patterns, dict) else {}).items():
        alpha = own if f".{layer}".endswith(f".{pattern}") else alpha
    if not isinstance(alpha, int | float):
        return up
    root = bool(settings.get(f"{component}.use_rslora"))
    return up.float() * (alpha / (rank**0.5 if root else rank))


def find_path(module: nn.Module, component: str, path: str) -> str:
    """The module path by which we know a layer: text encoders stand one level deeper in files.

    Raises:
        AtomError: there is no such layer.
    """
    for inner in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        try:
            find_weight(module, inner)
        except AtomError:
            continue
        return inner
    raise AtomError(f"there is no layer {clip(f'{component}.{path}', 100)!r} for the LoRA")


def check_lora_fit(path: str, layer: LayerWeight, map: LoraMap) -> None:
    """Refuse a layer whose weight is not there, is quantized, or is of another shape.

    Raises:
        AtomError: it is.
    """
    held, where = layer.held, f"the layer {clip(path)!r}"
    if held is None or held.is_meta:
        raise AtomError(f"the weight of {where} lies on the meta device; load the weights first")
    if layer.quantized or not held.is_floating_point():
        raise AtomError(f"the weight of {where} is quantized; LoRA fits floating-point weights")
    shape = tuple(layer.shape)
    columns = int(torch.Size(shape[1:]).numel())
    if (len(map.up), map.down.shape[1]) != (shape[0], columns):
        raise AtomError(
            f"{where} has a weight of {shape[0]}×{columns} numbers where the LoRA has "
            f"{len(map.up)}×{map.down.shape[1]}"
        )
