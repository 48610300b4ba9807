"""Settings for Stable Diffusion 1.5 and SDXL, each with its reason; nobody has measured them yet.

They follow from what was measured on the bundled base and from what is known of these bases: where
a row of `sdatoms evaluate --report` says otherwise, the row is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdatoms.pictures import PICTURE_SUFFIXES

__all__ = [
    "REAL_PRESETS",
    "UNMEASURED",
    "Pace",
    "RealPreset",
    "count_pictures",
]

UNMEASURED = "not measured on real weights"


@dataclass(frozen=True)
class Pace:
    """Steps by the number of pictures."""

    each: int
    """Steps a picture."""
    least: int
    most: int

    def count_steps(self, pictures: int) -> int:
        """Steps for so many pictures, in hundreds, so that the last step is a sampled one."""
        steps = min(self.most, max(self.least, self.each * pictures))
        return max(100, round(steps / 100) * 100)


@dataclass(frozen=True)
class RealPreset:
    """What a preset is for, its settings, why they are so, and how long it trains."""

    about: str
    side: int
    """Of the base's pictures, px: 512 or 1024."""
    settings: Mapping[str, Any]
    reasons: Mapping[str, str]
    """Setting → why; `max_train_steps` for the pace."""
    pace: Pace


TYPICAL = 5
"""Pictures where nobody said which: as many as DreamBooth's subjects have."""
SUBJECT: dict[str, tuple[Any, str]] = {
    "atom_variant": ("coefficients", "shared atoms are a form of it"),
    "block_form": ("shared", "truer to a subject than the product form, at less drift"),
    "block_factors": ("each", "layers learn what their own filters do not span"),
    "block_atoms": (16, "as `best` on the bundled base"),
    "atom_layers": ("cross-attention", "a subject is learnt where the prompt is read"),
    "word_decay": (10.0, "other prompts stay what they were"),
    "adam_weight_decay": (1.0, "halves the drift on the bundled base"),
    "timestep_bias_strategy": ("later", "a picture decides early what it will show"),
    "timestep_bias_multiplier": (5.0, "five of six steps, as on the bundled base"),
    "timestep_bias_portion": (0.5, "the noisier half, as on the bundled base"),
}
"""What won on subjects in scenes, on the bundled base (docs/results.md)."""
STYLE: dict[str, tuple[Any, str]] = {
    "atom_variant": ("coefficients", "the product form is a form of it"),
    "block_form": ("product", "learns a hand where atoms that read words learn none"),
    "block_size": (16, "the smallest block that was as fast as LoRA"),
    "snr_gamma": (5.0, "min-SNR, the paper's value: noise-free steps do not rule the loss"),
}
"""What won on styles."""
LOOKS: dict[str, tuple[Any, str]] = {
    "validation_steps": (100, "four samples in a hundred steps cost little beside the steps"),
    "checkpointing_steps": (100, "every sampled step can be gone back to"),
    "best_metric": ("auto", "the last step of a real base is often past the best"),
}
RATES: dict[str, tuple[tuple[float, str], tuple[float, str]]] = {
    "sd15": (
        (2e-4, "five times the bundled base's steps at a fifth of its rate"),
        (1e-3, "the bundled base's own: larger ones broke its pictures"),
    ),
    "sdxl": (
        (1e-4, "larger bases overshoot at rates that smaller ones take"),
        (7e-4, "larger bases overshoot at rates that smaller ones take"),
    ),
}
"""Base → the rate of a subject and that of a style."""
BASES: dict[str, tuple[str, int, dict[str, tuple[Any, str]]]] = {
    "sd15": (
        "SD 1.5",
        512,
        {
            "train_batch_size": (2, "fits 8 GB with a base in 16 bits"),
        },
    ),
    "sdxl": (
        "SDXL",
        1024,
        {
            "train_batch_size": (1, "four times the pixels of SD 1.5"),
            "gradient_accumulation_steps": (2, "two pictures a step, one at a time in memory"),
            "gradient_checkpointing": (True, "16 GB do; a step takes about a third longer"),
        },
    ),
}
CLASS = {
    "with_prior_preservation": (True, "others of its kind stay what they were"),
    "prior_preservation_mode": ("prediction", "the base's own prediction, no class pictures"),
}
SUBJECTS: dict[str, tuple[str, dict[str, tuple[Any, str]], Pace, str]] = {
    "pet": (
        "Pets",
        {
            **CLASS,
            "prior_loss_weight": (0.5, "as on the bundled base: half halves the drift"),
            "random_flip": (True, "a pet is a pet in a mirror"),
        },
        Pace(100, 400, 1200),
        "100 a picture, as DreamBooth's recipes; more than twelve pictures need no more",
    ),
    "object": (
        "Things",
        {
            **CLASS,
            "prior_loss_weight": (0.3, "a thing shares less with its class than a pet"),
            "random_flip": (False, "letters and logos have a left and a right"),
        },
        Pace(80, 300, 1000),
        "80 a picture: rigid things look alike from picture to picture",
    ),
    "face": (
        "Faces",
        {
            **CLASS,
            "prior_loss_weight": (1.0, "or every face becomes this one"),
            "random_flip": (False, "faces are not symmetrical"),
            "use_ema": (True, "averages drift less; likeness shows every wobble"),
        },
        Pace(120, 500, 1500),
        "120 a picture: people notice in faces what they overlook elsewhere",
    ),
    "style": (
        "A way to draw",
        {
            "random_flip": (True, "a style is a style in a mirror; not where it holds writing"),
            "aspect_ratio_buckets": ("auto", "how a picture is laid out is part of a style"),
            "noise_offset": (0.05, "lets dark and bright palettes be learnt"),
        },
        Pace(40, 600, 3000),
        "40 a picture: each shows the style anew, and there are more of them",
    ),
}


def build_presets() -> dict[str, RealPreset]:
    found = {}
    for base, (base_name, side, fitting) in BASES.items():
        for subject, (subject_name, own, pace, why) in SUBJECTS.items():
            style = subject == "style"
            rate = {"learning_rate": RATES[base][style]}
            chosen = (STYLE if style else SUBJECT) | LOOKS | rate | fitting | own
            found[f"{base}-{subject}"] = RealPreset(
                f"{subject_name} on {base_name}, {UNMEASURED}",
                side,
                {"max_train_steps": pace.count_steps(TYPICAL)}
                | {name: value for name, (value, _) in chosen.items()},
                {name: reason for name, (_, reason) in chosen.items()} | {"max_train_steps": why},
                pace,
            )
    return found


REAL_PRESETS = build_presets()
"""Name, such as `sd15-pet` → preset; its steps are those for five pictures."""


def count_pictures(folder: str | None) -> int:
    """Files of a folder and its subfolders that are called as pictures are; five where there is no
    such folder. The trainer itself looks closer; for a number of steps this will do."""
    place = Path(folder or "")
    if not folder or not place.is_dir():
        return TYPICAL
    names = [p.name.lower() for p in place.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES]
    return sum(not name.rpartition(".")[0].endswith(("mask", "masklabel")) for name in names)
