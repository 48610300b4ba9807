"""Named settings of the trainer: `sdatoms train --preset quick`.

A preset stands between the trainer's defaults and what is given in a file or on the command line.
What each one costs is in `presets.json`, measured by

    python scripts/bench_training.py --presets --output sdatoms/training/presets.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from sdatoms.atoms.config import BLOCK_VARIANTS
from sdatoms.diffusion.triggers import clean_prompt
from sdatoms.errors import AtomError
from sdatoms.training.checks import READING
from sdatoms.training.real_presets import REAL_PRESETS, count_pictures

__all__ = [
    "PRESETS",
    "PRODUCTS",
    "SUBJECT",
    "TINY",
    "Preset",
    "expand_preset",
]


@dataclass(frozen=True)
class Preset:
    """What a preset is for, and what it changes of the trainer's defaults."""

    about: str
    settings: Mapping[str, Any]


PRODUCTS = {
    "atom_variant": "coefficients",
    "block_form": "product",
    "block_size": 32,
    "learning_rate": 1e-3,
}
"""Blocks in product form: a step costs what one of LoRA costs; a larger rate breaks pictures."""
TINY = {
    "atom_variant": "coefficients",
    "block_form": "shared",
    "atom_layers": "text",
    "learning_rate": 3e-3,
    "adam_weight_decay": 1.0,
    "timestep_bias_strategy": "later",
    "timestep_bias_multiplier": 5.0,
    "timestep_bias_portion": 0.5,
}
"""Four atoms for all layers that read the prompt. Decay towards the base halves what they drift;
five of six steps learn from the noisier half of the timesteps, where a picture decides what it will
show (docs/results.md)."""
SUBJECT = TINY | {"block_factors": "each", "learning_rate": 3e-3, "word_decay": 10.0}
"""The same atoms with coefficients of each layer's own, which forget what other words say: as true
to a subject as LoRA with 35 times the numbers, and other prompts stay (docs/results.md)."""
MORE = SUBJECT | {
    "atom_layers": "cross-attention",
    "block_atoms": 16,
    "learning_rate": 1e-3,
}
"""Sixteen atoms a width in all of cross-attention, of which those that read the prompt forget what
other words say: truer to a subject than four, at more drift and less variety (docs/results.md)."""
TRUEST = TINY | {
    "block_factors": "each",
    "atom_layers": "attention+convolutions",
    "block_atoms": 16,
}
"""Sixteen atoms a width where LoRA trains, seven tenths of the numbers of its rank 16: as true to a
subject as that; as with it, pictures of one prompt differ half as much (docs/results.md)."""
SEEN = SUBJECT | {"atom_layers": "all"}
"""Four atoms a width in all layers, which learn also what no word says, such as how the surfaces of
a photograph look (docs/results.md)."""
READING_RATE = 1e-2
"""The rate of `SUBJECT` where its atoms are set to the captions and coefficients alone train."""
KEEP_CLASS = {"with_prior_preservation": True, "prior_preservation_mode": "prediction"}
"""The base's own prediction for the class prompt, which needs no class pictures."""
FORM_ALONE = {"block_size", "block_factors", "block_atoms"}
"""Settings that mean nothing, or another thing, in another block form."""
DECAYS = {
    "atom_variant": BLOCK_VARIANTS,
    "block_form": ("shared",),
    "atom_layers": READING,
    "shared_atoms": ("trained",),
}
"""Settings without which there are no atoms for `word_decay`, and the values that leave some."""
LOOKS = {"validation_steps": 50, "checkpointing_steps": 50}
"""Steps between two looks at samples, and between two checkpoints."""


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        "A first look in a minute",
        SUBJECT
        | LOOKS
        | {
            "max_train_steps": 50,
            "num_validation_images": 2,
            "num_drift_images": 2,
        },
    ),
    "balanced": Preset(
        "Enough for most subjects",
        SUBJECT | LOOKS | {"max_train_steps": 100},
    ),
    "best": Preset(
        "The most of the subject, in a file of 320 kB",
        MORE | LOOKS | {"max_train_steps": 100},
    ),
    "tiny": Preset(
        "The smallest file: a subject's colours and kind in a thousand numbers",
        TINY | LOOKS | {"max_train_steps": 100},
    ),
    "pet": Preset(
        "Faces and pets: the class stays what it was, pictures are mirrored too",
        SUBJECT
        | KEEP_CLASS
        | LOOKS
        | {
            "max_train_steps": 100,
            "random_flip": True,
            "prior_loss_weight": 0.5,
            "use_ema": True,
        },
    ),
    "object": Preset(
        "Things: letters and logos are never mirrored, the class stays what it was",
        SUBJECT
        | KEEP_CLASS
        | LOOKS
        | {
            "max_train_steps": 100,
            "prior_loss_weight": 0.3,
        },
    ),
    "style": Preset(
        "A way to draw: longer, mirrored, and every picture under its own caption",
        PRODUCTS
        | {
            "max_train_steps": 400,
            "validation_steps": 100,
            "checkpointing_steps": 100,
            "random_flip": True,
        },
    ),
    "photograph": Preset(
        "Photographs and drawings that come out blotched otherwise: atoms in all layers",
        SEEN | LOOKS | {"max_train_steps": 100},
    ),
    "likeness": Preset(
        "The truest to a subject, in 3.5 MB: pictures of one prompt differ less, others change",
        TRUEST | LOOKS | {"max_train_steps": 100},
    ),
} | {name: Preset(preset.about, preset.settings) for name, preset in REAL_PRESETS.items()}


def expand_preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's settings, under those given.

    Where it keeps the class and none is named, the class is the instance prompt without its rare
    words; where that leaves nothing new, nothing is kept. For real bases, steps go by the number of
    pictures in the folder given.

    Raises:
        AtomError: there is no such preset.
    """
    if name not in PRESETS:
        near = get_close_matches(str(name), PRESETS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise AtomError(f"there is no preset {str(name)[:60]!r}; {hint}")
    settings = {**PRESETS[name].settings, **given}
    if settings.get("shared_atoms") == "captions":  # of the layers that read captions alone
        settings["atom_layers"] = given.get("atom_layers", TINY["atom_layers"])
        settings = {k: v for k, v in settings.items() if k in given or k != "block_atoms"}
    if settings.get("block_form") != PRESETS[name].settings.get("block_form"):
        for key in FORM_ALONE - given.keys():
            settings.pop(key, None)
    known = {"shared_atoms": "trained", **settings}
    if any(known.get(key) not in values for key, values in DECAYS.items()):
        settings = {k: v for k, v in settings.items() if k in given or k != "word_decay"}
    reads = settings.get("shared_atoms") == "captions" and settings.get("block_factors") == "each"
    if reads and "learning_rate" not in given:
        settings["learning_rate"] = READING_RATE
    if name in REAL_PRESETS and "max_train_steps" not in given:
        count = count_pictures(given.get("instance_data_dir"))
        settings["max_train_steps"] = REAL_PRESETS[name].pace.count_steps(count)
    if given.get("optimizer") == "prodigy" and "learning_rate" not in given:
        del settings["learning_rate"]  # it finds its own
    plain = clean_prompt(words := str(settings.get("instance_prompt") or ""))
    keeps = settings.get("with_prior_preservation")
    if keeps and not settings.get("class_prompt") and plain and plain != words:
        settings["class_prompt"] = plain
    if not keeps or not settings.get("class_prompt"):
        return {k: v for k, v in settings.items() if k in given or k not in KEEP_CLASS}
    return settings
