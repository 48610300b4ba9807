"""Time the decompositions on Stable Diffusion 1.5's UNet, from its config with random weights:
`python scripts/bench_decompose.py --output decompose.json`.

Parts: `linear`, all 98 convolutions, 3×3 in the spatial view and 1×1 in the channel view; `block`,
the attention projections in the channel view; `sparse`, 9 atoms for each of the 52 convolutions
larger than 1×1, learning and codes. Each is a whole `inject`. Extra memory is the peak of the
resident set (VmHWM, reset before through /proc/self/clear_refs) above what was resident at the
start; `linear` needs less than one weight, `sparse` keeps its codes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from sdatoms import AtomConfig, inject

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


def read_memory(entry: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def measure(unet: nn.Module, paths: list[str], config: AtomConfig) -> tuple[float, int]:
    """Seconds of one injection, and its peak bytes above those before it."""
    settings = config.to_dict() | {"target_modules": paths}
    Path("/proc/self/clear_refs").write_text("5")
    before, start = read_memory("VmRSS"), time.perf_counter()
    injection = inject(unet, AtomConfig.from_dict(settings))
    seconds = time.perf_counter() - start
    extra = read_memory("VmHWM") - before
    injection.eject()
    return seconds, extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("linear", "block", "sparse"))
    parser.add_argument("--repeats", type=int, default=3, help="runs of every part (3)")
    parser.add_argument("--limit", type=int, help="only the first LIMIT layers of every part")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument("--output", type=Path, help="write the results to this JSON file, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # The first calls load libraries and set up their buffers, once and for all models.
    inject(nn.Sequential(nn.Conv2d(9, 9, 3)), AtomConfig("full"))
    unet, results = build_unet(), {}
    for part, (paths, config) in choose_layers(unet).items():
        if part not in (args.parts or [part]):
            continue
        paths = paths[: args.limit]
        weights = [unet.get_submodule(path).weight.numel() for path in paths]
        runs = [measure(unet, paths, config) for _ in range(args.repeats)]
        results[part] = {
            "layers": len(paths),
            "weights": sum(weights),
            "largest_weight_mb": round(4 * max(weights) / 1e6, 1),
            "seconds": [round(seconds, 2) for seconds, _ in runs],
            "extra_mb": [round(extra / 1e6, 1) for _, extra in runs],
        }
        print(part, json.dumps(results[part]), flush=True)
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if args.output:
        args.output.write_text(json.dumps(versions | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
