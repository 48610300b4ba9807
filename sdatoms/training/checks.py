"""What the trainer's flags take, and which do not go together."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sdatoms.atoms.config import BLOCK_VARIANTS, MOST_INNER
from sdatoms.atoms.keys import is_word
from sdatoms.diffusion.triggers import UNRELATED_PROMPTS
from sdatoms.errors import AtomError, check_text, is_finite
from sdatoms.settings import quote_value

__all__ = [
    "MANY",
    "RANGES",
    "READING",
    "check_settings",
]

READING = ("text", "cross-attention", "attention", "attention+convolutions", "all")
"""`--atom_layers` of which some read the prompt."""

MANY = 10**9
"""More steps than any run takes."""
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**64 - 1),
    "max_train_steps": (1, MANY),
    "train_batch_size": (1, 4096),
    "sample_batch_size": (1, 4096),
    "gradient_accumulation_steps": (1, 10_000),
    "num_class_images": (1, 100_000),
    "checkpointing_steps": (1, MANY),
    "checkpoints_total_limit": (1, MANY),
    "validation_steps": (0, MANY),
    "num_inference_steps": (1, 1000),
    "num_validation_images": (0, 10_000),
    "num_validation_pictures": (0, MANY),
    "validation_split": (0, 0.9),
    "num_drift_images": (0, len(UNRELATED_PROMPTS)),
    "early_stopping_patience": (1, MANY),
    "lr_warmup_steps": (0, MANY),
    "lr_num_cycles": (1, MANY),
    "lr_power": (0, 100),
    "color_jitter": (0, 1),
    "color_copies": (1, 100),
    "crop_copies": (1, 100),
    "keep_tokens": (0, 1000),
    "caption_tag_dropout_rate": (0, 1),
    "proportion_empty_prompts": (0, 1),
    "unmasked_weight": (0, 1),
    "prior_loss_weight": (0, 1e6),
    "prior_share": (0, 0.9),
    "huber_c": (1e-6, 1e3),
    "snr_gamma": (1e-6, 1e6),
    "noise_offset": (0, 10),
    "input_perturbation": (0, 10),
    "timestep_bias_multiplier": (1e-6, 1e6),
    "timestep_bias_portion": (1e-3, 1),
    "timestep_bias_begin": (0, MANY),
    "timestep_bias_end": (0, MANY),
    "spatial_learning_rate": (0, 1e38),
    "block_learning_rate": (0, 1e38),
    "text_encoder_lr": (0, 1e38),
    "token_lr": (1e-12, 1e38),
    "num_new_tokens_per_abstraction": (1, 64),
    "adam_beta1": (0, 1 - 1e-9),
    "adam_beta2": (0, 1 - 1e-9),
    "adam_weight_decay": (0, 1e6),
    "adam_epsilon": (0, 1),
    "num_inner_atoms": (1, MOST_INNER),
    "word_decay": (0, 1e6),
    "max_grad_norm": (0, inf),
    "ema_decay": (0, 1),
}
"""Flag → the least and the most it takes."""


LARGEST = 8192
"""px; no picture for training has a larger side."""
NEEDS_NAME = ("_dir", "resume_from_checkpoint", "data_config")
"""Ends of flags that name a place; empty words are a variable that was not set."""
PATHS = (
    *("_dir", "_path", "evaluator", "data_config", "dataset_name", "resume_from_checkpoint"),
    *("vae", "text_encoders", "face_detector", "revision", "variant", "hub_model_id"),
)
"""Ends of flags that name a file, a folder or a place on a hub."""


def check_settings(config: Any) -> None:
    """Refuse what is out of range or does not go together in a `TrainConfig`, which calls this.

    Raises:
        AtomError: names the flag, what came and what fits.
    """
    for name in get_type_hints(type(config)):
        value = getattr(config, name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                check_text(text, f"--{name}")
                if not text and name.endswith(NEEDS_NAME) and name != "instance_data_dir":
                    raise AtomError(f"--{name} is empty; name a place, or leave the flag out")
                if "\0" in text and name.endswith(PATHS):
                    raise AtomError(f"--{name} is {text!r}; no path holds a NUL character")
    for name, (least, most) in RANGES.items():
        value = getattr(config, name)
        fits_float = isinstance(value, float) or is_finite(value)
        if value is not None and not (least <= value <= most and fits_float):
            show = lambda number: f"{number}" if isinstance(number, int) else f"{number:g}"
            fits = f"{show(least)} to {show(most)}"
            if most in (inf, MANY):
                fits = f"at most {show(most)}" if value > most else f"at least {show(least)}"
            raise AtomError(f"--{name} is {quote_value(value)}; it takes {fits}")
    rate = config.learning_rate
    if rate is not None and not (is_finite(rate) and rate > 0):
        raise AtomError(f"--learning_rate is {quote_value(rate)}; it takes a number above 0")
    for name, hint in get_type_hints(type(config)).items():
        choices = [c for part in (hint, *get_args(hint)) for c in list_choices(part)]
        value = getattr(config, name)
        if choices and value is not None and value not in choices:
            raise AtomError(f"--{name} is {quote_value(value)}; it takes {' | '.join(choices)}")
    side = config.resolution
    if side is not None and (not 8 <= side <= LARGEST or side % 8):
        raise AtomError(
            f"--resolution is {quote_value(side)}; it takes a multiple of 8 up to {LARGEST}"
        )
    for wrong, sentence in list_conflicts(config):
        if wrong:
            raise AtomError(sentence)


def list_choices(hint: Any) -> list[str]:
    return list(get_args(hint)) if get_origin(hint) is Literal else []


def list_conflicts(config: Any) -> Iterator[tuple[bool, str]]:
    """Yield whether settings contradict each other, and the sentence that says so."""
    prediction = config.prior_preservation_mode == "prediction"
    yield (
        config.with_prior_preservation and not config.class_prompt and not config.data_config,
        "--with_prior_preservation needs --class_prompt, the words for the class, such as 'a dog'",
    )
    yield (
        prediction and not config.with_prior_preservation,
        "--prior_preservation_mode prediction needs --with_prior_preservation",
    )
    yield (
        prediction and config.class_data_dir is not None,
        "--class_data_dir is not read with --prior_preservation_mode prediction; leave one out",
    )
    kept = round(config.prior_share * config.train_batch_size)
    yield (
        config.prior_share > 0 and not prediction,
        "--prior_share needs --prior_preservation_mode prediction",
    )
    yield (
        config.prior_share > 0 and not 0 < kept < config.train_batch_size,
        f"--prior_share {config.prior_share:g} of batches of {config.train_batch_size} is {kept} "
        "rows; it takes at least one, and leaves one that teaches",
    )
    yield (
        "auto" not in (config.dtype, config.base_dtype) and config.dtype != config.base_dtype,
        f"--dtype {config.dtype} and --base_dtype {config.base_dtype} name two dtypes of the base; "
        "leave one out",
    )
    reads = config.shared_atoms == "captions"
    yield (
        reads and (config.block_form != "shared" or config.atom_layers != "text"),
        "--shared_atoms captions needs --block_form shared and --atom_layers text, the layers that "
        "read captions",
    )
    yield (
        reads and config.trains_text,
        "--shared_atoms captions reads the captions once, and text encoders or words that are "
        "trained too would say something else; leave one out",
    )
    yield (
        config.word_decay > 0
        and (
            reads
            or config.block_form != "shared"
            or config.atom_layers not in READING
            or config.atom_variant not in BLOCK_VARIANTS
        ),
        f"--word_decay needs --atom_variant {' or '.join(BLOCK_VARIANTS)}, --block_form shared, "
        f"--atom_layers {' or '.join(READING)}, of which some read words, and --shared_atoms "
        "trained; change these, or set --word_decay 0",
    )
    yield (
        config.use_8bit_adam and config.optimizer != "adamw",
        f"--use_8bit_adam and --optimizer {config.optimizer} name two optimizers; leave one out",
    )
    yield (
        config.optimizer == "prodigy"
        and any((config.spatial_learning_rate, config.block_learning_rate, config.text_encoder_lr)),
        "--optimizer prodigy finds one rate for all; leave --spatial_learning_rate, "
        "--block_learning_rate and --text_encoder_lr out, or set them to 0",
    )
    yield (
        config.text_encoder_lr is not None and not config.train_text_encoder,
        "--text_encoder_lr needs --train_text_encoder",
    )
    yield (
        config.face_detector is not None and config.crop_style != "face",
        "--face_detector needs --crop_style face",
    )
    yield (
        config.train_text_encoder_ti
        and config.token_abstraction not in config.instance_prompt
        and not (config.data_config and not config.instance_prompt),
        f"--train_text_encoder_ti: the new word {config.token_abstraction!r} must stand in "
        "--instance_prompt",
    )
    yield (
        not is_word(config.token_abstraction),
        f"--token_abstraction is {config.token_abstraction!r}; it takes a word in lower case and "
        "angle brackets, such as <dog>",
    )
    yield (
        config.early_stopping_patience is not None and not config.best_metric,
        "--early_stopping_patience needs --best_metric, the measured name it watches",
    )
    yield (
        config.best_metric not in (None, "auto", "validation_loss")
        and not (config.validation_steps and config.num_validation_images),
        "--best_metric is measured on samples; it needs --validation_steps and "
        "--num_validation_images above 0",
    )
    held = ("validation_split", "num_validation_pictures", "validation_data_dir")
    given = [f"--{name}" for name in held if getattr(config, name)]
    yield (
        len(given) > 1,
        f"{' and '.join(given)} all say which pictures are held back; leave all but one out",
    )
    yield (
        bool(given) and not config.validation_steps,
        f"{', '.join(given)} is measured every --validation_steps, which is 0; it takes at least 1",
    )
    yield (
        config.best_metric == "validation_loss" and not given,
        "--best_metric validation_loss needs pictures that are not trained on: "
        "--num_validation_pictures, --validation_split or --validation_data_dir",
    )
    yield (
        bool(config.validation_prompt and config.validation_prompts),
        "--validation_prompt and --validation_prompts both name prompts; leave one out",
    )
    yield (
        config.huber_schedule == "exponential"
        and config.huber_c >= 1
        and config.loss_type in ("huber", "smooth_l1"),
        f"--huber_schedule exponential falls from 1 to --huber_c, which is {config.huber_c}; it "
        "takes less than 1",
    )
