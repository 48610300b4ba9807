"""Load atom files into a pipeline or a module, mix them by strength, and take them out again.

Adapters are baked into the plain weights, `W' = W + Σ_k s_k ΔW_k`, so that generation is the base's
own code at the base's own speed. The pristine weights of the layers they change are kept on their
device for an exact restore, or read anew from the base's files (`keep.py`).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from sdatoms.adapters.bake import all_or_nothing, rebake
from sdatoms.adapters.changes import form_delta
from sdatoms.adapters.keep import (
    Keep,
    check_keep,
    choose_keep,
    describe_keep,
    find_free,
    find_stored,
)
from sdatoms.adapters.plan import list_modules, plan_file, warn_of_base
from sdatoms.adapters.state import (
    Adapter,
    BakedLayer,
    BakedModule,
    check_untouched,
    find_state,
    hold_alone,
    list_held,
    open_state,
    work_side_by_side,
)
from sdatoms.adapters.words import add_word, check_word, list_words, remove_word
from sdatoms.atoms.schedules import Schedule
from sdatoms.atoms.strengths import Strength, check_names, check_strength
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import AtomFile
from sdatoms.files.lora_file import LoraFile
from sdatoms.files.sources import fetch_file
from sdatoms.fingerprint import checksum
from sdatoms.layers.weights import find_weight

__all__ = [
    "AdapterSet",
    "load_atoms",
]

logger = logging.getLogger(__name__)


ROUNDING_WARNING = 0.1
STEPPED = ("unet", "transformer", "model")
"""Components that run at every denoising step."""


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def one_at_a_time(
    method: Callable[Concatenate[AdapterSet, Arguments], Result],
) -> Callable[Concatenate[AdapterSet, Arguments], Result]:
    """The method, run while no other thread is in one of a set that shares a module with this."""

    @wraps(method)
    def run(adapters: AdapterSet, *values: Arguments.args, **named: Arguments.kwargs) -> Result:
        with hold_alone(list_modules(adapters.target).values()):
            return method(adapters, *values, **named)

    return run


class AdapterSet:
    """The adapters baked into a pipeline's modules (or into one module); made by `load_atoms`.

    The adapters belong to the modules: every set on a module, and on every pipeline that shares it,
    shows the same ones. Sets may be used from several threads; a picture painted while another
    thread changes strengths is the painter's own risk.
    """

    def __init__(self, target: Any) -> None:
        self.target = target

    def _states(self) -> dict[str, tuple[nn.Module, BakedModule]]:
        """Component → module and what was ever baked into it, for the target as it is now."""
        found: dict[str, tuple[nn.Module, BakedModule]] = {}
        for name, module in list_modules(self.target).items():
            state = find_state(module)
            if state is not None:
                found[name or state.component] = (module, state)
        return found

    @property
    @one_at_a_time
    def names(self) -> tuple[str, ...]:
        """Adapters in the order of loading."""
        states = self._states().values()
        return tuple(dict.fromkeys(name for _, state in states for name in state.adapters))

    @property
    @one_at_a_time
    def strengths(self) -> dict[str, Strength]:
        """Adapter → strength."""
        states = self._states().values()
        return {name: a.strength for _, state in states for name, a in state.adapters.items()}

    @one_at_a_time
    def load(
        self,
        path: str | os.PathLike[str] | AtomFile | LoraFile,
        *,
        name: str | None = None,
        strength: Strength = 1.0,
        component: str | None = None,
        keep_weights: Keep = "auto",
        **hub: Any,
    ) -> AdapterSet:
        """Bake one more atom file, or LoRA, in. Arguments and errors are those of `load_atoms`."""
        check_keep(keep_weights)
        file, stem = fetch_file(path, hub)
        name = check_name(name or stem)
        strength = check_strength(strength, f"the strength of {name!r}")
        if name in self.names:
            raise AtomError(
                f"an adapter named {name!r} is already loaded; remove it or give another name"
            )
        plans = plan_file(file, self.target, component=component, strength=strength)
        brings = component is None and bool(file.embeddings)
        if brings:
            check_word(self.target, file.metadata["tokens"], file.embeddings)
        layers = {owner: adapter.maps for owner, (_, adapter) in plans.items()}
        check_names(strength, layers, f"the strength of {name!r}")
        warn_of_base(file, [adapter for _, adapter in plans.values()])
        states = [
            (module, open_state(module, owner), adapter)
            for owner, (module, adapter) in plans.items()
        ]
        lost = 0.0
        with all_or_nothing((module, state) for module, state, _ in states):
            for module, state, adapter in states:
                new = [path for path in adapter.maps if path not in state.origins]
                bits = lambda path, root=module: checksum(find_weight(root, path).bits)
                sums = work_side_by_side(bits, new, list_held(module, new))
                state.origins |= zip(new, sums, strict=True)
                settle_keep(module, state, adapter, keep_weights)
                state.adapters[name] = adapter
                lost = max(lost, rebake(module, state, adapter.maps))
            report_rounding(lost)
            if brings:
                add_word(self.target, name, file.metadata["tokens"], file.embeddings)
        return self

    @one_at_a_time
    def set_strengths(self, strengths: Mapping[str, Strength]) -> AdapterSet:
        """Change strengths by name; names not mentioned keep theirs."""
        if not isinstance(strengths, Mapping):
            raise AtomError(
                "set_strengths takes a table of names and strengths, such as {'dog': 0.5}; it was "
                f"given a {type(strengths).__name__}"
            )
        for name in strengths:
            self._check_name(name)
        checked = {
            name: check_strength(value, f"the strength of {name!r}")
            for name, value in strengths.items()
        }
        for name, strength in checked.items():
            check_names(strength, self._list_layers(name), f"the strength of {name!r}")
        self._change(
            lambda _, name, adapter: replace(adapter, strength=checked.get(name, adapter.strength)),
            report_rounding,
        )
        return self

    @one_at_a_time
    def follow(self, schedules: Mapping[str, Schedule], fraction: float | None) -> AdapterSet:
        """Bake the strengths that schedules give at a fraction of the denoising steps.

        Modules that run once beside the steps, such as text encoders, have the schedule's peak.
        `strengths` stays what it was; see `sdatoms.adapters.scheduled`.

        Args:
            schedules: by adapter; the strengths of others are left alone.
            fraction: from 0 to below 1; None: every adapter's own strength again.
        """

        def move(component: str, name: str, adapter: Adapter) -> Adapter:
            if name not in schedules:
                return adapter
            if fraction is None:
                return replace(adapter, factor=1.0)
            stepped = component in STEPPED
            schedule = schedules[name]
            return replace(adapter, factor=schedule.at(fraction) if stepped else schedule.peak)

        self._change(move)
        return self

    def _change(
        self,
        change: Callable[[str, str, Adapter], Adapter],
        report: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Replace adapters by what `change(component, name, adapter)` makes of them, and bake the
        layers whose strength is another then; all or none.

        Args:
            report: is told the share of the change that is lost to rounding, and may refuse.
        """
        states, lost = self._check_states(), 0.0
        with all_or_nothing(states):
            for module, state in states:
                touched: dict[str, None] = {}
                for name, before in list(state.adapters.items()):
                    after = state.adapters[name] = change(state.component, name, before)
                    touched |= {
                        path: None
                        for path in before.maps
                        if before.strength_at(path) != after.strength_at(path)
                    }
                lost = max(lost, rebake(module, state, touched))
            report(lost)

    @one_at_a_time
    def remove(self, name: str) -> AdapterSet:
        """Take one adapter out; layers no other adapter touches are their pristine selves again."""
        self._check_name(name)
        states = self._check_states()
        with all_or_nothing(states):
            for module, state in states:
                if name in state.adapters:
                    rebake(module, state, state.adapters.pop(name).maps)
        remove_word(self.target, name)
        return self

    @one_at_a_time
    def clear(self) -> None:
        """Take all adapters out: every base weight back, bit for bit, pristine copies freed."""
        states = self._check_states()
        with all_or_nothing(states):
            for module, state in states:
                state.adapters.clear()
                rebake(module, state, state.layers)
        for name in list_words(self.target):
            remove_word(self.target, name)

    @one_at_a_time
    def delta(self, name: str, path: str) -> Tensor:
        """Unit-strength `ΔW` of one layer in float32.

        Args:
            name: the adapter.
            path: module path; `component.` stands in front where several components have it.

        Raises:
            AtomError: no such adapter, or it changes no such layer.
        """
        self._check_name(name)
        found: list[tuple[nn.Module, BakedModule, str]] = []
        for component, (module, state) in self._states().items():
            if name in state.adapters:
                maps = state.adapters[name].maps
                prefix, rest = path.split(".", 1) if "." in path else ("", path)
                if prefix == component and rest in maps:
                    found = [(module, state, rest)]
                    break
                if path in maps:
                    found.append((module, state, path))
        if len(found) != 1:
            which = "several layers" if found else "no layer"
            raise AtomError(f"the adapter {name!r} changes {which} {clip(path)!r}")
        module, state, inner = found[0]
        return form_delta(module, inner, state.adapters[name].maps[inner])

    @one_at_a_time
    def verify_base(self) -> bool:
        """Whether the weights, with adapters taken off, equal those found at the first load.

        Bit for bit, over all layers an adapter was loaded for since then.
        """
        for module, state in self._check_states():
            for path, origin in state.origins.items():
                baked = state.layers.get(path)
                plain = not isinstance(baked, BakedLayer)
                bits = find_weight(module, path).bits if plain else baked.pristine
                if checksum(bits) != origin:
                    return False
        return True

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            raise AtomError(
                f"no adapter is named {name!r}; loaded are {', '.join(self.names) or 'none'}"
            )

    def _list_layers(self, name: str) -> dict[str, Collection[str]]:
        """Component → module paths that an adapter changes."""
        return {
            component: state.adapters[name].maps
            for component, (_, state) in self._states().items()
            if name in state.adapters
        }

    def _check_states(self) -> list[tuple[nn.Module, BakedModule]]:
        """All modules, after a check of all, so that a failed call changes none."""
        states = list(self._states().values())
        for module, state in states:
            check_untouched(module, state)
        return states

    def __repr__(self) -> str:
        rows = ", ".join(f"{name}={strength}" for name, strength in self.strengths.items())
        return f"AdapterSet({rows})"


def load_atoms(
    target: Any,
    path: str | os.PathLike[str] | AtomFile | LoraFile,
    *,
    name: str | None = None,
    strength: Strength = 1.0,
    component: str | None = None,
    keep_weights: Keep = "auto",
    **hub: Any,
) -> AdapterSet:
    """Bake an atom file into a pipeline, or into one module; return the set of adapters there.

    Args:
        target: a diffusers pipeline, or one module when the file holds one component (else name
            `component`).
        path: an atom file, or a LoRA as diffusers or kohya spell it; an `AtomFile`; or a hub id
            with `weight_name`, `revision`, `token` as in `load_lora_weights`.
        name: defaults to the file's stem.
        strength: any finite number; 0 is the base exactly. Or numbers by UNet block, component,
            module path or pattern, such as `{"down": 0.2, "up.1": 0.7, "*attn2*": 0}`.
        component: which module of the pipeline, or which component of the file, is meant.
        keep_weights: where the pristine weights of layers that this file is the first to change are
            kept: "memory", "file" (the base's own, read anew when needed), or "attach", which bakes
            nothing; "auto" decides by free memory. See `sdatoms.adapters.keep`.

    Raises:
        AtomError: the file is unusable or fits no layer; the name is taken; the weights were
            changed by others. Nothing is changed.
    """
    return AdapterSet(target).load(
        path,
        name=name,
        strength=strength,
        component=component,
        keep_weights=keep_weights,
        **hub,
    )


def check_name(name: Any) -> str:
    """An adapter's name.

    Raises:
        AtomError: it is no text.
    """
    if not isinstance(name, str):
        raise AtomError(f"an adapter is named {clip(repr(name), 60)}; it takes a text")
    return name


def settle_keep(module: nn.Module, state: BakedModule, adapter: Adapter, keep: Keep) -> None:
    """Decide where the layers that no adapter has changed yet keep their pristine weights, and tell
    it in one line where it is not in memory.

    Raises:
        AtomError: the base's files were asked for, and hold none of the weights.
    """
    fresh = {p: find_weight(module, p) for p in adapter.maps if p not in state.layers}
    plain = {path: base for path, base in fresh.items() if not base.quantized}
    need = sum(base.weight.numel() * base.weight.element_size() for base in plain.values())
    device = next((base.weight.device for base in plain.values()), torch.device("cpu"))
    free = find_free(device) if keep == "auto" else None
    if keep == "file" or (keep == "auto" and choose_keep(need, free, stored=True) != "memory"):
        state.stored |= find_stored(module, plain)
    if keep == "file" and plain and not any(path in state.stored for path in plain):
        raise AtomError(
            "keep_weights 'file' needs a base opened from safetensors, whose weights "
            "are as they were loaded; take 'memory' or 'attach'"
        )
    stored = all(path in state.stored for path in plain)
    state.keep = choose_keep(need, free, stored=stored) if keep == "auto" else keep
    if keep == "auto" and state.keep != "memory":
        logger.warning(describe_keep(state.keep, need, free))


def report_rounding(lost: float) -> None:
    """Tell what 16-bit weights swallow of the change, and warn when it is much."""
    if lost:
        logger.info("rounding to 16-bit weights loses %.2f %% of the change", 100 * lost)
    if lost > ROUNDING_WARNING:
        warnings.warn(
            f"rounding to the base's 16-bit weights loses {100 * lost:.0f} % of the change; load "
            "the pipeline with torch_dtype=torch.float32 to keep it",
            stacklevel=5,
        )
