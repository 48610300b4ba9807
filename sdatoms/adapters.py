"""Bake atom files into plain weights at given strengths, and take them out again, bit for bit.

`W' = W + Σ_k s_k ΔW_k`, formed in float32 from the pristine weight and cast once. Maps of one view are summed
first, in float64 and in the order of the files' hashes, so the order of loading changes no bit and K adapters
cost what one costs. The pristine weights of touched layers are kept on their device for an exact restore.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.checkpoint import AtomFile, LayerMap, clip, fingerprint, read_atoms
from sdatoms.decompose import View
from sdatoms.deltas import apply_map
from sdatoms.errors import AtomError
from sdatoms.inject import Injection

__all__ = ["AdapterSet", "Strength", "bake_injection", "load_atoms"]

Strength = float | Mapping[str, float]
"""One number, or numbers for the UNet's `down`, `mid` and `up` blocks (1 where not given)."""

FINGERPRINT_TOLERANCE = 2e-2
ROUNDING_WARNING = 0.1
BLOCKS = {
    "down_blocks": "down",
    "conv_in": "down",
    "mid_block": "mid",
    "up_blocks": "up",
    "conv_out": "up",
}


@dataclass
class BakedLayer:
    """A layer some adapter touches: its pristine weight and what its weight should be now."""

    module: nn.Module
    pristine: Tensor
    origin: int
    """Checksum of the pristine weight at the first load."""
    current: int
    """Checksum of the weight as last written."""


@dataclass
class Adapter:
    """One loaded file on one module."""

    file: AtomFile
    hash: str
    maps: dict[str, list[LayerMap]]
    strength: Strength


@dataclass
class BakedModule:
    """All adapters of one root module; lives on the module, so that it is shared by whoever shares the module."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    layers: dict[str, BakedLayer] = field(default_factory=dict)


class AdapterSet:
    """The adapters baked into a pipeline's modules (or into one module); made by `load_atoms`."""

    def __init__(self, target: Any, components: dict[str, nn.Module]) -> None:
        self.target = target
        self.components = components
        """Component name → root module."""

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters in the order of loading."""
        return tuple(dict.fromkeys(name for state in self._states() for name in state.adapters))

    @property
    def strengths(self) -> dict[str, Strength]:
        return {name: a.strength for state in self._states() for name, a in state.adapters.items()}

    def _states(self) -> list[BakedModule]:
        return [find_state(module) for module in self.components.values()]

    def load(
        self,
        path: str | os.PathLike[str] | AtomFile,
        *,
        name: str | None = None,
        strength: Strength = 1.0,
        component: str | None = None,
        **hub: Any,
    ) -> AdapterSet:
        """Bake one more atom file in. Arguments and errors are those of `load_atoms`."""
        file, stem = fetch_file(path, hub)
        name = name or stem
        check_strength(name, strength)
        if name in self.names:
            raise AtomError(
                f"an adapter named {name!r} is already loaded; remove it or give another name"
            )
        modules = choose_modules(self.target, file, component)
        plans = {
            owner: plan_adapter(file, owner, module, strength) for owner, module in modules.items()
        }
        self.components.update({c: m for c, m in modules.items()})
        for owner, module in modules.items():
            state = find_state(module)
            state.adapters[name] = plans[owner]
            rebake(module, state, plans[owner].maps)
        return self

    def set_strengths(self, strengths: Mapping[str, Strength]) -> AdapterSet:
        """Change strengths by name; names not mentioned keep theirs."""
        for name, strength in strengths.items():
            self._check_name(name)
            check_strength(name, strength)
        for module, state in zip(self.components.values(), self._states(), strict=True):
            check_untouched(state)
            touched: set[str] = set()
            for name, strength in strengths.items():
                if name in state.adapters and state.adapters[name].strength != strength:
                    state.adapters[name].strength = strength
                    touched.update(state.adapters[name].maps)
            rebake(module, state, touched)
        return self

    def remove(self, name: str) -> AdapterSet:
        """Take one adapter out; layers no other adapter touches are their pristine selves again."""
        self._check_name(name)
        for module, state in zip(self.components.values(), self._states(), strict=True):
            check_untouched(state)
            if name in state.adapters:
                rebake(module, state, state.adapters.pop(name).maps)
        return self

    def clear(self) -> None:
        """Take all adapters out: every base weight back, bit for bit, and the pristine copies freed."""
        for state in self._states():
            check_untouched(state)
        for module, state in zip(self.components.values(), self._states(), strict=True):
            state.adapters.clear()
            rebake(module, state, list(state.layers))

    def delta(self, name: str, path: str) -> Tensor:
        """Unit-strength `ΔW` of one layer in float32; `component.` stands in front of `path` if there are several."""
        self._check_name(name)
        for component, module in self.components.items():
            inner = path.removeprefix(f"{component}.")
            adapter = find_state(module).adapters.get(name)
            if adapter and inner in adapter.maps and (inner != path or len(self.components) == 1):
                layer = find_state(module).layers.get(inner)
                weight = layer.pristine if layer else find_layer(module, inner).weight.detach()
                return sum_maps(weight, [(1.0, m) for m in adapter.maps[inner]])
        raise AtomError(f"the adapter {name!r} changes no layer {path!r}")

    def verify_base(self) -> bool:
        """Whether the weights, with adapters taken off, equal those found at the first load, bit for bit."""
        for state in self._states():
            check_untouched(state)
        return all(
            checksum(l.pristine) == l.origin
            for state in self._states()
            for l in state.layers.values()
        )

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            raise AtomError(
                f"no adapter is named {name!r}; loaded are {', '.join(self.names) or 'none'}"
            )

    def __repr__(self) -> str:
        rows = ", ".join(f"{name}={strength}" for name, strength in self.strengths.items())
        return f"AdapterSet({rows})"


def load_atoms(
    target: Any,
    path: str | os.PathLike[str] | AtomFile,
    *,
    name: str | None = None,
    strength: Strength = 1.0,
    component: str | None = None,
    **hub: Any,
) -> AdapterSet:
    """Bake an atom file into a pipeline, or into one module, and return the set of all adapters there.

    Args:
        target: a diffusers pipeline, or one module when the file holds one component (else name `component`).
        path: a file, an `AtomFile`, or a hub id with `weight_name`, `revision`, `token` as in `load_lora_weights`.
        name: defaults to the file's stem.
        strength: any finite number; 0 is the base exactly. Or numbers by UNet block: `{"down": .2, "up": .7}`.
        component: which module of the pipeline, or which component of the file, is meant.

    Raises:
        AtomError: the file is unusable or fits no layer; the name is taken; the weights were changed by others.
            Nothing is changed.
    """
    components: dict[str, nn.Module] = {}
    if not isinstance(target, nn.Module):
        named = getattr(target, "components", {})
        components = {
            c: m
            for c, m in named.items()
            if isinstance(m, nn.Module) and "_sdatoms_baked" in m.__dict__
        }
    elif "_sdatoms_baked" in target.__dict__:
        components = {component or "model": target}
    return AdapterSet(target, components).load(
        path, name=name, strength=strength, component=component, **hub
    )


def fetch_file(path: Any, hub: dict[str, Any]) -> tuple[AtomFile, str]:
    """Read a local file, or one from the hub when `path` is no file but looks like a hub id."""
    if isinstance(path, AtomFile):
        return path, path.metadata.get("trigger", "atoms")
    unknown = set(hub) - {
        "weight_name",
        "revision",
        "token",
        "cache_dir",
        "local_files_only",
        "subfolder",
    }
    if unknown:
        raise AtomError(f"load_atoms takes no argument {sorted(unknown)[0]!r}")
    local = Path(path)
    if local.is_dir():
        local = local / (hub.get("weight_name") or "atoms.safetensors")
    if (
        not local.exists()
        and (hub or str(path).count("/") == 1)
        and not str(path).endswith(".safetensors")
    ):
        from huggingface_hub import hf_hub_download

        filename = hub.pop("weight_name", None) or "atoms.safetensors"
        try:
            local = Path(hf_hub_download(str(path), filename, **hub))
        except Exception as error:  # the hub client raises a dozen kinds; all mean: not to be had
            reason = clip(str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise AtomError(
                f"{str(path)!r} is no local file and cannot be had from the hub: {reason}"
            ) from None
    return read_atoms(local), local.stem


def choose_modules(target: Any, file: AtomFile, component: str | None) -> dict[str, nn.Module]:
    """Component name → module for every component of the file that is to be loaded."""
    wanted = file.components if component is None else (component,)
    for owner in wanted:
        if owner not in file.components:
            raise AtomError(
                f"the file holds no component {owner!r}; it holds {', '.join(file.components)}"
            )
    if isinstance(target, nn.Module):
        if len(wanted) > 1:
            held = ", ".join(file.components)
            raise AtomError(
                f"the file holds {held}; pass the pipeline, or component= to choose one for this module"
            )
        return {wanted[0]: target}
    modules = {owner: getattr(target, owner, None) for owner in wanted}
    for owner, module in modules.items():
        if not isinstance(module, nn.Module):
            raise AtomError(
                f"this {type(target).__name__} has no module {owner!r} that the file's atoms could fit"
            )
    return modules


def plan_adapter(file: AtomFile, owner: str, module: nn.Module, strength: Strength) -> Adapter:
    """Check every layer of one component against `module` before anything is changed."""
    if module.__dict__.get("_sdatoms_injection"):
        raise AtomError(
            f"this {type(module).__name__} carries injected atoms; eject them before loading a file"
        )
    state = find_state(module)
    check_untouched(state)
    maps = file.maps(owner)
    prints = file.fingerprints.get(owner, {})
    differing = []
    for path, views in maps.items():
        layer = state.layers[path].module if path in state.layers else find_layer(module, path)
        weight = state.layers[path].pristine if path in state.layers else layer.weight
        check_fit(path, layer, weight, views)
        if path in prints and not matches(prints[path], fingerprint(weight)):
            differing.append(path)
    if differing:
        warnings.warn(
            f"the weights of {len(differing)} of {len(maps)} layers differ from the base these atoms were trained on "
            f"({clip(file.metadata.get('base_model', 'unknown'))}); the picture will differ from the trained one",
            stacklevel=4,
        )
    return Adapter(file, file.sha256, maps, strength)


def find_layer(module: nn.Module, path: str) -> nn.Module:
    """The layer at `path`, seen through a wrapper's `base_layer`."""
    layer: Any = module
    for part in path.split("."):
        layer = layer._modules.get(part) if isinstance(layer, nn.Module) else None
        while layer is not None and isinstance(layer._modules.get("base_layer"), nn.Module):
            layer = layer._modules["base_layer"]
    if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
        raise AtomError(
            f"this {type(module).__name__} has no layer {clip(path)!r} that the file's atoms could fit"
        )
    return layer


def check_fit(path: str, layer: nn.Module, weight: Tensor, views: list[LayerMap]) -> None:
    if weight.is_meta:
        raise AtomError(
            f"the weight of {path!r} lies on the meta device; load the model's weights (or disable offload) first"
        )
    if not weight.is_floating_point():
        raise AtomError(
            f"the weight of {path!r} is stored as {weight.dtype}; atoms bake into floating-point weights only"
        )
    groups = getattr(layer, "groups", 1)
    for m in views:
        if tuple(weight.shape[2:]) != m.kernel or groups != m.groups:
            raise AtomError(
                f"the layer {path!r} has kernel {tuple(weight.shape[2:])} in {groups} groups where the file's atoms "
                f"have {m.kernel} in {m.groups}"
            )
        o, i = weight.shape[0] // groups, weight.shape[1]
        if o % m.block[0] or i % m.block[1]:
            raise AtomError(
                f"the layer {path!r} has {o}×{i} channels, which {m.block[0]}×{m.block[1]} blocks do not divide"
            )
        if m.transform.dim() == 3 and len(m.transform) != groups * i:
            raise AtomError(
                f"the layer {path!r} has {groups * i} input channels where the file's atoms have {len(m.transform)}"
            )


def matches(stored: list[float], found: list[float]) -> bool:
    norm = abs(stored[0] - found[0]) <= FINGERPRINT_TOLERANCE * max(stored[0], found[0])
    return norm and all(
        abs(a - b) <= FINGERPRINT_TOLERANCE for a, b in zip(stored[1:], found[1:], strict=True)
    )


def check_strength(name: str, strength: Strength) -> None:
    numbers = strength.values() if isinstance(strength, Mapping) else [strength]
    for number in numbers:
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not abs(number) < float("inf")
        ):
            raise AtomError(f"the strength of {name!r} is {number!r}; it takes a finite number")
    if isinstance(strength, Mapping):
        for block in strength:
            if block not in ("down", "mid", "up"):
                raise AtomError(
                    f"the strength of {name!r} names a block {block!r}; blocks are down, mid and up"
                )


def strength_at(strength: Strength, path: str) -> float:
    if isinstance(strength, Mapping):
        return float(strength.get(BLOCKS.get(path.split(".")[0], ""), 1.0))
    return float(strength)


def find_state(module: nn.Module) -> BakedModule:
    return module.__dict__.get("_sdatoms_baked") or BakedModule()


def rebake(module: nn.Module, state: BakedModule, paths: Any) -> None:
    """Write the weights at `paths` anew from their pristine copies and the adapters' present strengths."""
    lost, whole = 0.0, 0.0
    order = sorted(state.adapters.values(), key=lambda a: (a.hash, str(a.strength)))
    for path in list(paths):
        terms = [(strength_at(a.strength, path), m) for a in order for m in a.maps.get(path, [])]
        terms = [(strength, m) for strength, m in terms if strength != 0]
        if not terms and path not in state.layers:
            continue
        if path not in state.layers:
            layer = find_layer(module, path)
            pristine = layer.weight.detach().clone()
            print_ = checksum(pristine)
            state.layers[path] = BakedLayer(layer, pristine, print_, print_)
        layer = state.layers[path]
        if layer.pristine.device != layer.module.weight.device:
            layer.pristine = layer.pristine.to(layer.module.weight.device)
        with torch.no_grad():
            if terms:
                delta = sum_maps(layer.pristine, terms)
                baked = (layer.pristine.float() + delta).to(layer.pristine.dtype)
                if baked.dtype != torch.float32:
                    lost += float((baked.float() - layer.pristine.float() - delta).norm()) ** 2
                    whole += float(delta.norm()) ** 2
                layer.module.weight.copy_(baked)
                layer.current = checksum(baked)
            else:
                layer.module.weight.copy_(layer.pristine)
                del state.layers[path]
    if state.adapters:
        module.__dict__["_sdatoms_baked"] = state
    else:
        module.__dict__.pop("_sdatoms_baked", None)
    if whole and (lost / whole) ** 0.5 > ROUNDING_WARNING:
        warnings.warn(
            f"rounding to the base's 16-bit weights loses {100 * (lost / whole) ** 0.5:.0f} % of the change; "
            "load the pipeline with torch_dtype=torch.float32 to keep it",
            stacklevel=4,
        )


def sum_maps(weight: Tensor, terms: list[tuple[float, LayerMap]]) -> Tensor:
    """`Σ s ΔW` in float32. Maps of one view are summed in float64 first, in the order given."""
    sums: dict[tuple[View, int], Tensor] = {}
    for strength, m in terms:
        key = (m.view(weight), m.transform.dim())
        part = strength * m.transform.to(weight.device)
        sums[key] = sums[key] + part if key in sums else part
    total = None
    for (view, _), transform in sorted(
        sums.items(), key=lambda item: (item[0][0].kind, item[0][0].block, item[0][1])
    ):
        part = apply_map(weight, view, transform.float())
        total = part if total is None else total + part
    assert total is not None
    return total


def checksum(weight: Tensor) -> int:
    """A sum over the raw bits, enough to notice a weight that somebody else wrote to."""
    bits = (
        weight.detach()
        .contiguous()
        .view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()])
    )
    return int(bits.sum(dtype=torch.int64))


def check_untouched(state: BakedModule) -> None:
    """Raise when somebody else changed a baked weight: a restore would then be wrong."""
    for path, layer in state.layers.items():
        weight = layer.module.weight
        if weight.is_meta:
            raise AtomError(
                f"the weight of {path!r} moved to the meta device (offload?); bring it back before changing adapters"
            )
        if weight.dtype != layer.pristine.dtype:
            raise AtomError(
                f"the weight of {path!r} was cast from {layer.pristine.dtype} to {weight.dtype} while adapters are baked in; "
                "cast it back, call clear(), then cast and load again"
            )
        if checksum(weight) != layer.current:
            raise AtomError(
                f"the weight of {path!r} was written to by something else (fuse_lora, load_state_dict?) while adapters "
                "are baked in; undo that (unfuse_lora), or reload the base model, before changing adapters"
            )


@contextmanager
def bake_injection(
    injection: Injection, tensors: Mapping[str, Tensor], component: str = "unet"
) -> Iterator[None]:
    """Bake `tensors` (as in an atom file) into an injected model for the time of a `with` block.

    The pictures painted inside equal, to the bit, those of a fresh base with the saved file loaded at strength 1.
    """
    from sdatoms.checkpoint import describe_layout

    layers = {
        f"{component}.{path}": describe_layout(layer) for path, layer in injection.layers.items()
    }
    import json

    file = AtomFile(injection.config, {"layers": json.dumps(layers)}, dict(tensors))
    kept = {}
    try:
        with torch.no_grad():
            for path, maps in file.maps(component).items():
                layer = injection.layers[path]
                kept[layer] = (layer.deltas, layer.weight.detach().clone())
                delta = sum_maps(layer.weight, [(1.0, m) for m in maps])
                layer.weight.copy_((layer.weight.float() + delta).to(layer.weight.dtype))
                layer.deltas = nn.ModuleDict()
        yield
    finally:
        with torch.no_grad():
            for layer, (deltas, weight) in kept.items():
                layer.deltas = deltas
                layer.weight.copy_(weight)
