"""How long the decompositions take on Stable Diffusion 1.5's UNet, and what memory they need.

Parts: `linear`, all 98 convolutions, 3×3 in the spatial view and 1×1 in the channel view; `block`,
the attention projections in the channel view; `sparse`, 9 atoms for each of the 52 convolutions
larger than 1×1, learning and codes. Each is a whole `inject`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.process import forget_peak, read_memory
from sdatoms.layers.inject import inject

__all__ = ["PARTS", "build_unet", "measure_parts"]

PARTS = ("linear", "block", "sparse")
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def build_unet() -> nn.Module:
    """The UNet with weights drawn like nn.Conv2d's own, in less time than its constructor takes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    unet.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in unet.parameters():
        nn.init.uniform_(parameter, -1, 1).data /= max(1, parameter[0].numel()) ** 0.5
    return unet.eval()


def choose_layers(unet: nn.Module) -> dict[str, tuple[list[str], AtomConfig]]:
    """Part → the paths of its layers and its settings."""
    convs = {n: m for n, m in unet.named_modules() if isinstance(m, nn.Conv2d)}
    spatial = [n for n, m in convs.items() if m.kernel_size != (1, 1)]
    linear = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear)]
    return {
        "linear": (list(convs), AtomConfig("atoms")),
        "block": ([n for n in linear if n.endswith(PROJECTIONS)], AtomConfig("coefficients")),
        "sparse": (spatial, AtomConfig("atoms", "sparse", num_atoms=9)),
    }


def measure_injection(unet: nn.Module, paths: list[str], config: AtomConfig) -> tuple[float, int]:
    """Seconds of one injection, and its peak bytes above those before it."""
    settings = config.to_dict() | {"target_modules": paths}
    forget_peak(torch.device("cpu"))
    before, start = read_memory("VmRSS"), time.perf_counter()
    injection = inject(unet, AtomConfig.from_dict(settings))
    seconds = time.perf_counter() - start
    extra = read_memory("VmHWM") - before
    injection.eject()
    return seconds, extra


def measure_parts(
    unet: nn.Module, parts: Sequence[str], repeats: int, limit: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Part and what was measured of it, one after the other.

    Args:
        limit: only the first so many layers of every part.
    """
    # The first calls load libraries and set up their buffers, once and for all models.
    inject(nn.Sequential(nn.Conv2d(9, 9, 3)), AtomConfig("full"))
    for part, (paths, config) in choose_layers(unet).items():
        if part not in parts:
            continue
        paths = paths[:limit]
        layers: list[Any] = [unet.get_submodule(path) for path in paths]
        weights = [layer.weight.numel() for layer in layers]
        runs = [measure_injection(unet, paths, config) for _ in range(repeats)]
        yield (
            part,
            {
                "layers": len(paths),
                "weights": sum(weights),
                "largest_weight_mb": round(4 * max(weights) / 1e6, 1),
                "seconds": [round(seconds, 2) for seconds, _ in runs],
                "extra_mb": [round(extra / 1e6, 1) for _, extra in runs],
            },
        )
