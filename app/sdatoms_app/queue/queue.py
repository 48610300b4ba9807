"""The trainings of the app: a queue on disk, and what is known of every run.

A job is a run directory below `root`, with the trainer's own files and two of ours: `request.json`,
the settings it is started with, and `job.json`, where it stands. Everything is read from disk anew,
so tabs, servers and restarts see the same; a process that is gone is shown as stopped.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from sdatoms import AtomError
from sdatoms.errors import clip
from sdatoms_app.queue.worker import (
    JOB,
    OUTPUT,
    REQUEST,
    hold_lock,
    list_jobs,
    read_json,
    update_job,
    wake,
    write_json,
)

__all__ = [
    "INSTANCES",
    "MAX_QUEUED",
    "Job",
    "Queue",
    "read_request",
    "read_tail",
    "slugify",
]

ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
INSTANCES = "instance_images"
"""Folder of a job's own copies of the pictures and captions."""
MAX_QUEUED = 20
MAX_STEPS = 20_000
FREE_BYTES = 200 << 20
"""A job is only taken while this much of the disk is free."""
SILENT_SECONDS = 60.0
LIVE = ("queued", "starting", "running")


@dataclass(frozen=True)
class Job:
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


class Queue:
    """Runs below `root`, trained one at a time in the order they came."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def add(self, title: str, settings: dict[str, Any], fill: Callable[[Path], None]) -> Job:
        """Queue a training.

        Args:
            title: words for the list; the run's id is made of them.
            settings: the trainer's settings, without folders.
            fill: writes pictures and captions into the folder it is given.

        Raises:
            AtomError: too many jobs wait, the disk is nearly full, or `fill` refuses. Nothing is
                queued then.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        waiting = sum(job.state == "queued" for job in self.list())
        if waiting >= MAX_QUEUED:
            raise AtomError(f"{waiting} trainings wait already; at most {MAX_QUEUED} do")
        if shutil.disk_usage(self.root).free < FREE_BYTES:
            raise AtomError(f"less than {FREE_BYTES >> 20} MB of the disk are free")
        id = f"{slugify(title)}-{secrets.token_hex(3)}"
        run, staging = self.root / id, self.root / f".new-{id}"
        folder = staging / INSTANCES
        try:
            folder.mkdir(parents=True)
            fill(folder)
            request = settings | {
                "instance_data_dir": str(run / INSTANCES),
                "output_dir": str(run),
            }
            write_json(staging / REQUEST, request)
            with hold_lock(self.root):
                write_json(
                    staging / JOB, {"title": title, "state": "queued", "order": self._next()}
                )
                os.replace(staging, run)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        wake(self.root)
        return self.find(id)

    def list(self) -> list[Job]:
        """All runs, newest first."""
        if not self.root.is_dir():
            return []
        found = []
        for run in self.root.iterdir():
            if run.is_symlink() or not run.is_dir() or not ID.fullmatch(run.name):
                continue
            if (run / JOB).is_file() or (run / "status.json").is_file():
                found.append(read_run(run))
        busy = sum(job.state in ("starting", "running") for job in found)
        queued = sorted((job for job in found if job.state == "queued"), key=lambda job: job.order)
        places = {job.id: place + busy for place, job in enumerate(queued)}
        found = [replace(job, place=places.get(job.id, 0)) for job in found]
        return sorted(found, key=lambda job: (-job.order, job.id))

    def find(self, id: str) -> Job:
        """The run of that id.

        Raises:
            AtomError: nothing of that id is listed.
        """
        for job in self.list():
            if job.id == id:
                return job
        raise AtomError(f"no run {clip(str(id))!r} is listed; refresh the list")

    def wake(self) -> None:
        """Go on with jobs that were queued before the machine or the app was restarted."""
        if any(job.state == "queued" for job in self.list()):
            wake(self.root)

    def stop(self, id: str) -> Job:
        """Ask a training to save its state and stop; a queued one leaves the queue.

        Asking twice is asking once: the trainer takes a second signal as a wish to stop unsaved.

        Raises:
            AtomError: no such run, or its process is not ours.
        """
        job = self.find(id)
        with hold_lock(self.root):
            stored = read_json(job.path / JOB)
            if stored.get("state") == "queued":
                update_job(job.path, state="cancelled")
                return self.find(id)
            if not job.live:
                raise AtomError(f"the run {id!r} is not running; it is {job.state}")
            if not stored.get("stop_requested"):
                update_job(job.path, stop_requested=True)
                if job.pid:
                    os.kill(job.pid, signal.SIGTERM)
        return self.find(id)

    def resume(self, id: str, more_steps: int = 0) -> Job:
        """Queue a run again from its last checkpoint, `more_steps` further than it was to go.

        Raises:
            AtomError: no such run, it is running, or the steps are out of range.
        """
        job = self.find(id)
        if job.live:
            raise AtomError(f"the run {id!r} is {job.state}; only one that ended can go on")
        request = read_request(job.path)
        total = int(request.get("max_train_steps", job.total or 0)) + int(more_steps)
        if more_steps < 0 or not 1 <= total <= MAX_STEPS:
            raise AtomError(f"the run would have {total} steps; it takes 1 to {MAX_STEPS}")
        if job.state == "done" and not more_steps:
            raise AtomError(f"the run {id!r} is done; extend it by some steps to go on")
        changes = {"max_train_steps": total, "resume_from_checkpoint": "latest"}
        with hold_lock(self.root):
            write_json(job.path / REQUEST, request | changes | {"output_dir": str(job.path)})
            stored = read_json(job.path / JOB)
            kept = {"title": stored.get("title", id), "state": "queued", "order": self._next()}
            write_json(job.path / JOB, kept)
        wake(self.root)
        return self.find(id)

    def delete(self, id: str) -> None:
        """Delete a run that is not under way, its pictures and its atoms.

        Raises:
            AtomError: no such run, or it is queued or running.
        """
        job = self.find(id)
        if job.live:
            raise AtomError(f"the run {id!r} is {job.state}; stop it first")
        trash = self.root / f".trash-{id}"
        with hold_lock(self.root):
            os.replace(job.path, trash)
        shutil.rmtree(trash)

    def _next(self) -> int:
        """An order after every other's."""
        orders = [read_json(run / JOB).get("order", 0) for run in list_jobs(self.root)]
        return max([*orders, time.time_ns() - 1]) + 1


def slugify(text: str) -> str:
    """Words as a plain, short, lower-case name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "run"


def read_request(run: Path) -> dict[str, Any]:
    """The settings a run was started with; those of a run of a command are in `config.toml`."""
    request = read_json(run / REQUEST)
    if request:
        return request
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise AtomError(f"the run {run.name!r} has no settings that can be read") from None


def read_run(run: Path) -> Job:
    """Where a run stands: what its files say, corrected by which processes live."""
    stored, status = read_json(run / JOB), read_json(run / "status.json")
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
    if shown == "stopped" and isinstance(code, int) and code < 0:
        error = f"its process was ended by signal {-code}"
    elif shown == "stopped" and state == "started" and not is_worker(stored.get("worker")):
        error = "its process is gone"
    return Job(
        id=run.name,
        path=run,
        title=clip(str(stored.get("title", run.name)), 80),
        state=shown,
        place=0,
        step=to_int(status.get("step")),
        total=to_int(read_json(run / REQUEST).get("max_train_steps") or status.get("total")),
        phase=clip(phase, 40) if shown == "running" else shown,
        eta_s=status.get("eta_s") if shown == "running" else None,
        silent_s=silent if shown == "running" else None,
        stopping=alive and bool(stored.get("stop_requested")),
        pid=pid if alive else None,
        error=error,
        order=to_int(stored.get("order")) or (run / "status.json").stat().st_mtime_ns,
    )


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
