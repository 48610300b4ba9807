"""How runs are shown: labels, a progress line, buttons that fit, curves."""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import Any

import gradio as gr

from sdatoms.errors import clip
from sdatoms_app.queue.queue import Job, Queue, read_tail
from sdatoms_app.runs.files import Curves, describe_seconds, read_memory
from sdatoms_app.shared.plots import Line, draw_plot

__all__ = [
    "BAR",
    "describe_job",
    "draw_curves",
    "list_runs",
    "offer_buttons",
    "read_config",
    "read_log",
    "stamp",
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
    for job in queue.list()[:MAX_SHOWN]:
        share = f" {100 * job.step // job.total} %" if job.total and job.state != "done" else ""
        found.append((f"{job.id} · {STATES[job.state]}{share}", job.id))
    return found


def stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_size)


def describe_job(job: Job, seconds_per_step: float | None) -> str:
    """The run's progress as HTML; every word from outside is escaped."""
    share = 100 * job.step / job.total if job.total else 0
    facts = [STATES[job.state]]
    if job.state == "running":
        facts = [f"▶ {job.phase}"]
    if job.place:
        facts.append(f"behind {job.place} other{'s' if job.place > 1 else ''}")
    if job.stopping:
        facts.append("saving and stopping after this step")
    facts.append(f"step {job.step} of {job.total}")
    if job.eta_s:
        end = time.strftime("%H:%M", time.localtime(time.time() + job.eta_s))
        facts.append(f"{describe_seconds(job.eta_s)} left, until {end}")
    if seconds_per_step:
        facts.append(f"{seconds_per_step:.2f} s a step")
    memory = read_memory(job)
    if memory:
        facts.append(f"{memory} of memory")
    if job.atoms:
        facts.append(f"{job.atoms.stat().st_size / 1000:.0f} kB of atoms")
    if job.silent_s and job.silent_s > 30:
        facts.append(f"silent for {describe_seconds(job.silent_s)}")
    spans = "".join(f"<span>{html.escape(fact)}</span>" for fact in facts)
    error = f"<pre>{html.escape(job.error[-4000:])}</pre>" if job.error else ""
    return (
        f'<div class="run"><div class="name">{html.escape(clip(job.title, 80))}</div>'
        f'<div class="track" role="progressbar" aria-label="Progress of the run" '
        f'aria-valuemin="0" aria-valuemax="{job.total}" aria-valuenow="{job.step}">'
        f'<div class="fill" style="width:{min(100.0, share):.1f}%"></div></div>'
        f'<div class="line">{spans}</div>{error}</div>'
    )


def offer_buttons(job: Job) -> list[Any]:
    return [
        gr.Button(
            value="Leave the queue" if job.state == "queued" else "Stop and save",
            interactive=job.live and not job.stopping,
        ),
        gr.Button(interactive=job.state in ("stopped", "failed")),
        gr.Button(interactive=job.newest is not None),
        gr.Button(interactive=True),
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


def read_log(job: Job) -> str:
    return read_tail(job.path / "log.txt", 200) + (f"\n{job.error}" if job.error else "")


def read_config(job: Job) -> str:
    try:
        return (job.path / "config.toml").read_text(encoding="utf-8")[: 64 << 10]
    except OSError:
        return ""
