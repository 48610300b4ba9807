"""Time a training pass of one convolution with atoms both ways: by its tuned weight, and by the
input's columns; beside LoRA r = 4 (through PEFT) on it and the frozen convolution alone.

    OMP_NUM_THREADS=1 python scripts/bench_columns.py --output columns.json

Forward and backward, with a gradient for the input, as in a UNet. Prints one JSON object: for every
layer, positions, what `sdatoms.columns` picks, milliseconds (medians) and the largest relative
difference between the gradients of the two ways.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from sdatoms import AtomConfig, inject
from sdatoms.atoms.columns import convolve_columns, count_positions, pick_columns
from sdatoms.storage import write_whole

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--repeats", type=int, default=5, help="passes a layer and way")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    torch.manual_seed(0)
    result = {
        "machine": platform.processor() or platform.machine(),
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "layers": {name: measure_layer(LAYERS[name], args) for name in args.layers},
    }
    text = json.dumps(result, indent=1)
    if args.output:
        write_whole(args.output, text.encode())
    print(text)


def measure_layer(spec: tuple[int, ...], args: argparse.Namespace) -> dict[str, Any]:
    inside, outside, side, stride, batch = spec
    conv = nn.Conv2d(inside, outside, 3, stride, 1).requires_grad_(False).to(args.device)
    x = torch.randn(batch, inside, side, side, device=args.device)
    grad = torch.randn_like(conv(x))
    lora = nn.Sequential(copy.deepcopy(conv))
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["0"]), lora)
    trained = [p for p in lora.parameters() if p.requires_grad]
    time_call = lambda call, atoms: time_passes(call, x, atoms, grad, args.repeats)
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


if __name__ == "__main__":
    main()
