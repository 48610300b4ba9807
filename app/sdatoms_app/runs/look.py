"""One look at the runs' files: what changed since the last one is drawn anew, the rest left alone.

A page looks every two seconds. What it was shown last travels with it, so the server keeps nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from sdatoms import AtomError
from sdatoms_app.queue.queue import Queue
from sdatoms_app.queue.training import Training
from sdatoms_app.runs.files import open_samples, read_curves
from sdatoms_app.runs.view import (
    EMPTY,
    describe_training,
    draw_curves,
    list_runs,
    offer_buttons,
    read_config,
    read_log,
)

__all__ = [
    "look_at_runs",
]

WATCHED = {
    "metrics": "metrics.jsonl",
    "samples": "samples",
    "log": "log.txt",
    "config": "config.toml",
}
"""Part of the page → the file or folder of a run that it is drawn from."""
BUTTONS = 9
PARTS = 7 + BUTTONS
"""Widgets of the page: the status, buttons, samples, two plots, log, settings, download."""


def look_at_runs(
    queue: Queue, id: str | None, log_scale: bool, weight: float, before: dict[str, Any]
) -> list[Any]:
    """What was shown, the list, and updates of the page's parts.

    Args:
        id: of the chosen run; None chooses the newest.
        log_scale: of the loss's axis.
        weight: of the smoothing.
        before: what the last look returned first; empty for a fresh page.
    """
    choices = list_runs(queue)
    ids = [value for _, value in choices]
    chosen = id if id in ids else (ids[0] if ids else None)
    now: dict[str, Any] = {"choices": choices, "id": chosen}
    listed = gr.skip()
    if choices != before.get("choices") or chosen != id:
        listed = gr.Radio(choices=choices, value=chosen)
    if chosen is None:
        return [now, listed, *show_none(before)]
    try:
        training = queue.find(chosen)
        return [now, listed, *show_training(training, log_scale, weight, before, now)]
    except (AtomError, OSError):  # deleted since it was listed
        return [before, listed, *[gr.skip()] * PARTS]


def show_none(before: dict[str, Any]) -> list[Any]:
    if before.get("id", "") is None:
        return [gr.skip()] * PARTS
    buttons = [gr.Button(interactive=False)] * (BUTTONS - 3) + [gr.Button(visible=False)] * 3
    return [EMPTY, *buttons, *[gr.skip()] * 6]


def show_training(
    training: Training,
    log_scale: bool,
    weight: float,
    before: dict[str, Any],
    now: dict[str, Any],
) -> list[Any]:
    """Updates of the parts that changed; what is shown is noted in `now`."""
    now |= {part: read_stamp(training.path / path) for part, path in WATCHED.items()}
    state = (training.state, training.stopping, training.newest is None)
    now |= {"scale": log_scale, "weight": weight, "state": state}
    new = now["id"] != before.get("id")

    def changed(*parts: str) -> bool:
        return new or any(now[part] != before.get(part) for part in parts)

    plots, now["pace"] = [gr.skip()] * 2, before.get("pace")
    if changed("metrics", "scale", "weight"):
        curves = read_curves(training.path, weight)
        plots = draw_curves(curves, log_scale)
        now["pace"] = curves.seconds_per_step
    now["shown"] = describe_training(training, now["pace"])
    return [
        now["shown"] if changed("shown") else gr.skip(),
        *(offer_buttons(training) if changed("state") else [gr.skip()] * BUTTONS),
        open_samples(training.path) if changed("samples") else gr.skip(),
        *plots,
        read_log(training) if changed("log", "state") else gr.skip(),
        read_config(training) if changed("config") else gr.skip(),
        gr.DownloadButton(visible=False) if new else gr.skip(),
    ]


def read_stamp(path: Path) -> tuple[int, int]:
    """When a file was changed, and its size; zeros where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_size)
