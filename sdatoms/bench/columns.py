"""A training pass of one convolution with atoms, by its tuned weight and by the input's columns.

Beside it stand LoRA r = 4 on the same convolution and the frozen convolution alone.

Forward and backward, with a gradient for the input, as in a UNet.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.atoms.columns import convolve_columns, count_positions, pick_columns
from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.peers import tune_lora
from sdatoms.layers.inject import inject

__all__ = ["LAYERS", "measure_layer"]

LAYERS = {
    # name: in, out, side (px of the feature map), stride, batch
    "bundled base, 96 at 8": (96, 96, 8, 1, 4),
    "bundled base, 160 at 4": (160, 160, 4, 1, 4),
    "bundled base, 256 at 2": (256, 256, 2, 1, 4),
    "sd15, 320 at 64": (320, 320, 64, 1, 1),
    "sd15, 640 at 32": (640, 640, 32, 1, 1),
    "sd15, 1280 at 16": (1280, 1280, 16, 1, 1),
    "sd15, 1280 at 8": (1280, 1280, 8, 1, 1),
    "sd15, 2560 to 1280 at 8": (2560, 1280, 8, 1, 1),
    "sd15, 1280 strided at 16": (1280, 1280, 16, 2, 1),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "atoms": {"variant": "atoms"},
    "overcomplete": {"variant": "overcomplete"},
    "full, b = 2": {"variant": "full", "block_size": 2},
}


def measure_layer(name: str, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """One layer: frozen, with LoRA, and with atoms of every setting both ways; medians of `repeats`
    passes, milliseconds."""
    inside, outside, side, stride, batch = LAYERS[name]
    conv = nn.Conv2d(inside, outside, 3, stride, 1).requires_grad_(False).to(device)
    x = torch.randn(batch, inside, side, side, device=device)
    grad = torch.randn_like(conv(x))
    lora = nn.Sequential(copy.deepcopy(conv))
    trained = tune_lora(lora, ["0"]).parameters
    time_call = lambda call, atoms: time_passes(call, x, atoms, grad, repeats)
    found: dict[str, Any] = {
        "positions": grad.numel() // outside,
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
    for _ in range(repeats):
        x = x.detach().requires_grad_()
        wait(x.device)
        start = time.perf_counter()
        gradients = torch.autograd.grad(call(x), [*atoms, x], grad)
        wait(x.device)
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 2), gradients


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
