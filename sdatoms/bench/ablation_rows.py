"""The rows that change one thing: settings, layers, strengths, and other filter subspaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from sdatoms.bench.peer_rows import WORD
from sdatoms.bench.rows import PLACES, Method, rates_around
from sdatoms.training.config import TrainConfig

__all__ = ["PRESETS", "list_ablations", "list_trials", "name_changes"]

ABLATED = "product b16"
"""The row that every ablation changes in one point."""
SHARED = "shared r4, text"
"""The row whose settings ablations change too: it trains neither these layers nor spatial atoms."""
HELPED = (
    "shared r2 each, text",
    "shared r4 each, text",
    "shared r16 each, cross-attention",
    "reading r4, text",
    "reading r4 each, text",
    "reading r8 each, text",
    "word decay 10 r4, text",
    "word decay 10 r4 each, text",
    "word decay 10 r16 each, text",
    "word decay 10 r16 each, cross-attention",
    "word decay 10 r4 each, all layers",
    "word decay 10 r8 each, all layers",
    "word decay 10 r16 each, all layers",
    *(f"word decay 10 r{count} each, attention + conv" for count in (2, 4, 8, 16)),
    "shared r2 each, LoRA's layers",
    "shared r4 each, LoRA's layers",
    "shared r8 each, LoRA's layers",
    "shared r16 each, LoRA's layers",
    "shared r32 each, LoRA's layers",
    "product b32, cross-attention",
    "LoRA r4 text",
    "LoRA r4 cross-attention",
    "LoRA r4 attention + conv",
    "LoRA r16 attention + conv",
)
"""Rows that are given what helps shared atoms, peers among them: decay towards the base, and more
of the steps at which a picture is mostly noise."""
PRESETS = (
    "word decay 10 r4 each, text: weight decay 1, noisy steps",
    "word decay 10 r16 each, cross-attention: weight decay 1, noisy steps",
    "shared r16 each, LoRA's layers: weight decay 1, noisy steps",
)
"""What the presets `balanced`, `best` and `likeness` train, and every change of it."""
NOISY = {
    "timestep_bias_strategy": "later",
    "timestep_bias_multiplier": 5.0,
    "timestep_bias_portion": 0.5,
}
"""Five of six steps learn from the noisier half of the timesteps."""
NEW_WORD = {"train_text_encoder_ti": True, "token_abstraction": WORD, "token_lr": 1e-2}
CHANGES: dict[str, dict[str, Any]] = {
    "weight decay 1": {"adam_weight_decay": 1.0},
    "weight decay 10": {"adam_weight_decay": 10.0},
    "noisy steps": NOISY,
    "weight decay 1, noisy steps": {"adam_weight_decay": 1.0, **NOISY},
    "no weight decay": {"adam_weight_decay": 0.0},
    "words not forgotten": {"word_decay": 0.0},
    "even steps": {"timestep_bias_strategy": "none"},
    "averages": {"use_ema": True},
    "averages over 20 steps": {"use_ema": True, "ema_decay": 0.95},
    "prior by prediction": {
        "with_prior_preservation": True,
        "prior_preservation_mode": "prediction",
    },
    "prior by prediction, a quarter of the rows": {
        "with_prior_preservation": True,
        "prior_preservation_mode": "prediction",
        "prior_share": 0.25,
    },
    "prior by prediction, half": {
        "with_prior_preservation": True,
        "prior_loss_weight": 0.5,
        "prior_preservation_mode": "prediction",
    },
    "no warm-up": {"lr_warmup_steps": 0},
    "warm-up 100": {"lr_warmup_steps": 100},
    "falling rate": {"lr_scheduler": "cosine"},
    "min-SNR 5": {"snr_gamma": 5.0},
    "offset noise": {"noise_offset": 0.05},
    "early steps": {"timestep_bias_strategy": "earlier", "timestep_bias_multiplier": 2.0},
    "late steps": {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 2.0},
    "empty prompts 0.1": {"proportion_empty_prompts": 0.1},
    "text encoder too": {"train_text_encoder": True},
    "a new word too": NEW_WORD,
    "text encoder and a new word too": {"train_text_encoder": True, **NEW_WORD},
}
PARTS = {
    "attention alone": ("*.attentions.*",),
    "convolutions alone": ("*.resnets.*", "*samplers.*"),
    "down alone": ("down_blocks.*",),
    "middle alone": ("mid_block.*",),
    "up alone": ("up_blocks.*",),
}
STRENGTHS = {
    "strength 0.8": "0.8",
    "strength 1.2": "1.2",
    "half over the first 0.3 of the steps": "0.5 until 0.3, then 1",
    "half over the last 0.3 of the steps": "1 until 0.7, then 0.5",
    "falling from 1.2 to 0.6": "1.2 to 0.6",
}
"""What is painted with, by the noise level; the training is the same."""


def list_trials() -> list[Method]:
    """Other filter subspaces, which the product does not have."""
    return [
        Method(
            f"{label} m{size} {place}",
            "subspaces",
            rates_around(middle),
            {"targets": pattern, "form": form, "size": size},
            group="ablations",
        )
        for label, form, size, middle in (
            ("whole filters", "filters", 1, 3e-3),
            ("whole filters", "filters", 4, 1e-3),
            ("subspace map", "map", 16, 3e-3),
        )
        for place, pattern in PLACES.items()
    ]


def change(row: Method, name: str) -> Method:
    """The row with one of `CHANGES`, or with one of `STRENGTHS`."""
    training = {**row.training, **CHANGES.get(name, {})}
    strength = STRENGTHS.get(name, row.strength)
    return replace(row, name=f"{row.name}: {name}", training=training, strength=strength)


def name_changes(row: Method) -> list[str]:
    """What there is to change of a row, which is not so already."""
    usual = {field.name: field.default for field in fields(TrainConfig)}
    differs = lambda name: (
        name in STRENGTHS
        or any({**usual, **row.training}[key] != value for key, value in CHANGES[name].items())
    )
    return [name for name in (*CHANGES, *STRENGTHS) if differs(name)]


def list_ablations(rows: Mapping[str, Method]) -> list[Method]:
    own, beside = rows[ABLATED], rows[f"{ABLATED} + spatial"]
    helpers = ("weight decay 1", "weight decay 10", "weight decay 1, noisy steps")
    helped = [change(rows[row], name) for row in HELPED for name in helpers]
    named = {row.name: row for row in helped}
    ablated = [own, rows[SHARED], *(named[name] for name in PRESETS)]
    changed = [change(row, name) for row in ablated for name in name_changes(row)]
    changed += [
        replace(own, name=f"{ABLATED}: {name}", targets=paths) for name, paths in PARTS.items()
    ]
    changed += [
        replace(beside, name=f"{beside.name}: spatial rate x {ratio:g}", spatial=ratio)
        for ratio in (0.3, 3.0, 10.0)
    ]
    return [*(replace(row, group="ablations") for row in changed), *helped]
