"""How costs grow with a model's weights, with resolution, batch and the number of adapters.

Along each axis one number changes. All calls of an axis are taken in turn, round by round in one
process, and their processor seconds compared by medians, so that a machine that others use bears on
all alike. An exponent e is that of `cost ~ x^e`, fitted by least squares in logarithms; the last
one is of the two largest points alone, where what every call costs in any case weighs least.
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.adapters.keep import Keep
from sdatoms.adapters.load import AdapterSet, load_atoms
from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.training import ALL, FULL, Case, make_step, put_in
from sdatoms.files.writer import save_atoms
from sdatoms.layers.inject import inject
from sdatoms.models.open import fill_weights
from sdatoms.models.single_file import CONFIGS, build

__all__ = ["AXES", "Point", "fit_exponent", "measure_axis", "tabulate_growth"]

TRAINED = ("overcomplete", "product, b = 16", "coefficients", ALL, FULL)
LOADED = {
    "overcomplete": AtomConfig("overcomplete"),
    "product, b = 16": AtomConfig("coefficients", block_form="product", block_size=16),
    "coefficients": AtomConfig("coefficients"),
}
CONTEXT = 64
"""Width of the text's rows."""


@dataclass(frozen=True)
class Point:
    """A UNet of two levels, its input, and how many files are loaded."""

    width: int = 48
    """Channels of the first level; the second has twice as many."""
    side: int = 16
    """px of the latents."""
    batch: int = 1
    adapters: int = 1


AXES: dict[str, tuple[Point, ...]] = {
    "weights": tuple(Point(width=width) for width in (32, 48, 64, 96)),
    "resolution": tuple(Point(side=side) for side in (8, 12, 16, 24)),
    "batch": tuple(Point(batch=batch) for batch in (1, 2, 4, 8)),
    "adapters": tuple(Point(adapters=count) for count in (1, 2, 4, 8)),
}
"""Axis → points, from small to large."""


def build_unet(width: int) -> Any:
    changes = {
        "block_out_channels": (width, 2 * width),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": CONTEXT,
    }
    return fill_weights(build("unet", CONFIGS / "sd1", changes), torch.float32).eval()


def measure_axis(
    axis: str, points: Sequence[Point], rounds: int, methods: Sequence[str] = TRAINED
) -> dict[str, Any]:
    """Along one axis: `x`, and for every cost its processor seconds at each x and its exponents.

    Args:
        axis: one of `AXES`.
        points: at least two, that differ in the axis alone.
        rounds: that are counted; the first is not.
    """
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            (what, k): call
            for k, point in enumerate(points)
            for what, call in list_calls(axis, point, Path(folder), methods).items()
        }
        used: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
        for _ in range(1 + rounds):
            for key, call in calls.items():
                began = time.process_time()
                call()
                used[key].append(time.process_time() - began)
    x = [measure_point(axis, point) for point in points]
    costs: dict[str, Any] = {}
    for what in dict.fromkeys(what for what, _ in calls):
        seconds = [statistics.median(used[what, k][1:]) for k in range(len(points))]
        costs[what] = {
            "seconds": [round(s, 5) for s in seconds],
            "exponent": round(fit_exponent(x, seconds), 2),
            "last_exponent": round(fit_exponent(x[-2:], seconds[-2:]), 2),
        }
    return {"x": x, "rounds": rounds, "costs": costs}


def measure_point(axis: str, point: Point) -> int:
    """Where on its axis a point lies: weights of the UNet, latent pixels, pictures or files."""
    if axis == "weights":
        return sum(p.numel() for p in build_unet(point.width).parameters())
    return {"resolution": point.side**2, "batch": point.batch, "adapters": point.adapters}[axis]


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """e of `y ~ x^e`."""
    u, v = ([math.log(max(value, 1e-9)) for value in values] for values in (x, y))
    return statistics.linear_regression(u, v).slope


def list_calls(
    axis: str, point: Point, folder: Path, methods: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """What is measured at a point: training steps where no file is loaded, files where the number
    of weights or of files changes, forward passes everywhere."""
    unet = build_unet(point.width).requires_grad_(False)
    calls: dict[str, Callable[[], Any]] = {}
    for method in methods if axis != "adapters" else ():
        own = copy_model(unet, share=method != FULL)
        case = Case("growth", 8 * point.side, point.batch, 1)
        calls[f"step: {method}"] = make_step(own, put_in(own, method).parameters, case)
    files = {
        name: [
            write_file(unet, config, folder / f"{place}-{point.width}-{k}.safetensors")
            for k in range(point.adapters)
        ]
        for place, (name, config) in enumerate(LOADED.items())
    }
    for name, paths in files.items() if axis in ("weights", "adapters") else ():
        calls |= list_loads(name, paths, copy_model(unet))
    calls["forward: bare"] = make_forward(unet, point)
    baked = copy_model(unet)
    load_files(baked, files["overcomplete"], "memory")
    calls["forward: baked"] = make_forward(baked, point)
    for name, paths in files.items():
        attached = copy_model(unet)
        load_files(attached, paths, "attach")
        calls[f"forward: attached, {name}"] = make_forward(attached, point)
    return calls


def copy_model(unet: Any, *, share: bool = False) -> Any:
    """A copy; sharing its weights, a method can be put in beside others."""
    return copy.deepcopy(unet, {id(p): p for p in unet.parameters()} if share else None)


def write_file(unet: nn.Module, config: AtomConfig, path: Path) -> Path:
    """A file of such atoms, with numbers of its own."""
    injection = inject(unet, config)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    save_atoms(path, {"unet": injection})
    injection.eject()
    return path


def load_files(unet: nn.Module, paths: Sequence[Path], keep: Keep) -> AdapterSet:
    """The last one's set, with all of them in it."""
    loaded = [load_atoms(unet, path, name=path.stem, keep_weights=keep) for path in paths]
    return loaded[-1]


def list_loads(name: str, paths: Sequence[Path], unet: Any) -> dict[str, Callable[[], Any]]:
    """Reading and baking all files, then other strengths for all at once, then taking them out."""
    held: list[AdapterSet] = []

    def change() -> None:
        weight = 0.5 if next(iter(held[-1].strengths.values())) == 1.0 else 1.0
        held[-1].set_strengths({path.stem: weight for path in paths})

    return {
        f"load: {name}": lambda: held.append(load_files(unet, paths, "memory")),
        f"strengths: {name}": change,
        f"clear: {name}": lambda: held[-1].clear(),
    }


def make_forward(unet: Any, point: Point) -> Callable[[], Tensor]:
    """One pass of a denoiser, as a picture takes many."""
    shape = (point.batch, unet.config.in_channels, point.side, point.side)
    latents, context = torch.randn(shape), torch.randn(point.batch, 77, CONTEXT)

    @torch.no_grad()
    def run() -> Tensor:
        return unet(latents, 500, context, return_dict=False)[0]

    return run


def tabulate_growth(axes: Mapping[str, Any]) -> str:
    """One table in Markdown: exponent and last exponent of every cost along every axis."""
    names = dict.fromkeys(name for found in axes.values() for name in found["costs"])
    heads = [f"{axis} ({found['x'][0]:,} to {found['x'][-1]:,})" for axis, found in axes.items()]
    lines = ["| cost | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for name in names:
        cells = [describe_cost(found["costs"].get(name)) for found in axes.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def describe_cost(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return ""
    first, last = (1000 * cost["seconds"][k] for k in (0, -1))
    return f"{cost['exponent']:.2f}, {cost['last_exponent']:.2f} ({first:.3g} to {last:.3g} ms)"
