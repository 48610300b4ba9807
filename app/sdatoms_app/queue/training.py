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
from sdatoms.errors import clip, is_finite
from sdatoms.storage import read_table
from sdatoms_app.queue.worker import JOB, OUTPUT, REQUEST, rank_job, read_whole
from sdatoms_app.shared.places import hide_folders

__all__ = [
    "Training",
    "read_request",
    "read_tail",
    "read_training",
]

SILENT_SECONDS = 60.0
LIVE = ("queued", "starting", "running")
MAX_COUNT = 10**9
"""Of steps, of seconds that are left, and of numbers of processes."""
MAX_CODE = 1000
"""Of exit codes and GPUs."""


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
    """Where a run stands: what its files say, corrected by which processes live. An entry of theirs
    that is damaged counts as missing.

    Raises:
        OSError: nothing of the run can be read, or it was deleted meanwhile.
    """
    stored, status = read_table(run / JOB, {}), read_table(run / "status.json", {})
    pid = read_pid(stored if stored else status)
    beat = read_whole(status.get("heartbeat"))
    silent = time.time() - beat if beat else None
    fresh = read_pid(status) == pid  # else the status is an earlier attempt's
    alive = pid is not None and is_trainer(pid, run, silent if fresh else None)
    state, phase, code = stored.get("state"), read_text(status, "phase"), read_code(stored)
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
        shown = "failed" if code is not None and code > 0 and code != 130 else "stopped"
    error = hide_folders(read_tail(run / OUTPUT, 40)) if shown == "failed" else ""
    # Before it listened; an interrupt that nobody catches ends Python by SIGINT, whoever sent it.
    early = code in (-signal.SIGTERM, -signal.SIGINT)
    asked = bool(stored.get("stop_requested")) and early
    if shown == "stopped" and code is not None and code < 0 and not asked:
        error = f"its process was ended by signal {-code}"
    elif shown == "stopped" and state == "started" and not is_worker(stored.get("worker")):
        error = "its process is gone"
    elif shown == "stopped" and state != "cancelled" and code is None and not phase:
        error = "its files do not say how"
    step, total = read_whole(status.get("step"), MAX_COUNT), read_total(run, status)
    return Training(
        id=run.name,
        path=run,
        title=clip(read_text(stored, "title") or run.name, 80),
        state=shown,
        place=0,
        step=step,
        total=total,
        phase=clip(phase, 40) if shown == "running" else shown,
        eta_s=read_eta(status) if shown == "running" else None,
        silent_s=silent if shown == "running" else None,
        stopping=alive and bool(stored.get("stop_requested")),
        pid=pid if alive else None,
        error=error,
        order=read_whole(stored.get("order")) or find_changed(run),
        rank=rank_job(stored),
        gpu=read_gpu(stored),
        reason=explain_end(shown, state == "cancelled", error, step, total),
    )


def read_text(table: dict[str, Any], key: str) -> str:
    value = table.get(key)
    return value if isinstance(value, str) else ""


def read_pid(table: dict[str, Any]) -> int | None:
    return read_whole(table.get("pid"), MAX_COUNT) or None


def read_code(stored: dict[str, Any]) -> int | None:
    """What a trainer exited with; less than 0 where a signal ended it."""
    code = stored.get("exit_code")
    if not isinstance(code, int) or isinstance(code, bool) or abs(code) > MAX_CODE:
        return None
    return code


def read_eta(status: dict[str, Any]) -> float | None:
    eta = status.get("eta_s")
    return float(eta) if is_finite(eta) and 0 <= eta <= MAX_COUNT else None


def read_gpu(stored: dict[str, Any]) -> int | None:
    gpu = stored.get("gpu")
    known = isinstance(gpu, int) and not isinstance(gpu, bool) and 0 <= gpu < MAX_CODE
    return gpu if known else None


def read_total(run: Path, status: dict[str, Any]) -> int:
    wanted = read_whole(read_table(run / REQUEST, {}).get("max_train_steps"), MAX_COUNT)
    return wanted or read_whole(status.get("total"), MAX_COUNT)


def find_changed(run: Path) -> int:
    """When one of a run's files was written last, in ns.

    Raises:
        OSError: none of them is there.
    """
    for name in ("status.json", JOB):
        if (run / name).is_file():
            return (run / name).stat().st_mtime_ns
    return run.stat().st_mtime_ns


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
    return "sdatoms_app.queue.worker" in read_command(read_whole(pid, MAX_COUNT))


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
