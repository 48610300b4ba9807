"""What has to be measured on a GPU, in parts that do without each other.

A part is a function that adds rows to its own file. Weights are random and of published shapes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.adapters.load import load_atoms
from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.adapters import measure_variant, time_call
from sdatoms.bench.columns import Layer, fit_worth, measure_layer
from sdatoms.bench.gpu_bases import build_part, build_pipeline
from sdatoms.bench.gpu_rows import SIDES, Rows, Setting
from sdatoms.bench.gpu_training import measure_training
from sdatoms.bench.process import wait_for
from sdatoms.files.atom_file import AtomFile
from sdatoms.files.writer import FileFacts, pack_atoms
from sdatoms.layers.inject import inject

__all__ = ["PARTS", "Part", "measure_part"]

ADAPTERS = {
    "overcomplete": AtomConfig("overcomplete"),
    "coefficients, product, b = 16": AtomConfig(
        "coefficients", block_form="product", block_size=16
    ),
    "coefficients, shared": AtomConfig("coefficients", block_form="shared"),
    "coefficients, shared each": AtomConfig(
        "coefficients", block_form="shared", block_factors="each"
    ),
    "full": AtomConfig("full"),
    "atoms": AtomConfig("atoms"),
    "coefficients": AtomConfig("coefficients"),
}
SHAPES = {
    "320": (320, 320, 1),
    "640": (640, 640, 2),
    "1280": (1280, 1280, 4),
    "2560 to 1280": (2560, 1280, 4),
    "1280 deep": (1280, 1280, 8),
    "1920 to 640": (1920, 640, 2),
}
"""Convolutions of the UNets: channels in and out, and how often latents were halved before."""


def measure_adapters(family: str, rows: Rows) -> None:
    """Seconds to inject, read a file, bake it, give it another strength and clear it."""
    setting = rows.setting
    unet = build_part(family, "unet", setting)
    runs = 1 if setting.tiny else 3
    with tempfile.TemporaryDirectory() as folder:
        for name, config in list(ADAPTERS.items())[: 2 if setting.tiny else None]:
            rows.take(name, partial(measure_variant, unet, config, runs, Path(folder)))


def measure_columns(rows: Rows) -> None:
    """Columns against weight for the convolutions of both UNets, and the rule's constant that
    follows."""
    setting = rows.setting
    shapes = {"16": (16, 16, 4)} if setting.tiny else SHAPES
    for family in SIDES:
        for batch in (1, 4):
            for shape, (inside, outside, halved) in shapes.items():
                layer = Layer(inside, outside, setting.side(family) // 8 // halved, 1, batch)
                name = f"{shape} at {layer.side}, batch {batch}"
                if name not in rows.rows:
                    asked = (layer, setting.rounds, setting.device, setting.base_dtype)
                    rows.take(name, partial(measure_layer, *asked))
    measured = {name: row for name, row in rows.rows.items() if "failed" not in row}
    if measured:
        rows.put("fit", fit_worth(measured))


def measure_generation(family: str, rows: Rows) -> None:
    """A picture by the pipeline with atoms loaded against one by the bare pipeline."""
    pipe = build_pipeline(family, rows.setting)
    rows.take("baked", lambda: compare_pictures(pipe, make_file(pipe.unet), family, rows.setting))


def measure_compiled(family: str, rows: Rows) -> None:
    """The same with a compiled UNet: what compiling takes, and whether atoms compile it anew."""
    rows.take("baked, compiled", lambda: compare_compiled(family, rows.setting))


def compare_compiled(family: str, setting: Setting) -> dict[str, Any]:
    pipe = build_pipeline(family, setting)
    file = make_file(pipe.unet)
    pipe.unet.compile(backend=setting.compiler)
    began = time.perf_counter()
    paint(pipe, family, setting)
    taken, before = round(time.perf_counter() - began, 1), count_graphs()
    found = compare_pictures(pipe, file, family, setting)
    return found | {"compile_seconds": taken, "compiled_anew": count_graphs() - before}


def count_graphs() -> int:
    """How many graphs have been compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def make_file(unet: nn.Module) -> AtomFile:
    """`overcomplete` atoms for the UNet that change its pictures."""
    injection = inject(unet, AtomConfig("overcomplete"))
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    file = pack_atoms({"unet": injection}, FileFacts("sks", "base"))
    injection.eject()
    return file


def compare_pictures(pipe: Any, file: AtomFile, family: str, setting: Setting) -> dict[str, Any]:
    """Bare pipeline and loaded one in turn: medians and their ratio."""
    seconds: dict[str, list[float]] = {"bare": [], "baked": []}
    call = lambda: paint(pipe, family, setting)
    call()
    end = time.monotonic() + setting.seconds / 2
    for turn in range(setting.rounds):
        if turn and time.monotonic() > end:
            break
        bare = time_call(seconds["bare"], setting.place, call)
        adapters = load_atoms(pipe, file, name="a")
        baked = time_call(seconds["baked"], setting.place, call)
        adapters.clear()
        assert not torch.equal(bare, baked), "the atoms changed no picture"
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "bare_seconds": round(medians["bare"], 4),
        "baked_seconds": round(medians["baked"], 4),
        "ratio": round(medians["baked"] / medians["bare"], 4),
        "pictures": len(seconds["bare"]),
        "px": setting.side(family),
    }


@torch.no_grad()
def paint(pipe: Any, family: str, setting: Setting) -> Tensor:
    """Latents of one picture; the autoencoder, which has no atoms, is not asked."""
    side, steps = setting.side(family), 2 if setting.tiny else 20
    generator = torch.Generator().manual_seed(0)
    asked = {"num_inference_steps": steps, "height": side, "width": side, "output_type": "latent"}
    images = pipe("a sks dog on the beach", generator=generator, **asked).images
    wait_for(setting.place)
    return images


@dataclass(frozen=True)
class Part:
    """One part and what share of the time it may take."""

    measure: Callable[[Rows], None]
    share: float


PARTS = {
    "training, SD 1.5": Part(partial(measure_training, "sd1"), 90),
    "training, SDXL": Part(partial(measure_training, "sdxl"), 150),
    "columns": Part(measure_columns, 30),
    "adapters, SD 1.5": Part(partial(measure_adapters, "sd1"), 30),
    "adapters, SDXL": Part(partial(measure_adapters, "sdxl"), 40),
    "generation, SD 1.5": Part(partial(measure_generation, "sd1"), 25),
    "generation, SDXL": Part(partial(measure_generation, "sdxl"), 40),
    "compiled, SD 1.5": Part(partial(measure_compiled, "sd1"), 75),
}
"""Name → what is measured, in this order; shares are in proportion to each other."""


def measure_part(name: str, path: str, setting: dict[str, Any]) -> int:
    """Measure one part into its file; how many rows it has."""
    asked = Setting(**setting)
    rows = Rows(Path(path), asked)
    rows.take("all of it", lambda: PARTS[name].measure(rows))
    return len(rows.rows)
