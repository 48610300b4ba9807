"""How runs are shown: labels, a progress line, buttons that fit, curves."""

from __future__ import annotations

import html
import time
from typing import Any

import gradio as gr

from sdatoms.errors import clip
from sdatoms_app.queue.queue import Queue
from sdatoms_app.queue.training import Training, read_tail
from sdatoms_app.runs.files import Curves, describe_seconds, read_memory
from sdatoms_app.shared.places import hide_folders
from sdatoms_app.shared.plots import Line, draw_plot

__all__ = [
    "BAR",
    "EMPTY",
    "describe_training",
    "draw_curves",
    "list_runs",
    "offer_buttons",
    "read_config",
    "read_log",
]

MAX_SHOWN = 60
MAX_PLOTS = 12
STATES = {
    "queued": "⏸ queued",
    "starting": "⏳ starting",
    "running": "▶ running",
    "done": "✓ done",
    "stopped": "■ stopped",
    "failed": "✗ failed",
}
EMPTY = (
    '<p class="hint">No training yet. Start one on the Train tab: here you then see its progress, '
    "samples and curves. It goes on while this page is closed.</p>"
)
BAR = """
.run {display: grid; gap: .4rem}
.run .line {display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: baseline}
.run .name {font-weight: 600; overflow-wrap: anywhere}
.run .track {height: .8rem; border-radius: .4rem; overflow: hidden;
  background: var(--border-color-primary)}
.run .fill {height: 100%; background: var(--color-accent)}
.run pre {white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .8rem}
"""


def list_runs(queue: Queue) -> list[tuple[str, str]]:
    """Labels and ids, newest first."""
    found = []
    for training in queue.list()[:MAX_SHOWN]:
        under_way = training.total and training.state != "done"
        share = f" {100 * training.step // training.total} %" if under_way else ""
        if training.state == "queued":
            share = f", behind {training.place}" if training.place else ", next"
        found.append((f"{training.id} · {STATES[training.state]}{share}", training.id))
    return found


def describe_training(training: Training, seconds_per_step: float | None) -> str:
    """The run's progress as HTML; every word from outside is escaped."""
    share = 100 * training.step / training.total if training.total else 0
    facts = [STATES[training.state]]
    if training.state == "running":
        facts = [f"▶ {training.phase}"]
    if training.place:
        facts.append(f"behind {training.place} other{'s' if training.place > 1 else ''}")
    if training.stopping:
        facts.append("saving and stopping after this step")
    facts.append(f"step {training.step} of {training.total}")
    if training.eta_s:
        end = time.strftime("%H:%M", time.localtime(time.time() + training.eta_s))
        facts.append(f"{describe_seconds(training.eta_s)} left, until {end}")
    if seconds_per_step:
        facts.append(f"{seconds_per_step:.2f} s a step")
    memory = read_memory(training)
    if memory:
        facts.append(f"{memory} of memory")
    if training.atoms:
        facts.append(f"{training.atoms.stat().st_size / 1000:.0f} kB of atoms")
    if training.silent_s and training.silent_s > 30:
        facts.append(f"silent for {describe_seconds(training.silent_s)}")
    if training.gpu is not None:
        facts.append(f"GPU {training.gpu}")
    spans = "".join(f"<span>{html.escape(fact)}</span>" for fact in facts)
    reason = f'<div class="reason">{html.escape(training.reason)}</div>' if training.reason else ""
    error = f"<pre>{html.escape(training.error[-4000:])}</pre>" if training.error else ""
    return (
        f'<div class="run"><div class="name">{html.escape(clip(training.title, 80))}</div>'
        f'<div class="track" role="progressbar" aria-label="Progress of the run" '
        f'aria-valuemin="0" aria-valuemax="{training.total}" aria-valuenow="{training.step}">'
        f'<div class="fill" style="width:{min(100.0, share):.1f}%"></div></div>'
        f'<div class="line">{spans}</div>{reason}{error}</div>'
    )


def offer_buttons(training: Training) -> list[Any]:
    return [
        gr.Button(
            value="Leave the queue" if training.state == "queued" else "Stop and save",
            interactive=training.live and not training.stopping,
        ),
        *[gr.Button(interactive=training.state == "running" and not training.stopping)] * 2,
        gr.Button(interactive=training.state in ("stopped", "failed")),
        gr.Button(interactive=training.newest is not None),
        gr.Button(interactive=True),
        *[gr.Button(visible=training.state == "queued")] * 3,
    ]


def draw_curves(curves: Curves, log_scale: bool) -> list[str]:
    """The loss, the learning rate, and a plot for every other measure."""
    pairs = [list(zip(curves.steps, y, strict=True)) for y in (curves.smoothed, curves.loss)]
    loss = [Line("smoothed", pairs[0]), Line("as measured", pairs[1], faint=True)]
    rate = [Line("", list(zip(curves.steps, curves.lr, strict=True)))]
    more = [
        draw_plot(name.replace("_", " "), [Line("", points)])
        for name, points in list(curves.others.items())[:MAX_PLOTS]
    ]
    return [
        draw_plot("Loss", loss, log=log_scale),
        f'<div class="plots">{draw_plot("Learning rate", rate)}{"".join(more)}</div>',
    ]


def read_log(training: Training) -> str:
    return hide_folders(read_tail(training.path / "log.txt", 200)) + (
        f"\n{training.error}" if training.error else ""
    )


def read_config(training: Training) -> str:
    try:
        text = (training.path / "config.toml").read_text(encoding="utf-8", errors="replace")
        return text[: 64 << 10]
    except OSError:
        return ""
