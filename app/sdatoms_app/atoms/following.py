"""Following a training by its checkpoints: how far the weights went, and whether that is odd."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gradio as gr

from sdatoms import AtomError, read_atoms
from sdatoms.adapters.changes import measure_changes
from sdatoms.errors import clip
from sdatoms_app.shared.html import draw_note
from sdatoms_app.shared.plots import Line, draw_plot
from sdatoms_app.studio.library import Entry
from sdatoms_app.studio.studio import Studio

__all__ = [
    "Follower",
    "judge_course",
]

MAX_POINTS = 12
"""Checkpoints of a run that are measured, the newest."""
MAX_KNOWN = 512
HALF = 0.5
"""‖ΔW‖/‖W‖ beyond which little of the base is left."""
STILL = 0.01
"""Growth between checkpoints below which nothing is learnt."""


def judge_course(points: Sequence[tuple[int, float]]) -> str:
    """A hint where the change of the weights explodes or stands still; empty where it is well.

    At a constant rate the change grows with the steps or slower: what grows at twice that pace is
    running away.

    Args:
        points: step and mean ‖ΔW‖/‖W‖ of the layers, by rising steps.
    """
    if not points:
        return ""
    step, last = points[-1]
    if last != last:
        return f"The weights of step {step} are no numbers; lower the learning rate."
    if last > HALF:
        return (
            f"By step {step} the weights have changed by {last:.0%} of themselves: little of the "
            "base is left. Lower the learning rate, or take an earlier checkpoint."
        )
    if last == 0 and step:
        return f"Nothing has changed by step {step}: a rate of 0, or no gradient reaches the atoms."
    if len(points) < 2:
        return ""
    (before, earlier), growth = points[-2], 0.0
    if earlier:
        growth = last / earlier
    if before and growth > 2 * step / before:
        return (
            f"Between steps {before} and {step} the change grew {growth:.1f}-fold: it explodes. "
            "Lower the learning rate, or take an earlier checkpoint."
        )
    values = [value for _, value in points[-3:]]
    steps = pairwise(values)
    if len(values) == 3 and all(abs(b - a) <= STILL * a for a, b in steps):
        return (
            f"Since step {points[-3][0]} the change stands still: the rate has fallen to nothing, "
            "or all is learnt that these atoms can hold. More steps will not change it."
        )
    return ""


class Follower:
    """The runs with checkpoints, and how the change of their weights goes."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._known: dict[tuple[str, str], float] = {}
        """Base and tensors → mean change."""

    def list_runs(self) -> list[str]:
        """Names of runs with checkpoints, the one with the newest checkpoint first."""
        newest: dict[str, float] = {}
        for entry in self.studio.library.list_checkpoints():
            run = entry.id.rpartition("@")[0]
            newest[run] = max(newest.get(run, 0.0), entry.path.stat().st_mtime)
        return sorted(newest, key=lambda run: (-newest[run], run))

    def list_checkpoints(self, run: str) -> list[Entry]:
        """The checkpoints of a run, by step.

        Raises:
            AtomError: it has none.
        """
        found = self.studio.library.list_checkpoints()
        mine = [entry for entry in found if entry.id.rpartition("@")[0] == run]
        if not mine:
            raise AtomError(f"the run {clip(str(run))!r} has no checkpoint")
        return mine

    def find_newest(self, run: str | None) -> str | None:
        """The id of a run's newest checkpoint; None where there is no such run."""
        entries = self.studio.library.list_checkpoints() if run else ()
        mine = [entry for entry in entries if entry.id.rpartition("@")[0] == run]
        return mine[-1].id if mine else None

    def measure(self, run: str) -> list[tuple[int, float]]:
        """Step and mean ‖ΔW‖/‖W‖ of the newest checkpoints; each is measured once.

        Raises:
            AtomError: as `list_checkpoints`, or the run is of another base.
        """
        points = []
        for entry in self.list_checkpoints(run)[-MAX_POINTS:]:
            key = (str(self.studio.base), entry.sha256)
            if key not in self._known:
                with self.studio.lock:
                    changes = measure_changes(read_atoms(entry.path), self.studio.open())
                if len(self._known) > MAX_KNOWN:
                    self._known.clear()
                mean = sum(row.change for row in changes) / max(1, len(changes))
                self._known[key] = mean
            points.append((entry.step or 0, self._known[key]))
        return points

    def show(self, run: str) -> str:
        """The course of a run as a plot, with a hint where it is odd."""
        points = self.measure(run)
        hint = judge_course(points)
        note = draw_note(hint) if hint else ""
        return draw_plot("Change of the weights, ‖ΔW‖ / ‖W‖", [Line("", points)]) + note

    def relist(self) -> Any:
        return gr.Dropdown(choices=[("nothing", ""), *((run, run) for run in self.list_runs())])
