"""The trainer's settings as widgets, made from `TrainConfig`'s own fields, types and docstrings.

What a visitor may set is decided here: numbers, switches, choices and the prompts. Folders, model
names and whatever else could reach beyond the run's own directory are the operator's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gradio as gr

from sdatoms import AtomError
from sdatoms.settings import build_config, read_field_help, unwrap
from sdatoms.training import presets
from sdatoms.training.config import TrainConfig
from sdatoms.training.presets import expand_preset

__all__ = [
    "CAPS",
    "GROUPS",
    "PRESETS",
    "build_fields",
    "check_settings",
    "group_settings",
    "list_settings",
    "read_defaults",
    "read_preset",
    "show_value",
]

PROMPTS = ("instance_prompt", "class_prompt", "validation_prompt", "trigger")
"""Settings that take free words."""
SCHEDULES = (
    "constant_with_warmup",
    "constant",
    "cosine",
    "cosine_with_restarts",
    "linear",
    "polynomial",
)
GROUPS = {
    "Method": (
        "atom_",
        "num_atoms",
        "num_inner",
        "block_atoms",
        "block_share",
        "block_size",
        "block_view",
        "sparsity",
    ),
    "Steps and learning rate": (
        "max_train_steps",
        "train_batch",
        "gradient_accumulation",
        "learning_rate",
        "lr_",
        "scale_lr",
        "spatial_learning",
        "block_learning",
        "text_encoder_lr",
        "num_train_epochs",
        "seed",
    ),
    "Keeping the class what it was": ("with_prior", "prior_", "class_", "num_class", "sample_"),
    "Pictures": ("resolution", "random_flip", "color_", "center_crop", "instance_", "trigger"),
    "Samples and checkpoints": (
        "validation_",
        "num_validation",
        "num_drift",
        "best_",
        "early_",
        "checkpoint",
    ),
    "Loss": ("loss_", "huber", "snr_", "noise_", "input_", "rescale_", "timestep_"),
    "Optimizer": ("adam_", "prodigy_", "max_grad", "use_8bit", "use_ema", "ema_"),
    "Memory and speed": (
        "mixed_",
        "gradient_check",
        "load_in",
        "dynamo",
        "allow_tf32",
        "dataloader",
    ),
}
"""Group → beginnings of the names of its settings, in order; others stand under "More"."""
HIDDEN = ("hub", "token", "report", "log", "revision", "variant", "resume", "cache", "dir", "path")
"""Settings with one of these words in their name are the operator's."""
CAPS = {
    "max_train_steps": 20_000,
    "train_batch_size": 64,
    "sample_batch_size": 64,
    "gradient_accumulation_steps": 64,
    "num_class_images": 1000,
    "num_validation_images": 16,
    "resolution": 1024,
    "checkpoints_total_limit": 20,
    "num_train_epochs": 10_000,
    "dataloader_num_workers": 8,
}
PRESETS = {name.capitalize(): expand_preset(name, {}) for name in presets.PRESETS}
"""What each preset changes of the trainer's own defaults."""


FLAG = re.compile(r"`?--(\w+)`?")
"""A setting as the command line spells it; the form calls it by its label."""


def list_settings() -> dict[str, Any]:
    """Name → type of every setting a visitor may choose, in the trainer's order."""
    hints = {name: unwrap(hint) for name, hint in get_type_hints(TrainConfig).items()}
    found = {}
    for field in fields(TrainConfig):
        kind = hints[field.name]
        plain = kind in (bool, int, float) or get_origin(kind) is Literal
        worded = field.name in (*PROMPTS, "lr_scheduler", "best_metric")
        own = any(word in field.name.split("_") for word in HIDDEN) or "hub" in field.name
        if ((plain or worded) and not own) or field.name == "atom_variant":
            found[field.name] = kind
    return found


def read_defaults() -> dict[str, Any]:
    return {
        field.name: None if field.default is MISSING else field.default
        for field in fields(TrainConfig)
    }


def group_settings(names: list[str]) -> dict[str, list[str]]:
    """Group → names, every name once."""
    grouped: dict[str, list[str]] = {group: [] for group in [*GROUPS, "More"]}
    for name in names:
        starts = (g for g, heads in GROUPS.items() if any(name.startswith(h) for h in heads))
        grouped[next(starts, "More")].append(name)
    return {group: members for group, members in grouped.items() if members}


def show_value(value: Any) -> Any:
    """A setting as its widget shows it: what is not given is empty."""
    return "" if value is None else value


def read_preset(name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All settings of a preset, under those given, as the form would give them."""
    defaults = {n: read_defaults()[n] for n in list_settings()}
    return check_settings(defaults | expand_preset(name.lower(), given or {}))


def build_fields(skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """One labelled widget a setting, in folded groups; call inside a layout."""
    kinds, texts, defaults = list_settings(), read_field_help(TrainConfig), read_defaults()
    widgets: dict[str, Any] = {}
    for group, names in group_settings([n for n in kinds if n not in skip]).items():
        with gr.Accordion(group, open=False):
            for name in names:
                label = name.replace("_", " ")
                info = FLAG.sub(lambda flag: flag[1].replace("_", " "), texts.get(name, ""))
                widgets[name] = build_field(name, kinds[name], label, info, defaults[name])
    return widgets


def build_field(name: str, kind: Any, label: str, info: str, default: Any) -> Any:
    id = f"train-{name}"
    if kind is bool:
        return gr.Checkbox(label=label, info=info, value=bool(default), elem_id=id)
    if get_origin(kind) is Literal:
        choices = [(str(c), c) for c in get_args(kind)]
        choices = choices if default is not None else [("default", ""), *choices]
        return gr.Dropdown(choices, label=label, info=info, value=default or "", elem_id=id)
    if name == "lr_scheduler":
        return gr.Dropdown(list(SCHEDULES), label=label, info=info, value=default, elem_id=id)
    if kind is str:
        return gr.Textbox(label=label, info=info, value=default or "", elem_id=id, max_length=2000)
    if default is None:  # an empty number field turns into 0 on the page
        return gr.Textbox(
            label=label, info=info, placeholder="default", max_lines=1, max_length=40, elem_id=id
        )
    more: dict[str, Any] = {"precision": 0} if kind is int else {}
    return gr.Number(
        label=label,
        info=info,
        value=default,
        maximum=CAPS.get(name),
        elem_id=id,
        **more,
    )


def check_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings as the trainer's own parser takes them; empty ones are left at their defaults.

    Raises:
        AtomError: a setting is unknown, not a visitor's to choose, or out of its range.
    """
    kinds = list_settings()
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            raise AtomError(f"{str(name)[:60]!r} is no setting that can be chosen here")
        if value is None or value == "":
            continue
        kind = kinds[name]
        if kind in (int, float) and isinstance(value, str):
            value = read_number(name, value)
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if name in CAPS and isinstance(value, int) and value > CAPS[name]:
            raise AtomError(f"{name} is {value}; it takes at most {CAPS[name]}")
        if name == "lr_scheduler" and value not in SCHEDULES:
            raise AtomError(f"lr_scheduler is none of {', '.join(SCHEDULES)}")
        if kind is str and len(str(value)) > 2000:
            raise AtomError(f"{name} has {len(str(value))} characters; it takes at most 2000")
        given[name] = value
    try:
        build_config(TrainConfig, given, "the form")
    except AtomError as error:
        raise AtomError(str(error).replace("--", "")) from None
    return given


def read_number(name: str, text: str) -> float:
    """The number of a text field.

    Raises:
        AtomError: it is none.
    """
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise AtomError(f"{name} is {text[:40]!r}; it takes a number") from None
