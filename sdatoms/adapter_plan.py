"""What one atom file would change in one module, checked before anything is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from sdatoms.atom_file import AtomFile, LayerMap, clip
from sdatoms.baked import (
    Adapter,
    BakedModule,
    Strength,
    check_untouched,
    find_layer,
    list_held,
    read_pristine,
)
from sdatoms.errors import AtomError
from sdatoms.fingerprint import fingerprint, matches
from sdatoms.inject import carries_atoms
from sdatoms.side_by_side import work_side_by_side
from sdatoms.weights import LayerWeight

__all__ = ["plan_adapter", "warn_of_base"]


def plan_adapter(file: AtomFile, component: str, module: nn.Module, strength: Strength) -> Adapter:
    """The adapter that one component of the file is for `module`; nothing is changed.

    Raises:
        AtomError: a layer is missing, of another layout, or shares its weight; the module carries
            injected atoms, or somebody wrote to its baked weights; the atoms are sparse and were
            trained on other weights.
    """
    if carries_atoms(module):
        raise AtomError(
            f"this {type(module).__name__} carries injected atoms; eject them before loading a file"
        )
    state = module.__dict__.get("_sdatoms_baked") or BakedModule(component)
    check_untouched(module, state)
    holders = {layer.base.place: path for path, layer in state.layers.items()}
    maps = file.maps(component)
    for path, views in maps.items():
        layer = find_layer(module, path)
        check_fit(path, layer, views)
        holder = holders.setdefault(layer.place, path)
        if holder != path:
            raise AtomError(
                f"the layers {clip(holder)!r} and {clip(path)!r} share one weight; atoms fit it "
                "only once"
            )
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
    return Adapter(file.sha256, maps, strength, tuple(differing))


def check_fit(path: str, layer: LayerWeight, views: list[LayerMap]) -> None:
    """Refuse a layer whose weight is not there, neither floating-point nor quantized by
    bitsandbytes, or of another layout.
    """
    held, where = layer.held, f"the layer {clip(path)!r}"
    if held is None or held.is_meta:
        raise AtomError(
            f"the weight of {where} lies on the meta device; load the model's weights (or disable "
            "offload) first"
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
        if m.channels not in (None, groups * i):
            raise AtomError(
                f"{where} has {groups * i} input channels where the file's atoms have {m.channels}"
            )


def warn_of_base(file: AtomFile, plans: Sequence[Adapter]) -> None:
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
