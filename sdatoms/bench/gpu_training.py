"""A training step on a GPU and its peak of memory: atoms and their peers on bases of full size."""

from __future__ import annotations

import copy
import statistics
from functools import partial
from typing import Any

import torch
from torch import nn

from sdatoms.bench.adapters import time_call
from sdatoms.bench.gpu_bases import build_part
from sdatoms.bench.gpu_rows import Rows
from sdatoms.bench.peers import Peer, match_paths, tune_peft
from sdatoms.bench.process import forget_peak, read_held, read_peak
from sdatoms.bench.training import (
    ALL,
    CROSS,
    FULL,
    LORAS,
    RIVALS,
    SPATIAL,
    TEXT,
    Case,
    list_layers,
    make_step,
    put_in,
)
from sdatoms.errors import AtomError, clip

__all__ = ["METHODS", "measure_training"]

PEERS = {
    "LoRA r16 on the layers of full": ("LoraConfig", {"r": 16, "lora_alpha": 16}),
    "LoKr r4 on the layers of full": ("LoKrConfig", {"r": 4, "alpha": 4}),
    "OFT b4 on the layers of full": ("OFTConfig", {"r": 0, "oft_block_size": 4}),
}
"""Method → its class in PEFT and its options."""
METHODS = (
    "shared r16 each, cross-attention",
    CROSS,
    "product, b = 16",
    ALL,
    "shared r4, text",
    TEXT,
    "overcomplete",
    SPATIAL,
    "coefficients",
    "full",
    "atoms",
    *PEERS,
    "product, b = 32",
    FULL,
)
"""The most telling first, should time run out; the last one takes the base's weights away."""


def measure_training(family: str, rows: Rows) -> None:
    """A training step and its peak of memory, of every method at batch 1 and 4, on a frozen
    base in 16 bits; SDXL with gradient checkpointing, full fine-tuning on float32 weights."""
    setting = rows.setting
    base = build_part(family, "unet", setting).train()
    if family == "sdxl":
        base.enable_gradient_checkpointing()
    for method in setting.methods or METHODS:
        rows.free()
        rows.take(method, partial(measure_method, base, method, family, rows))


def measure_method(base: Any, method: str, family: str, rows: Rows) -> None:
    """Rows of one method; a batch takes its part of the time, and three steps at least."""
    setting = rows.setting
    seconds = setting.seconds / 3 / len(setting.methods or METHODS)
    shared = {id(p): p for p in base.parameters()}
    unet = base.float() if method == FULL else copy.deepcopy(base, shared)
    peer = put_in_method(unet, method)
    for batch in (1, 4):
        case = Case(family, setting.side(family), batch, setting.rounds, setting.device)
        call = partial(measure_steps, unet, peer, case, seconds)
        rows.take(f"{method}, batch {batch}", call)
        add_ratios(rows.rows, batch)
        rows.write()


def put_in_method(unet: nn.Module, method: str) -> Peer:
    """Give a UNet the method's parameters, in float32."""
    if method not in METHODS:
        raise AtomError(f"there is no method {clip(method)!r} here")
    if method in PEERS:
        import peft

        kind, options = PEERS[method]
        targets = match_paths(list_layers(unet, LORAS[ALL]))
        peer = tune_peft(unet, getattr(peft, kind)(target_modules=targets, **options))
    else:
        peer = put_in(unet, method)
    for parameter in peer.parameters:
        parameter.data = parameter.data.float()
        parameter.grad = None
    return peer


def measure_steps(unet: nn.Module, peer: Peer, case: Case, limit: float) -> dict[str, Any]:
    device = torch.device(case.device)
    held, seconds = read_held(device), []
    step = make_step(unet, peer.parameters, case)
    step()
    forget_peak(device)
    while len(seconds) < min(3, case.steps) or (len(seconds) < case.steps and sum(seconds) < limit):
        time_call(seconds, device, step)
    for parameter in peer.parameters:
        parameter.grad = None
    return {
        "parameters": sum(p.numel() for p in peer.parameters),
        "seconds_per_step": round(statistics.median(seconds), 4),
        "peak_bytes": read_peak(device),
        "held_before_bytes": held,
        "steps": len(seconds),
        "px": case.px,
        "batch": case.batch,
    }


def add_ratios(rows: dict[str, Any], batch: int) -> None:
    """To LoRA r = 4 on the same layers, as far as it is known."""
    for method, rival in (RIVALS | dict.fromkeys((*PEERS, FULL), ALL)).items():
        row, other = (rows.get(f"{name}, batch {batch}", {}) for name in (method, rival))
        if "seconds_per_step" in row and "seconds_per_step" in other:
            keys = ("seconds_per_step", "peak_bytes")
            row["to_lora"] = {key: round(row[key] / other[key], 3) for key in keys}
