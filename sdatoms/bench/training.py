"""What a training step costs: every variant, LoRA r = 4 on the same layers, and full fine-tuning.

Peak memory is the process's own, so that each method takes one of its own; `seconds_per_step` is
the median after the first step, of one UNet with random latents and text in AdamW. Ratios are to
the LoRA on the layers that the variant tunes. A machine that others use makes such ratios swing:
`measure_beside` takes its methods in turn, step by step, on copies of one UNet that share their
weights, and compares processor time.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sdatoms.atoms.config import BLOCK_VARIANTS, AtomConfig, Variant
from sdatoms.bench.peers import Peer, tune_all, tune_atoms, tune_lora
from sdatoms.bench.process import call_apart, forget_peak, limit_memory, read_peak, wait_for
from sdatoms.diffusion.open import load_base
from sdatoms.layers.inject import inject
from sdatoms.models.open import build_model
from sdatoms.training.config import ATOM_LAYERS
from sdatoms.training.trainer import choose_attention

__all__ = [
    "ALL",
    "CASES",
    "CROSS",
    "FULL",
    "LORAS",
    "METHODS",
    "RIVALS",
    "SPATIAL",
    "TEXT",
    "Case",
    "list_cases",
    "list_layers",
    "make_step",
    "measure_beside",
    "measure_cases",
    "measure_method",
    "open_unet",
    "put_in",
]

SPATIAL, ALL = "LoRA r4 on the layers of atoms", "LoRA r4 on the layers of full"
TEXT = "LoRA r4 on the layers that read the prompt"
CROSS, PEFTS = "LoRA r16 on cross-attention", "LoRA r16 on attention and convolutions"
FULL = "full fine-tuning"
VARIANTS: tuple[Variant, ...] = get_args(Variant)
SETTINGS: dict[str, AtomConfig] = {
    **{variant: AtomConfig(variant) for variant in VARIANTS},
    "coefficients, 8x8 channel": AtomConfig(
        "coefficients", block_size=8, block_view="channel", block_share=0.045
    ),
    "product, b = 16": AtomConfig("coefficients", block_form="product", block_size=16),
    "product, b = 32": AtomConfig("coefficients", block_form="product", block_size=32),
    "shared r4, text": AtomConfig(
        "coefficients", block_form="shared", target_modules=ATOM_LAYERS["text"]
    ),
    "shared r4 each, text": AtomConfig(
        "coefficients",
        block_form="shared",
        block_factors="each",
        target_modules=ATOM_LAYERS["text"],
    ),
    **{
        f"shared r16 each, {place}": AtomConfig(
            "coefficients",
            block_form="shared",
            block_factors="each",
            block_atoms=16,
            target_modules=ATOM_LAYERS[place],
        )
        for place in ("cross-attention", "attention+convolutions")
    },
}
"""Method → its atoms."""
LORAS = {
    SPATIAL: SETTINGS["atoms"],
    ALL: SETTINGS["full"],
    TEXT: SETTINGS["shared r4, text"],
    CROSS: SETTINGS["shared r16 each, cross-attention"],
    PEFTS: SETTINGS["shared r16 each, attention+convolutions"],
}
"""LoRA → the atoms whose layers it tunes; of their rank where they say one, else of 4."""


def find_rival(config: AtomConfig) -> str:
    """The LoRA on the layers that a setting of atoms tunes."""
    for rival, own in LORAS.items():
        if config.target_modules == own.target_modules and config.target_modules:
            return rival
    return ALL if config.variant in BLOCK_VARIANTS else SPATIAL


RIVALS = {name: find_rival(config) for name, config in SETTINGS.items()}
"""Method → the LoRA that tunes the same layers."""
METHODS = (*SETTINGS, *LORAS, FULL)
TIMES = ("seconds_per_step", "core_seconds_per_step")
"""By the clock, and of all processors together, which a shared machine does not blur."""


@dataclass(frozen=True)
class Case:
    """One model at one size."""

    model: str
    px: int
    batch: int
    steps: int
    device: str = "cpu"
    asked: bool = False
    """Whether it is run only where it is named."""


CASES = {
    "bundled": Case("bundled", 64, 4, 8),
    "sd15": Case("sd15-unet", 256, 1, 3),
    "sdxl": Case("sdxl-unet", 256, 1, 1, asked=True),
    "sd15-gpu": Case("sd15-unet", 512, 1, 12, "cuda"),
    "sd15-gpu-4": Case("sd15-unet", 512, 4, 12, "cuda"),
}


def list_cases() -> list[str]:
    """The cases that this machine can run, without those that are run only where they are named."""
    able = lambda case: case.device == "cpu" or torch.cuda.is_available()
    return [name for name, case in CASES.items() if able(case) and not case.asked]


def measure_cases(
    cases: Sequence[str],
    methods: Sequence[str],
    steps: int | None,
    threads: int,
    *,
    lean: bool = False,
) -> Iterator[dict[str, dict[str, Any]]]:
    """Case → method → what was measured, as far as it is known; once more after every method."""
    found: dict[str, dict[str, Any]] = {}
    for name in cases:
        found[name] = {}
        for method in methods:
            asked = steps or CASES[name].steps
            try:
                row = call_apart(measure_method, name, method, asked, lean, threads=threads)
            except RuntimeError as error:
                row = {"failed": str(error)[:300]}
            print(name, method, json.dumps(row), file=sys.stderr)
            found[name][method] = row
            add_ratios(found[name])
            yield found


def add_ratios(rows: dict[str, dict[str, Any]]) -> None:
    for variant, rival in RIVALS.items():
        row, other = rows.get(variant, {}), rows.get(rival, {})
        if "seconds_per_step" in row and "seconds_per_step" in other:
            row["to_lora"] = {
                key: round(row[key] / other[key], 3)
                for key in ("parameters", "bytes", *TIMES, "peak_bytes")
            }


def measure_method(name: str, method: str, steps: int, lean: bool = False) -> dict[str, Any]:
    """Train one method for a few steps of a case.

    A method that needs more than the machine's free memory fails by itself, and ends nothing else.

    Args:
        lean: with the base in bfloat16 and gradient checkpointing.
    """
    case = CASES[name]
    if case.device == "cpu":
        limit_memory()
    device = torch.device(case.device)
    unet = open_unet(case, torch.bfloat16 if lean else torch.float32)
    if lean:
        unet.enable_gradient_checkpointing()
    peer = put_in(unet, method)
    parameters = peer.parameters
    step = make_step(unet, parameters, case)
    forget_peak(device)
    held, seconds, used = read_peak(device), [], []
    for _ in range(steps):
        began, worked = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - began)
        used.append(time.process_time() - worked)
    return {
        "parameters": sum(p.numel() for p in parameters),
        # a whole UNet's file is its numbers; to make it would take as much memory again
        "bytes": 4 * sum(p.numel() for p in parameters) if method == FULL else len(peer.save()),
        "seconds_per_step": round(statistics.median(seconds[1:] or seconds), 3),
        "core_seconds_per_step": round(statistics.median(used[1:] or used), 3),
        "peak_bytes": read_peak(device),
        "held_before_bytes": held,
        "batch": case.batch,
        "px": case.px,
        "steps": steps,
        "lean": lean,
    }


def measure_beside(name: str, methods: Sequence[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Methods of a case in turn, one step each a round: the median of their processor seconds, the
    least, and the medians' ratio to the LoRA on the same layers. The first round is not counted."""
    case = CASES[name]
    base = open_unet(case)
    steps: dict[str, Callable[[], None]] = {}
    for method in methods:
        shared = {id(tensor): tensor for tensor in base.parameters()}
        unet = copy.deepcopy(base, shared)
        steps[method] = make_step(unet, put_in(unet, method).parameters, case)
    used: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(1 + rounds):
        for method, step in steps.items():
            worked = time.process_time()
            step()
            used[method].append(time.process_time() - worked)
    rows: dict[str, dict[str, Any]] = {
        method: {
            "core_seconds_per_step": round(statistics.median(times[1:]), 4),
            "least_core_seconds": round(min(times[1:]), 4),
            "rounds": rounds,
        }
        for method, times in used.items()
    }
    for method, row in rows.items():
        if other := rows.get(RIVALS.get(method, "")):
            names = ("core_seconds_per_step", "least_core_seconds")
            row["to_lora"] = {key: round(row[key] / other[key], 3) for key in names}
    return rows


def open_unet(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    device = torch.device(case.device)
    bundled = case.model == "bundled"
    unet: Any = (
        load_base(device=device, dtype=dtype).unet if bundled else build_model(case.model, dtype)
    )
    return unet.to(device).train()


def make_step(
    unet: Any,
    parameters: list[nn.Parameter],
    case: Case,
    attention: Callable[[torch.device], Any] = choose_attention,
) -> Callable[[], None]:
    """One step of AdamW on random latents and text, which are other ones in every call; a base in
    16 bits computes in them.

    Args:
        attention: what chooses the kernel of attention, as a context; the trainer's own choice.
    """
    device, side = torch.device(case.device), case.px // 8
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(device)

    def step() -> None:
        shape = (case.batch, unet.config.in_channels, side, side)
        latents, noise = draw(*shape), draw(*shape)
        context = draw(case.batch, 77, unet.config.cross_attention_dim)
        timesteps = torch.randint(1000, (case.batch,), generator=generator).to(device)
        narrow = case.device == "cuda" or unet.dtype != torch.float32
        half = torch.autocast(case.device, torch.bfloat16) if narrow else nullcontext()
        with half, attention(device):
            more = {"added_cond_kwargs": draw_conditions(unet.config, case.batch, draw)}
            predicted = unet(latents, timesteps, context, return_dict=False, **more)[0]
            (predicted.float() - noise).square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait_for(device)

    return step


def draw_conditions(
    config: Any, batch: int, draw: Callable[..., Tensor]
) -> dict[str, Tensor] | None:
    """What SDXL's UNet is told beside the text; None for others."""
    if config.addition_embed_type != "text_time":
        return None
    width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {"text_embeds": draw(batch, width), "time_ids": draw(batch, 6)}


def put_in(unet: nn.Module, method: str) -> Peer:
    """Give a UNet the method's parameters; a LoRA stands on the layers of the variant it rivals."""
    if method == FULL:
        return tune_all(unet)
    if method in SETTINGS:
        return tune_atoms(unet, SETTINGS[method], "base")
    config = LORAS[method]
    return tune_lora(unet, list_layers(unet, config), config.block_atoms or 4)


def list_layers(unet: nn.Module, config: AtomConfig) -> list[str]:
    """Paths of the layers that the setting tunes."""
    injection = inject(unet, config)
    paths = list(injection.layers)
    injection.eject()
    return paths
