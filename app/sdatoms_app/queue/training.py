"""What is known of one run: read from its files, corrected by which processes live.

A run directory below the app's folder holds the trainer's own files and, where the app queued it,
two of ours: `request.json`, the settings it is started with, and `job.json`, where it stands.
Everything is read from disk anew, so tabs, servers and restarts see the same; a process that is
gone is shown as stopped.
"""

from __future__ import annotations

import os
import signal
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sdatoms import AtomError
from sdatoms.errors import clip
from sdatoms.storage import read_table
from sdatoms_app.queue.worker import JOB, OUTPUT, REQUEST, rank_job

__all__ = [
    "Training",
    "read_request",
    "read_tail",
    "read_training",
]

SILENT_SECONDS = 60.0
LIVE = ("queued", "starting", "running")


@dataclass(frozen=True)
class Training:
    """One run as it stands now."""

    id: str
    path: Path
    title: str
    state: str
    """queued, starting, running, done, stopped or failed."""
    place: int
    """Trainings that come before a queued one, the running one included; 0 for all others."""
    step: int
    total: int
    phase: str
    """What the trainer says it is doing."""
    eta_s: float | None
    silent_s: float | None
    """Seconds since a running trainer last wrote its status."""
    stopping: bool
    """Whether it was asked to stop and has not yet."""
    pid: int | None
    """The trainer's process while it lives."""
    error: str
    """Why it ended, where that was not its own decision."""
    order: int
    """When it was queued last, in ns; rising."""
    rank: int = 0
    """Where it stands in the queue; less comes first."""
    gpu: int | None = None
    """The GPU chosen for it; None leaves the choice to the trainer."""
    reason: str = ""
    """Why it ended, in a sentence; empty while it has not."""

    @property
    def live(self) -> bool:
        """Queued or under way."""
        return self.state in LIVE

    @property
    def atoms(self) -> Path | None:
        """The finished atom file."""
        path = self.path / "atoms.safetensors"
        return path if path.is_file() and not path.is_symlink() else None

    @property
    def newest(self) -> Path | None:
        """The finished atom file, else the last checkpoint's."""
        steps = sorted((self.path / "checkpoints").glob("step-*/atoms.safetensors"))
        return self.atoms or (steps[-1] if steps else None)


def read_request(run: Path) -> dict[str, Any]:
    """The settings a run was started with; those of a run of a command are in `config.toml`."""
    request = read_table(run / REQUEST, {})
    if request:
        return request
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise AtomError(f"the run {run.name!r} has no settings that can be read") from None


def read_training(run: Path) -> Training:
    """Where a run stands: what its files say, corrected by which processes live."""
    stored, status = read_table(run / JOB, {}), read_table(run / "status.json", {})
    pid = stored.get("pid") if stored else status.get("pid")
    beat = status.get("heartbeat")
    silent = time.time() - beat if isinstance(beat, int | float) else None
    fresh = status.get("pid") == pid  # else the status is an earlier attempt's
    alive = isinstance(pid, int) and is_trainer(pid, run, silent if fresh else None)
    state, phase, code = stored.get("state"), str(status.get("phase", "")), stored.get("exit_code")
    if state == "queued":
        shown = "queued"
    elif alive:
        shown = "running" if fresh else "starting"
    elif state == "started" and not pid and is_worker(stored.get("worker")):
        shown = "starting"
    elif state == "cancelled":
        shown = "stopped"
    elif fresh and phase in ("done", "failed"):
        shown = phase
    else:
        shown = "failed" if isinstance(code, int) and code > 0 and code != 130 else "stopped"
    error = read_tail(run / OUTPUT, 40) if shown == "failed" else ""
    # Before it listened; an interrupt that nobody catches ends Python by SIGINT, whoever sent it.
    early = code in (-signal.SIGTERM, -signal.SIGINT)
    asked = bool(stored.get("stop_requested")) and early
    if shown == "stopped" and isinstance(code, int) and code < 0 and not asked:
        error = f"its process was ended by signal {-code}"
    elif shown == "stopped" and state == "started" and not is_worker(stored.get("worker")):
        error = "its process is gone"
    step, total = to_int(status.get("step")), read_total(run, status)
    gpu = stored.get("gpu")
    return Training(
        id=run.name,
        path=run,
        title=clip(str(stored.get("title", run.name)), 80),
        state=shown,
        place=0,
        step=step,
        total=total,
        phase=clip(phase, 40) if shown == "running" else shown,
        eta_s=status.get("eta_s") if shown == "running" else None,
        silent_s=silent if shown == "running" else None,
        stopping=alive and bool(stored.get("stop_requested")),
        pid=pid if alive else None,
        error=error,
        order=to_int(stored.get("order")) or (run / "status.json").stat().st_mtime_ns,
        rank=rank_job(stored),
        gpu=gpu if isinstance(gpu, int) else None,
        reason=explain_end(shown, state == "cancelled", error, step, total),
    )


def read_total(run: Path, status: dict[str, Any]) -> int:
    return to_int(read_table(run / REQUEST, {}).get("max_train_steps") or status.get("total"))


def explain_end(state: str, cancelled: bool, error: str, step: int, total: int) -> str:
    """Why a run ended, in a sentence; empty while it has not.

    Args:
        error: the trainer's last words, or what became of its process.
    """
    if state == "done" and step < total:
        return f"It ended at step {step} of {total}, since no measure was better for a while."
    if state == "done":
        return f"All {total} steps are done."
    if state == "failed":
        last = [line for line in error.splitlines() if line.strip()]
        return f"It failed at step {step}: {clip(last[-1].strip(), 300)}" if last else "It failed."
    if state != "stopped":
        return ""
    if cancelled:
        return "It was taken out of the queue before it began."
    if error:
        return f"It ended at step {step}, {error}; Resume goes on from the last checkpoint."
    return f"It was asked to stop and saved step {step}; Resume goes on there."


def to_int(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def is_trainer(pid: int, run: Path, silent_s: float | None) -> bool:
    """Whether the process lives and trains that run.

    Numbers of processes are used again: its command line must be a training's, and name the run or
    have written the run's status within the last minute.
    """
    words = read_command(pid)
    named = any(str(run) in word for word in words)
    recent = silent_s is not None and silent_s < SILENT_SECONDS
    return "train" in " ".join(words) and (named or recent)


def is_worker(pid: Any) -> bool:
    return isinstance(pid, int) and "sdatoms_app.queue.worker" in read_command(pid)


def read_command(pid: int) -> list[str]:
    """The command line of a living process, else nothing."""
    try:
        process = psutil.Process(pid)
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except (psutil.Error, ValueError, OverflowError):
        return []


def read_tail(path: Path, lines: int, limit: int = 64 << 10) -> str:
    """The last lines of a text file, however long it is."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
