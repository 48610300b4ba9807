"""A training pass of one convolution with atoms, by its tuned weight and by the input's columns.

Beside it stand LoRA r = 4 on the same convolution and the frozen convolution alone.

Forward and backward, with a gradient for the input, as in a UNet.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdatoms.atoms.columns import convolve_columns, count_positions, pick_columns
from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.peers import tune_lora
from sdatoms.bench.process import wait_for
from sdatoms.layers.inject import inject

__all__ = ["LAYERS", "Layer", "fit_worth", "measure_layer"]


class Layer(NamedTuple):
    """One 3×3 convolution and its input."""

    inside: int
    outside: int
    side: int
    """px of the feature map."""
    stride: int = 1
    batch: int = 1


LAYERS = {
    "bundled base, 96 at 8": Layer(96, 96, 8, 1, 4),
    "bundled base, 160 at 4": Layer(160, 160, 4, 1, 4),
    "bundled base, 256 at 2": Layer(256, 256, 2, 1, 4),
    "sd15, 320 at 64": Layer(320, 320, 64, 1, 1),
    "sd15, 640 at 32": Layer(640, 640, 32, 1, 1),
    "sd15, 1280 at 16": Layer(1280, 1280, 16, 1, 1),
    "sd15, 1280 at 8": Layer(1280, 1280, 8, 1, 1),
    "sd15, 2560 to 1280 at 8": Layer(2560, 1280, 8, 1, 1),
    "sd15, 1280 strided at 16": Layer(1280, 1280, 16, 2, 1),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "atoms": {"variant": "atoms"},
    "overcomplete": {"variant": "overcomplete"},
    "full, b = 2": {"variant": "full", "block_size": 2},
}
SIDES = {name: settings.get("block_size", 1) for name, settings in SETTINGS.items()}
"""b of each."""


def measure_layer(
    layer: Layer, repeats: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """One layer: frozen, with LoRA, and with atoms of every setting both ways; medians of `repeats`
    passes after the first, milliseconds.

    Args:
        dtype: of the frozen weight and its input; in 16 bits LoRA and atoms, in float32, take
            autocast.
    """
    inside, outside, side, stride, batch = layer
    conv = nn.Conv2d(inside, outside, 3, stride, 1).requires_grad_(False).to(device, dtype)
    x = torch.randn(batch, inside, side, side, device=device, dtype=dtype)
    grad = torch.randn_like(conv(x))
    lora = nn.Sequential(copy.deepcopy(conv))
    trained = tune_lora(lora, ["0"]).parameters
    for parameter in trained:
        parameter.data = parameter.data.float()
    time_call = lambda call, atoms: time_passes(call, x, atoms, grad, repeats)
    found: dict[str, Any] = {
        "positions": grad.numel() // outside,
        "channels": outside,
        "frozen_ms": time_call(conv, [])[0],
        "lora_ms": time_call(lora, trained)[0],
    }
    for name, settings in SETTINGS.items():
        found[name] = measure_ways(copy.deepcopy(conv), settings, x, time_call)
    return found


def measure_ways(
    conv: nn.Conv2d, settings: dict[str, Any], x: Tensor, time_call: Callable[..., Any]
) -> dict[str, Any]:
    injection = inject(nn.Sequential(conv), AtomConfig(**settings, target_modules=("0",)))
    layer: Any = injection.layers["0"]
    atoms = list(injection.parameters())
    with torch.no_grad():
        for parameter in atoms:
            parameter.add_(0.01 * torch.randn_like(parameter))
    by_weight = lambda x: layer._conv_forward(x, layer.tuned_weight(), layer.bias)
    by_columns = lambda x: convolve_columns(layer, x, layer.views())
    weight_ms, gradients = time_call(by_weight, atoms)
    columns_ms, others = time_call(by_columns, atoms)
    differ = max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(gradients, others, strict=True)
    )
    picked = pick_columns(layer, count_positions(layer, x))
    return {
        "weight_ms": weight_ms,
        "columns_ms": columns_ms,
        "picked": "columns" if picked else "weight",
        "difference": differ,
    }


def time_passes(
    call: Callable[[Tensor], Tensor], x: Tensor, atoms: list[Any], grad: Tensor, repeats: int
) -> tuple[float, tuple[Tensor, ...]]:
    """Median milliseconds of a forward and a backward pass, and the gradients."""
    seconds, gradients = [], ()
    half = nullcontext() if x.dtype == torch.float32 else torch.autocast(x.device.type, x.dtype)
    for _ in range(1 + repeats):
        x = x.detach().requires_grad_()
        wait_for(x.device)
        start = time.perf_counter()
        with half:
            y = call(x)
        gradients = torch.autograd.grad(y, [*atoms, x], grad)
        wait_for(x.device)
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds[1:]), 3), gradients


def fit_worth(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """From `measure_layer`'s rows, up to how many output positions (times b²) per output channel
    columns are the faster way: `worth`, a device's entry in `sdatoms.atoms.columns.WORTH`, and how
    much longer a pass takes than by the better way of each layer, by it and by the rule as it
    stands (geometric means)."""
    points = sorted(
        (row["positions"] * SIDES[name] ** 2 / row["channels"], math.log(ratio), way)
        for row in layers.values()
        for name in SETTINGS
        for ratio, way in [(row[name]["columns_ms"] / row[name]["weight_ms"], row[name]["picked"])]
    )
    lost = lambda log, columns: max(log, 0.0) if columns else max(-log, 0.0)
    steps = [0.0, *(load for load, *_ in points)]
    losses = [sum(lost(log, load <= step) for load, log, _ in points) for step in steps]
    best = min(range(len(steps)), key=losses.__getitem__)
    above = min((load for load in steps if load > steps[best]), default=None)
    # halfway, by ratio, to the first layer that takes the other way
    worth = math.sqrt(steps[best] * above) if above else steps[best]
    now = sum(lost(log, way == "columns") for _, log, way in points)
    mean = lambda loss: round(math.exp(loss / max(1, len(points))), 3)
    return {"worth": round(worth, 3), "longer": mean(losses[best]), "longer_today": mean(now)}
