"""Whether an atom file fits a model, whether it was trained on it, and what it would change there.

All of it is known before anything is loaded: `plan_file` checks every layer and gives the adapter
that `AdapterSet.load` bakes; `judge_fit` looks at a few layers only, for lists of files.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from sdatoms.adapters.lora import check_lora_fit, place_lora
from sdatoms.adapters.state import (
    Adapter,
    BakedModule,
    check_untouched,
    find_state,
    list_held,
    read_pristine,
    work_side_by_side,
)
from sdatoms.atoms.maps import LayerMap
from sdatoms.atoms.strengths import Strength
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import AtomFile
from sdatoms.files.lora_file import LoraFile
from sdatoms.fingerprint import fingerprint, matches
from sdatoms.layers.fused import check_read
from sdatoms.layers.inject import carries_atoms
from sdatoms.layers.weights import LayerWeight, find_weight, unwrap

__all__ = [
    "Fit",
    "choose_modules",
    "fingerprint_base",
    "judge_fit",
    "list_modules",
    "plan_file",
    "same_base",
    "warn_of_base",
]


def plan_file(
    file: AtomFile | LoraFile,
    target: Any,
    *,
    component: str | None = None,
    strength: Strength = 1.0,
) -> dict[str, tuple[nn.Module, Adapter]]:
    """Component → its module in `target`, and the adapter the file is for it; nothing is changed.

    Args:
        target: a pipeline, or one module.
        component: the only one meant; None takes all of the file's.

    Raises:
        AtomError: as in `plan_adapter`, or there is no such component.
    """
    if isinstance(file, LoraFile):
        return plan_lora(file, target, component, strength)
    modules = choose_modules(target, file, component)
    return {c: (module, plan_adapter(file, c, module, strength)) for c, module in modules.items()}


def plan_adapter(file: AtomFile, component: str, module: nn.Module, strength: Strength) -> Adapter:
    """The adapter that one component of the file is for `module`; nothing is changed.

    Raises:
        AtomError: a layer is missing, of another layout, passed by for a fused copy, or shares its
            weight; the module carries injected atoms, or somebody wrote to its baked weights; the
            atoms are sparse and were trained on other weights.
    """
    check_free(component, module)
    maps = file.maps(component)
    for path, views in maps.items():
        check_fit(path, find_weight(module, path), views)
    check_read(module, maps, "before loading a file")
    check_places(component, module, maps)
    prints = file.fingerprints.get(component, {})
    known = [path for path in prints if path in maps]
    found = work_side_by_side(
        lambda path: fingerprint(read_pristine(module, path)), known, list_held(module, known)
    )
    pairs = zip(known, found, strict=True)
    differing = [path for path, numbers in pairs if not matches(prints[path], numbers)]
    unknown = [path for path in maps if path not in prints]
    if file.config.decomposition == "sparse" and (differing or unknown):
        # Codes of other weights are other numbers: the delta would be noise, not a shifted style.
        base = clip(file.metadata.get("base_model", "unknown"))
        raise AtomError(
            f"the weights of {len(differing) + len(unknown)} of {len(maps)} layers are not those "
            f"these sparse atoms were trained on ({base}), first "
            f"{clip((differing + unknown)[0])!r}; load the file on its own base"
        )
    return Adapter(file.sha256, maps, strength, tuple(differing), component)


def plan_lora(
    file: LoraFile, target: Any, component: str | None, strength: Strength
) -> dict[str, tuple[nn.Module, Adapter]]:
    """Component → its module and the adapter that a LoRA is for it; nothing is changed.

    Raises:
        AtomError: a layer is missing, of another shape, passed by for a fused copy or shares its
            weight, or the file changes no such component; else as in `plan_adapter`.
    """
    modules = list_modules(target)
    placed = place_lora(file, modules)
    if component is not None and component not in placed:
        raise AtomError(
            f"the file holds no component {clip(component)!r}; it holds {', '.join(placed)}"
        )
    plans = {}
    for owner in placed if component is None else [component]:
        module, maps = modules.get(owner, modules.get("")), placed[owner]
        assert module is not None
        check_free(owner, module)
        for path, map in maps.items():
            check_lora_fit(path, find_weight(module, path), map)
        check_read(module, maps, "before loading a file")
        check_places(owner, module, maps)
        listed = {path: [map] for path, map in maps.items()}
        plans[owner] = (module, Adapter(file.sha256, listed, strength, (), owner))
    return plans


def check_free(component: str, module: nn.Module) -> None:
    """Refuse a module that carries injected atoms, or to whose baked weights somebody wrote."""
    if carries_atoms(module):
        raise AtomError(
            f"this {type(module).__name__} carries injected atoms; eject them before loading a file"
        )
    check_untouched(module, find_state(module) or BakedModule(component))


def check_places(component: str, module: nn.Module, paths: Iterable[str]) -> None:
    """Refuse layers that share one weight, among these and those that adapters change now."""
    state = find_state(module) or BakedModule(component)
    holders = {layer.base.place: path for path, layer in state.layers.items()}
    for path in paths:
        holder = holders.setdefault(find_weight(module, path).place, path)
        if holder != path:
            raise AtomError(
                f"the layers {clip(holder)!r} and {clip(path)!r} share one weight; atoms fit it "
                "only once"
            )


def check_fit(path: str, layer: LayerWeight, views: list[LayerMap]) -> None:
    """Refuse a layer whose weight is not there, neither floating-point of 16 bits or more nor
    quantized by bitsandbytes, or of another layout.
    """
    held, where = layer.held, f"the layer {clip(path)!r}"
    if held is None or held.is_meta:
        raise AtomError(
            f"the weight of {where} lies on the meta device; load the model's weights (or disable "
            "offload) first"
        )
    if layer.coarse:
        raise AtomError(
            f"the weight of {where} is stored as {held.dtype}, whose rounding is larger than what "
            "atoms change; load the model in 16 or 32 bits, the file next, and enable layerwise "
            "casting, if at all, after that"
        )
    if layer.quantized == held.is_floating_point():
        raise AtomError(
            f"the weight of {where} is stored as {held.dtype}; atoms fit floating-point weights "
            "and those that bitsandbytes has quantized"
        )
    if layer.quantized and any(m.book for m in views):
        raise AtomError(
            f"the weight of {where} is quantized; sparse atoms fit floating-point weights only"
        )
    kernel, groups, shape = layer.shape[2:], layer.groups, layer.shape
    for m in views:
        if kernel != m.kernel or groups != m.groups:
            raise AtomError(
                f"{where} has kernel {kernel} in {groups} groups where the file's atoms have "
                f"{m.kernel} in {m.groups}"
            )
        (o, i), (bo, bi) = (shape[0] // groups, shape[1]), m.block
        if o % bo or i % bi:
            raise AtomError(f"{where} has {o}×{i} channels, which {bo}×{bi} blocks do not divide")
        if (m.shared or m.own) and i != bi:
            raise AtomError(f"{where} has rows of {i} where the file's shared atoms have {bi}")
        if m.factors and m.factors[0].dim() == 3:
            counts = tuple(len(factor) for factor in m.factors)
            if counts != (shape[0] // bo, groups * i // bi):
                raise AtomError(
                    f"{where} has {shape[0] // bo} and {groups * i // bi} blocks of channels where "
                    f"the file's atoms have {counts[0]} and {counts[1]}"
                )
        if m.own and len(m.own[0]) != (rows := shape[0] * math.prod(kernel)):
            raise AtomError(f"{where} has {rows} rows where the file's atoms have {len(m.own[0])}")
        if m.channels not in (None, groups * i):
            raise AtomError(
                f"{where} has {groups * i} input channels where the file's atoms have {m.channels}"
            )


def warn_of_base(file: AtomFile | LoraFile, plans: Sequence[Adapter]) -> None:
    """Warn once when layers differ from those the file was trained on."""
    differing = sum(len(plan.differing) for plan in plans)
    if differing:
        layers = sum(len(plan.maps) for plan in plans)
        base = clip(file.metadata.get("base_model", "unknown"))
        warnings.warn(
            f"the weights of {differing} of {layers} layers differ from the base these atoms were "
            f"trained on ({base}); the picture will differ from the trained one",
            stacklevel=4,
        )


SAMPLES = 6
"""Layers whose fingerprint is compared; enough to tell bases apart, and quick on large ones."""


class Fit(NamedTuple):
    """What `judge_fit` found."""

    verdict: Literal["fits", "other base", "does not fit"]
    reason: str


def judge_fit(file: AtomFile | LoraFile, pipe: Any) -> Fit:
    """Compare a file's layout with the pipeline's layers, and a few fingerprints with its weights.

    Layers that carry adapters are judged by their pristine weights.
    """
    try:
        if isinstance(file, LoraFile):
            modules = list_modules(pipe)
            for component, maps in place_lora(file, modules).items():
                for path, map in maps.items():
                    check_lora_fit(path, find_weight(modules[component], path), map)
            return Fit("fits", "every layer fits; LoRA files do not say which weights they are for")
        for component, module in choose_modules(pipe, file, None).items():
            maps = file.maps(component)
            for path, views in maps.items():
                check_fit(path, find_weight(module, path), views)
            prints = file.fingerprints.get(component, {})
            for path in spread([path for path in prints if path in maps]):
                if not matches(prints[path], fingerprint(read_pristine(module, path))):
                    trained = file.metadata.get("base_model", "another base")
                    return Fit("other base", f"trained on {trained}; pictures will differ")
    except AtomError as error:
        return Fit("does not fit", str(error))
    return Fit("fits", "trained on this base" if file.fingerprints else "every layer fits")


def fingerprint_base(pipe: Any) -> dict[str, list[float]]:
    """Module path → fingerprint of a few weights of the UNet, without adapters."""
    weights = {
        name.removesuffix(".weight"): parameter
        for name, parameter in pipe.unet.named_parameters()
        if name.endswith(".weight") and parameter.dim() == 4 and not name.startswith("_")
    }
    return {path: fingerprint(read_pristine(pipe.unet, path)) for path in spread(list(weights))}


def same_base(stored: dict[str, list[float]], found: dict[str, list[float]]) -> bool:
    """Whether two such tables are of one base, up to a cast to 16 bits."""
    return stored.keys() == found.keys() and all(matches(stored[p], found[p]) for p in stored)


def spread(paths: list[str]) -> list[str]:
    """At most `SAMPLES` of them, first and last included."""
    if len(paths) <= SAMPLES:
        return paths
    return [paths[k * (len(paths) - 1) // (SAMPLES - 1)] for k in range(SAMPLES)]


def list_modules(target: Any) -> dict[str, nn.Module]:
    """The modules of a pipeline by name; one module stands alone under an empty name.

    Compiled modules are seen through: adapters belong to what was compiled.
    """
    if isinstance(target, nn.Module):
        return {"": unwrap(target)}
    named = getattr(target, "components", None)
    named = named if isinstance(named, Mapping) else getattr(target, "__dict__", {})
    return {name: unwrap(m) for name, m in named.items() if isinstance(m, nn.Module)}


def choose_modules(target: Any, file: AtomFile, component: str | None) -> dict[str, nn.Module]:
    """Component name → module for every component of the file that is to be loaded."""
    held = ", ".join(file.components)
    wanted = file.components if component is None else (component,)
    for owner in wanted:
        if owner not in file.components:
            raise AtomError(f"the file holds no component {owner!r}; it holds {held}")
    if isinstance(target, nn.Module):
        if len(wanted) != 1:
            raise AtomError(
                f"the file holds {held}; pass the pipeline, or component= to choose one for this "
                "module"
            )
        return dict.fromkeys(wanted, unwrap(target))
    modules = list_modules(target)
    for owner in wanted:
        if owner not in modules:
            raise AtomError(
                f"this {type(target).__name__} has no module {owner!r} that the file's atoms could "
                "fit"
            )
    return {owner: modules[owner] for owner in wanted}
