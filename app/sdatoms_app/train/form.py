"""The trainer's settings as widgets, made from `TrainConfig`'s own fields, types and docstrings.

Which of them a visitor may set is written down in `offered`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gradio as gr

from sdatoms import AtomError
from sdatoms.errors import clip, is_finite
from sdatoms.settings import build_config, read_field_help, unwrap
from sdatoms.training import presets
from sdatoms.training.config import TrainConfig
from sdatoms.training.presets import expand_preset
from sdatoms.training.samples import read_sample_sampler
from sdatoms_app.train.offered import CAPS, CHOICES, GROUPS, PLAIN

__all__ = [
    "FIRST",
    "PRESETS",
    "build_fields",
    "change_preset",
    "check_settings",
    "list_settings",
    "read_defaults",
    "read_first",
    "read_preset",
    "show_value",
]

MAX_WORDS = 2000
LARGEST = 1e15
"""Of any number; seeds are whole."""
PRESETS = {name.capitalize(): expand_preset(name, {}) for name in presets.PRESETS}
"""What each preset changes of the trainer's own defaults."""
FIRST = "Balanced"
"""The preset that a page opens with."""


FLAG = re.compile(r"`?--(\w+)`?")
"""A setting as the command line spells it; the form calls it by its label."""


def list_settings() -> dict[str, Any]:
    """Name → type of every setting a visitor may choose, group by group."""
    hints = get_type_hints(TrainConfig)
    return {name: unwrap(hints[name]) for names in GROUPS.values() for name in names}


def read_defaults() -> dict[str, Any]:
    return {
        field.name: None if field.default is MISSING else field.default
        for field in fields(TrainConfig)
    }


def show_value(value: Any) -> Any:
    """A setting as its widget shows it: what is not given is empty."""
    return "" if value is None else value


def read_first() -> dict[str, Any]:
    """What the widgets of a page that is opened for the first time show."""
    values = read_defaults() | PRESETS[FIRST]
    return {name: show_value(values[name]) for name in list_settings()}


def read_preset(name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All settings of a preset, under those given, as the form would give them."""
    defaults = {n: read_defaults()[n] for n in list_settings()}
    return check_settings(defaults | expand_preset(name.lower(), given or {}))


def change_preset(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a preset and changes to it, both from a program.

    Raises:
        AtomError: there is no such preset, or as `check_settings`.
    """
    if name not in PRESETS:
        raise AtomError(f"no preset {clip(name)!r}; there are {', '.join(PRESETS)}")
    return read_preset(name, settings)


def build_fields() -> dict[str, Any]:
    """One labelled widget for every folded setting, by group, as the first preset has it; call
    inside a layout.

    A page that is opened fills in nothing that stands there already: every change of a field is a
    message to the server and back.
    """
    kinds, texts, defaults = list_settings(), read_field_help(TrainConfig), read_defaults()
    first = read_first()
    widgets: dict[str, Any] = {}
    for group, names in GROUPS.items():
        with gr.Accordion(group, open=False):
            for name in names:
                if name not in PLAIN:
                    label = name.replace("_", " ")
                    info = FLAG.sub(lambda flag: flag[1].replace("_", " "), texts.get(name, ""))
                    default, value = defaults[name], first[name]
                    widgets[name] = build_field(name, kinds[name], label, info, default, value)
    return widgets


def build_field(name: str, kind: Any, label: str, info: str, default: Any, value: Any) -> Any:
    """The widget of a setting, which goes by what the setting takes and its `default`; it shows
    `value`."""
    named: dict[str, Any] = {"label": label, "info": info, "elem_id": f"train-{name}"}
    if kind is bool:
        return gr.Checkbox(value=bool(value), **named)
    if offered := CHOICES.get(name, get_args(kind) if get_origin(kind) is Literal else ()):
        choices = [(str(choice), choice) for choice in offered]
        choices = choices if default is not None else [("default", ""), *choices]
        return gr.Dropdown(choices, value=value, **named)
    if kind is str:
        return gr.Textbox(value=value, max_length=MAX_WORDS, **named)
    if default is None:  # an empty number field turns into 0 on the page
        shown = {"placeholder": "default", "max_lines": 1, "max_length": 40}
        return gr.Textbox(value=str(value), **shown, **named)
    whole: dict[str, Any] = {"precision": 0, "maximum": CAPS[name]} if kind is int else {}
    return gr.Number(value=value, **whole, **named)


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
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = fit_number(name, kind, value)
        if name in CAPS and isinstance(value, int) and value > CAPS[name]:
            raise AtomError(f"{name} is {value}; it takes at most {CAPS[name]}")
        if name in CHOICES and value not in CHOICES[name]:
            raise AtomError(
                f"{name} is {clip(str(value), 40)!r}; it is one of {', '.join(CHOICES[name])}"
            )
        if kind is str and len(str(value)) > MAX_WORDS:
            raise AtomError(
                f"{name} has {len(str(value))} characters; it takes at most {MAX_WORDS}"
            )
        given[name] = value
    try:
        read_sample_sampler(build_config(TrainConfig, given, "the form"))
    except AtomError as error:
        raise AtomError(str(error).replace("--", "")) from None
    return given


def fit_number(name: str, kind: Any, value: float) -> float:
    """The number as its setting has it.

    Raises:
        AtomError: it is NaN, infinite, or larger than any setting takes.
    """
    if not is_finite(value) or abs(value) >= LARGEST:
        raise AtomError(
            f"{name} is {clip(str(value), 40)}; it takes a finite number below {LARGEST:.0e}"
        )
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if kind is float else value


def read_number(name: str, text: str) -> float:
    """The number of a text field.

    Raises:
        AtomError: it is none.
    """
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise AtomError(f"{name} is {text[:40]!r}; it takes a number") from None
