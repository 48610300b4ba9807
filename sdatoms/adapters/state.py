"""What is baked into a module: its adapters, the pristine weights, and who else wrote to them.

It lives on the root module, as `BakedModule`: whoever shares the module shares it.

On layers whose weight is stored quantized adapters are attached, never baked in: baking would have
to quantize `W + ΔW` anew and lose most of the change. Instead an atom layer with the sum of the
adapters' maps stands in the base layer's place until the last of them is taken off.

Weights are checked and written side by side, each by one thread: no thread waits for another, and
no bit depends on how many there are. One lock a root module: threads that change adapters of
modules they share come one after another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sdatoms.adapters.keep import Keep, StoredWeight
from sdatoms.atoms.deltas import Delta
from sdatoms.atoms.lora import LoraMap
from sdatoms.atoms.maps import LayerMap
from sdatoms.atoms.strengths import Strength, read_strength, scale_strength
from sdatoms.errors import AtomError
from sdatoms.fingerprint import checksum
from sdatoms.layers.adopt import adopt
from sdatoms.layers.atom_layers import AtomLayer, replace_modules
from sdatoms.layers.fused import check_read
from sdatoms.layers.weights import BAKED, LayerWeight, find_weight, unwrap

__all__ = [
    "Adapter",
    "AttachedLayer",
    "BakedLayer",
    "BakedModule",
    "check_untouched",
    "find_state",
    "hold_alone",
    "list_held",
    "move_pristine",
    "open_state",
    "read_pristine",
    "work_side_by_side",
]


@dataclass(frozen=True)
class Adapter:
    """One loaded file on one module."""

    hash: str
    """The file's; sums are taken in the order of the hashes."""
    maps: Mapping[str, Sequence[LayerMap | LoraMap]]
    """Module path → maps at strength 1."""
    strength: Strength
    differing: tuple[str, ...] = ()
    """Layers whose pristine weight is not the one the file was trained on."""
    component: str = ""
    """What the module is called in names of strengths."""
    factor: float = 1.0
    """What a schedule multiplies the strength by now."""

    @property
    def present(self) -> Strength:
        """The strength as it is baked now."""
        return scale_strength(self.strength, self.factor)

    def strength_at(self, path: str) -> float:
        """The present strength of the layer at `path`."""
        return read_strength(self.present, path, self.component)


@dataclass
class BakedLayer:
    """A layer some adapter changes now."""

    base: LayerWeight
    kept: Tensor | StoredWeight
    """Its weight without adapters, or where that is read from."""
    current: int
    """Checksum of the weight as last written."""

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the pristine weight."""
        return self.kept.dtype

    @property
    def pristine(self) -> Tensor:
        """The weight without adapters, on the device of the weight; read from the base's file where
        no copy is kept.

        Raises:
            AtomError: the file is gone or another one.
        """
        kept, device = self.kept, self.weight.device
        if isinstance(kept, StoredWeight):
            return kept.read().to(device)
        if kept.device != device:
            self.kept = kept = kept.to(device)
        return kept


@dataclass
class BakedModule:
    """All adapters of one root module; `find_state` and `open_state` keep it there."""

    component: str
    """What the module is called in keys, such as `unet`."""
    adapters: dict[str, Adapter] = field(default_factory=dict)
    layers: dict[str, BakedLayer | AttachedLayer] = field(default_factory=dict)
    origins: dict[str, int] = field(default_factory=dict)
    """Checksums of the pristine weights since the first load; they outlive the last adapter."""
    keep: Keep = "memory"
    """Where pristine weights of layers baked from now on are kept."""
    stored: dict[str, StoredWeight] = field(default_factory=dict)
    """Pristine weights that the base's files hold."""

    def __bool__(self) -> bool:
        """Whether any adapter is loaded."""
        return bool(self.adapters)


LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()  # pyright: ignore
"""Beside the modules and not in them: locks can be neither copied nor saved."""
OPENING = threading.Lock()
"""Held for the moment it takes to find or make a lock."""


@contextmanager
def hold_alone(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Keep other threads from the adapters of these modules; always in one order, so that two
    threads never wait for each other. A thread may hold a module more than once."""
    ordered = sorted({unwrap(root) for root in roots}, key=id)
    with OPENING:
        locks = [LOCKS.setdefault(root, threading.RLock()) for root in ordered]
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(lock)
        yield


def find_state(root: nn.Module) -> BakedModule | None:
    """What was ever baked into the module; None when nothing was."""
    state = unwrap(root).__dict__.get(BAKED)
    return state if isinstance(state, BakedModule) else None


def open_state(root: nn.Module, component: str) -> BakedModule:
    """The module's state; a new one when no adapter is loaded."""
    state = find_state(root)
    if not state:
        state = unwrap(root).__dict__[BAKED] = BakedModule(component)
    return state


def read_pristine(root: nn.Module, path: str) -> Tensor:
    """The weight at `path` without the adapters that are baked into it now."""
    state = find_state(root)
    baked = state.layers.get(path) if state is not None else None
    return baked.pristine if baked else find_weight(root, path).weight


def move_pristine(root: nn.Module) -> None:
    """Move pristine copies to where their weights lie now; else the next change does."""
    state = find_state(root)
    with hold_alone([root]):
        for layer in state.layers.values() if state is not None else ():
            if isinstance(layer, BakedLayer) and isinstance(layer.kept, Tensor):
                layer.kept = layer.kept.to(layer.weight.device)


def list_held(root: nn.Module, paths: Iterable[str]) -> list[Tensor]:
    """The parameters at `paths` as they are stored."""
    held = (find_weight(root, path).held for path in paths)
    return [parameter for parameter in held if parameter is not None]


def check_untouched(root: nn.Module, state: BakedModule) -> None:
    """Raise when somebody else changed a baked weight, or the model computes with a copy of it: a
    restore would then be wrong."""
    loaded = dict.fromkeys(path for adapter in state.adapters.values() for path in adapter.maps)
    check_read(root, loaded, "before changing adapters")
    baked: dict[str, BakedLayer] = {}
    for path, layer in state.layers.items():
        try:
            found = find_weight(root, path)
        except AtomError:
            found = None
        stands = layer.layer if isinstance(layer, AttachedLayer) else layer.base.module
        if found is None or found.module is not stands:
            raise AtomError(
                f"the layer {path!r} was replaced by something else while adapters are baked in; "
                "put it back, or reload the base model, before changing adapters"
            )
        if found.held is None or found.held.is_meta:
            raise AtomError(
                f"the weight of {path!r} moved to the meta device (offload?); bring it back before "
                "changing adapters"
            )
        if isinstance(layer, AttachedLayer):
            continue
        weight = layer.weight
        if weight.dtype != layer.dtype:
            raise AtomError(
                f"the weight of {path!r} was cast from {layer.dtype} to {weight.dtype} "
                "while adapters are baked in; cast it back (or reload the base model, if that lost "
                "bits), call clear(), then cast and load again"
            )
        if isinstance(layer.kept, StoredWeight):
            layer.kept.check()
        baked[path] = layer
    weights = [layer.weight for layer in baked.values()]
    for (path, layer), found in zip(
        baked.items(), work_side_by_side(checksum, weights, weights), strict=True
    ):
        if found != layer.current:
            raise AtomError(
                f"the weight of {path!r} was written to by something else (fuse_lora, "
                "load_state_dict?) while adapters are baked in; undo that (unfuse_lora), or reload "
                "the base model, before changing adapters"
            )


@dataclass
class AttachedLayer:
    """A layer some adapter changes now without a change of its weight, quantized or asked for, and
    the atom layer that stands in its place."""

    base: LayerWeight
    layer: AtomLayer = field(init=False)

    def __post_init__(self) -> None:
        self.layer = adopt(self.base.module)

    @property
    def pristine(self) -> Tensor:
        """The base's weight as floating-point numbers."""
        return self.base.weight

    def attach(self, root: nn.Module, deltas: Mapping[str, Delta]) -> None:
        """Let the layer carry these deltas and no others."""
        self.layer.deltas = nn.ModuleDict(dict(deltas))
        replace_modules(root, {self.base.module: self.layer})

    def detach(self, root: nn.Module) -> None:
        """Put the base layer back."""
        replace_modules(root, {self.layer: self.base.module})


ENOUGH = 1 << 22
"""Numbers from which on several threads are worth starting."""


Item = TypeVar("Item")
Result = TypeVar("Result")


def work_side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], weights: Iterable[Tensor]
) -> list[Result]:
    """`work` on every item, the results in their order.

    Args:
        weights: what the items read; only plain numbers on the CPU are shared out.
    """
    threads, mode = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def run(item: Item) -> Result:
        with torch.inference_mode(mode):  # a thread of its own knows nothing of the caller's
            return work(item)

    held = list(weights)
    plain = all(w.device.type == "cpu" and w.is_floating_point() for w in held)
    try:
        if threads > 1 and plain and sum(w.numel() for w in held) >= ENOUGH:
            with ThreadPoolExecutor(threads, "sdatoms", torch.set_num_threads, (1,)) as pool:
                return list(pool.map(run, items))
        torch.set_num_threads(1)
        return [run(item) for item in items]
    finally:
        torch.set_num_threads(threads)
