"""Where a pipeline's weights lie while it works: on the GPU, or fetched part by part.

`choose_placement` decides from sizes alone; `place` carries it out with diffusers' own hooks:

- none: all weights on the device.
- model: one component at a time (`enable_model_cpu_offload`).
- group: one layer at a time, the next one fetched meanwhile (`enable_group_offload`).
- sequential: one layer at a time, nothing kept (`enable_sequential_cpu_offload`).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from sdatoms.adapters.state import move_pristine
from sdatoms.errors import AtomError, first_line

__all__ = [
    "FIXED",
    "OFFLOADS",
    "Offload",
    "PipelineSize",
    "Placement",
    "choose_placement",
    "estimate_peak",
    "find_free_memory",
    "find_placement",
    "lift",
    "measure_pipeline",
    "place",
]

Offload = Literal["auto", "none", "model", "sequential", "group"]
OFFLOADS: tuple[Offload, ...] = get_args(Offload)

PIXEL = 2250
"""Bytes a pixel takes at the peak, for each byte a number has: about nine maps of 256 channels at
full size in the autoencoder's decoder. An estimate from its shapes, on the safe side."""
FIXED = 800 << 20
"""Bytes that a device's libraries and the UNet's own activations take beside."""
TILE = 512
"""Side in px of the tiles that the autoencoder works in when it is told to."""
GROUP_HOOKS = ("_GROUP_OFFLOADING", "_LAYER_EXECUTION_TRACKER", "_LAZY_PREFETCH_GROUP_OFFLOADING")
"""Where diffusers keeps the names of the hooks that `enable_group_offload` adds."""
PIPELINED = 3
"""Layers that lie on the device at once while groups are fetched."""


@dataclass(frozen=True)
class PipelineSize:
    """What memory a pipeline takes, in bytes."""

    parts: Mapping[str, int]
    """Component → bytes of its weights."""
    largest_layer: int
    side: int
    """Native side in px."""
    itemsize: int
    """Bytes of one number while it works."""


@dataclass(frozen=True)
class Placement:
    """Where weights lie, and why."""

    offload: Offload
    tiling: bool
    """Whether the autoencoder works in tiles of 512 px."""
    reason: str


def estimate_peak(size: PipelineSize, offload: Offload, *, tiling: bool = False) -> int:
    """Bytes on the device while one picture of the native size is painted.

    The weights that lie there at once, and the largest activations.
    """
    side = min(size.side, TILE) if tiling else size.side
    work = side**2 * PIXEL * size.itemsize + FIXED
    if offload == "model":  # the UNet is away while pictures are decoded
        return max(max(size.parts.values(), default=0) + FIXED, size.parts.get("vae", 0) + work)
    weights = {
        "none": sum(size.parts.values()),
        "group": PIPELINED * size.largest_layer,
        "sequential": size.largest_layer,
    }
    return work + weights[offload]


def choose_placement(size: PipelineSize, free: int | None, wanted: Offload = "auto") -> Placement:
    """The fastest placement that fits.

    Args:
        size: what the pipeline takes.
        free: bytes free on the device; None where it is the machine's own memory.
        wanted: what was asked for; "auto" leaves it to the sizes.
    """
    if free is None:
        chosen = "none" if wanted == "auto" else wanted
        return Placement(chosen, False, "the weights stay in the machine's memory")
    order: tuple[tuple[Offload, bool], ...] = (
        ("none", False),
        ("none", True),
        ("model", False),
        ("model", True),
        ("group", True),
        ("sequential", True),
    )
    tried = [pair for pair in order if wanted in ("auto", pair[0])]
    for last, (offload, tiling) in enumerate(tried, 1 - len(tried)):
        peak = estimate_peak(size, offload, tiling=tiling)
        if peak <= free or not last:
            return Placement(offload, tiling, describe(size, offload, tiling, peak, free))
    raise AssertionError(f"{wanted!r} is none of {OFFLOADS}")


def describe(size: PipelineSize, offload: Offload, tiling: bool, peak: int, free: int) -> str:
    """One line: what is done, what it takes, what there is."""
    what = {
        "none": "all weights lie on the device",
        "model": "one component at a time lies on the device",
        "group": "layers are fetched to the device in groups",
        "sequential": "layers are fetched to the device one by one",
    }[offload]
    tiles = f", pictures are decoded in tiles of {TILE} px" if tiling and size.side > TILE else ""
    over = "" if peak <= free else ", which may not be enough"
    return f"{what}{tiles}: about {show(peak)} of {show(free)} free{over}"


def show(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def measure_pipeline(pipe: Any, side: int) -> PipelineSize:
    """Sizes of a pipeline's components and of its largest layer."""
    modules = {n: c for n, c in pipe.components.items() if isinstance(c, nn.Module)}
    parts = {
        name: sum(p.numel() * p.element_size() for p in module.parameters())
        for name, module in modules.items()
    }
    layers = [
        sum(p.numel() * p.element_size() for p in layer.parameters(recurse=False))
        for module in modules.values()
        for layer in module.modules()
    ]
    vae = getattr(pipe, "vae", None)
    upcast = vae is not None and vae.config.get("force_upcast") and vae.dtype == torch.float16
    itemsize = 4 if upcast or vae is None else vae.dtype.itemsize
    return PipelineSize(parts, max(layers, default=0), side, itemsize)


def find_free_memory(device: torch.device) -> int | None:
    """Bytes free on a GPU, this process's unused cache included; None elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached


def place(pipe: Any, placement: Placement, device: torch.device) -> Any:
    """Move a pipeline whose weights lie in the machine's memory, or give it diffusers' hooks.

    `find_placement` then tells how it was placed.

    Raises:
        AtomError: this pipeline cannot be placed so.
    """
    pipe._sdatoms_placement = placement
    vae = getattr(pipe, "vae", None)
    if vae is not None:
        vae.enable_slicing()  # pictures of a batch decoded at once would be its peak of memory
        if placement.tiling:
            scale = 2 ** (len(vae.config.block_out_channels) - 1)
            vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // scale
            vae.enable_tiling()
    try:
        if placement.offload == "none":
            return pipe.to(device)
        if placement.offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif placement.offload == "sequential" and device.type == "cpu":
            fetch_layers(pipe, device)
        elif placement.offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            pipe.enable_group_offload(
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=device.type == "cuda",
            )
    except (ImportError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise AtomError(f"--offload {placement.offload} does not work here: {reason}") from None
    return pipe


def find_placement(pipe: Any) -> Placement:
    """How a pipeline was placed last; all on one device where nobody did."""
    return getattr(pipe, "_sdatoms_placement", Placement("none", False, "as it came"))


def lift(pipe: Any, device: torch.device) -> Any:
    """Undo `place`: take diffusers' hooks off and move all weights to a device.

    Adapters that are baked in stay, their pristine copies move too.
    """
    from diffusers.hooks import group_offloading
    from diffusers.hooks.hooks import HookRegistry

    pipe.remove_all_hooks()
    modules = [m for m in pipe.components.values() if isinstance(m, nn.Module)]
    for module in modules:
        if group_offloading._is_group_offload_enabled(module):
            registry = HookRegistry.check_if_exists_or_initialize(module)
            for hook in GROUP_HOOKS:
                registry.remove_hook(getattr(group_offloading, hook), recurse=True)
    pipe.to(device)
    for module in modules:
        move_pristine(module)
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()  # else other processes do not get what was given back
    return pipe


def fetch_layers(pipe: Any, device: torch.device) -> None:
    """What `enable_sequential_cpu_offload` does, on a CPU: diffusers asks for "cpu:0", where
    accelerate's hooks turn parameters into plain tensors."""
    from accelerate import cpu_offload

    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            cpu_offload(module, device, offload_buffers=len(module._parameters) > 0)
