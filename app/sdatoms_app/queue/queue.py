"""The trainings of the app: a queue on disk, trained one at a time, as they came unless moved."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdatoms import AtomError
from sdatoms.errors import clip
from sdatoms.storage import read_table
from sdatoms.training.stopping import WISHES
from sdatoms_app.queue.training import Training, read_request, read_training
from sdatoms_app.queue.worker import (
    JOB,
    REQUEST,
    hold_lock,
    list_jobs,
    rank_job,
    read_whole,
    update_job,
    wake,
    write_json,
)
from sdatoms_app.studio.library import slugify

__all__ = [
    "DESCRIPTION",
    "INSTANCES",
    "MAX_QUEUED",
    "MOVES",
    "Queue",
    "list_gpus",
]

ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
INSTANCES = "instance_images"
"""Folder of a run's own copies of the pictures and captions."""
DESCRIPTION = "data.toml"
"""In that folder, what is said of several concepts."""
MAX_QUEUED = 20
MOVES = ("first", "up", "down")
"""Where a training that waits can be moved."""
MAX_STEPS = 20_000
FREE_BYTES = 200 << 20
"""A training is only taken while this much of the disk is free."""


def list_gpus() -> list[str]:
    """Names of the GPUs that a training may have, by their numbers."""
    import torch

    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's; links lead elsewhere."""
    if folder.is_symlink() or not folder.is_dir() or not ID.fullmatch(folder.name):
        return False
    return (folder / JOB).is_file() or (folder / "status.json").is_file()


class Queue:
    """Runs below `root`, trained one at a time in the order they came, unless they are moved."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def add(self, title: str, settings: dict[str, Any], fill: Callable[[Path], None]) -> Training:
        """Queue a training.

        Args:
            title: words for the list; the run's id is made of them.
            settings: the trainer's settings, without folders.
            fill: writes pictures and captions into the folder it is given.

        Raises:
            AtomError: too many trainings wait, the disk is nearly full, or `fill` refuses. Nothing
                is queued then.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        waiting = sum(run.state == "queued" for run in self.list())
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
            described = (folder / DESCRIPTION).is_file()
            place = run / INSTANCES
            request = settings | {
                "instance_data_dir": "" if described else str(place),
                **({"data_config": str(place / DESCRIPTION)} if described else {}),
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

    def list(self) -> list[Training]:
        """All runs, newest first; one that vanishes or may not be read is left out."""
        if not self.root.is_dir():
            return []
        found = []
        for run in self.root.iterdir():
            with contextlib.suppress(OSError):
                if is_run(run):
                    found.append(read_training(run))
        busy = sum(run.state in ("starting", "running") for run in found)
        queued = sorted(
            (run for run in found if run.state == "queued"), key=lambda run: (run.rank, run.id)
        )
        places = {run.id: place + busy for place, run in enumerate(queued)}
        found = [replace(run, place=places.get(run.id, 0)) for run in found]
        return sorted(found, key=lambda run: (-run.order, run.id))

    def find_running(self) -> str | None:
        """The id of the training that is under way; None when there is none."""
        under_way = (run.id for run in self.list() if run.state in ("starting", "running"))
        return next(under_way, None)

    def find(self, id: str) -> Training:
        """The run of that id.

        Raises:
            AtomError: nothing of that id is listed.
        """
        for training in self.list():
            if training.id == id:
                return training
        raise AtomError(f"no run {clip(str(id))!r} is listed; refresh the list")

    def wake(self) -> None:
        """Go on with trainings that were queued before the machine or the app was restarted."""
        if any(training.state == "queued" for training in self.list()):
            wake(self.root)

    def stop(self, id: str) -> Training:
        """Ask a training to save its state and stop; a queued one leaves the queue.

        Asking twice is asking once: the trainer takes a second signal as a wish to stop unsaved.

        Raises:
            AtomError: no such run, or its process is not ours.
        """
        training = self.find(id)
        with hold_lock(self.root):
            stored = read_table(training.path / JOB, {})
            if stored.get("state") == "queued":
                update_job(training.path, state="cancelled")
                return self.find(id)
            if not training.live:
                raise AtomError(f"the run {id!r} is not running; it is {training.state}")
            if not stored.get("stop_requested"):
                update_job(training.path, stop_requested=True)
                if training.pid:
                    os.kill(training.pid, signal.SIGTERM)
        return self.find(id)

    def move(self, id: str, to: str) -> Training:
        """Give a queued training another place: `up` or `down` by one, or `first`.

        Raises:
            AtomError: no such run, it is not queued, or there is no such move.
        """
        if to not in MOVES:
            raise AtomError(f"a training moves {', '.join(MOVES)}, not {clip(str(to), 40)!r}")
        self.find(id)
        with hold_lock(self.root):
            jobs = [(run, read_table(run / JOB, {})) for run in list_jobs(self.root)]
            queued = [(run, rank_job(job)) for run, job in jobs if job.get("state") == "queued"]
            runs = [run for run, _ in queued]
            place = next((k for k, run in enumerate(runs) if run.name == id), None)
            if place is None:
                raise AtomError(f"the run {id!r} does not wait; only one that does can be moved")
            other = {"first": 0, "up": max(0, place - 1), "down": place + 1}[to]
            runs.insert(other, runs.pop(place))
            for run, (was, rank) in zip(runs, queued, strict=True):
                if run != was:
                    update_job(run, rank=rank)
        return self.find(id)

    def choose_gpu(self, id: str, gpu: int | None) -> Training:
        """Choose the GPU of a queued training by its number; None leaves it to the trainer.

        Raises:
            AtomError: no such run, it is not queued, or there is no such GPU.
        """
        count = len(list_gpus())
        if gpu is not None and not 0 <= gpu < count:
            raise AtomError(f"there is no GPU {gpu} here; GPUs found: {count}")
        self.find(id)
        with hold_lock(self.root):
            run = self.root / id
            if read_table(run / JOB, {}).get("state") != "queued":
                raise AtomError(f"the run {id!r} does not wait; its GPU is chosen while it does")
            update_job(run, gpu=gpu)
        return self.find(id)

    def ask(self, id: str, wish: str) -> Training:
        """Ask a training for `samples` or a `checkpoint` after the step that is under way.

        It is asked by a file in its directory, as anybody may: a signal would end a trainer that
        does not listen yet.

        Raises:
            AtomError: no such run, or it is not under way.
        """
        training = self.find(id)
        if training.state != "running" or wish not in WISHES:
            raise AtomError(f"the run {id!r} is not running; it is {training.state}")
        (training.path / f"{wish}.now").touch()
        return self.find(id)

    def extend(self, id: str, steps: Any) -> Training:
        """Queue an ended run for `steps` more than it was to go.

        Raises:
            AtomError: as `resume`, or the steps are no whole number of at least 1.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise AtomError(
                f"the further steps are {clip(repr(steps), 40)}; they are a whole number from 1 to "
                f"{MAX_STEPS}"
            )
        return self.resume(id, steps)

    def resume(self, id: str, more_steps: int = 0) -> Training:
        """Queue a run again from its last checkpoint, `more_steps` further than it was to go.

        Raises:
            AtomError: no such run, it is running, or the steps are out of range.
        """
        training = self.find(id)
        if training.live:
            raise AtomError(f"the run {id!r} is {training.state}; only one that ended can go on")
        request = read_request(training.path)
        total = (read_whole(request.get("max_train_steps")) or training.total) + more_steps
        if more_steps < 0 or not 1 <= total <= MAX_STEPS:
            steps = clip(str(total), 20)
            raise AtomError(f"the run would have {steps} steps; it takes 1 to {MAX_STEPS}")
        if training.state == "done" and not more_steps:
            raise AtomError(f"the run {id!r} is done; extend it by some steps to go on")
        changes = {"max_train_steps": total, "resume_from_checkpoint": "latest"}
        with hold_lock(self.root):
            write_json(
                training.path / REQUEST, request | changes | {"output_dir": str(training.path)}
            )
            stored = read_table(training.path / JOB, {})
            kept = {"title": stored.get("title", id), "state": "queued", "order": self._next()}
            kept |= {"gpu": stored["gpu"]} if "gpu" in stored else {}
            write_json(training.path / JOB, kept)
        wake(self.root)
        return self.find(id)

    def delete(self, id: str) -> None:
        """Delete a run that is not under way, its pictures and its atoms.

        Raises:
            AtomError: no such run, or it is queued or running.
        """
        training = self.find(id)
        if training.live:
            raise AtomError(f"the run {id!r} is {training.state}; stop it first")
        trash = self.root / f".trash-{id}"
        with hold_lock(self.root):
            os.replace(training.path, trash)
        shutil.rmtree(trash)

    def _next(self) -> int:
        """An order after every other's, and after every place in the queue."""
        jobs = [read_table(run / JOB, {}) for run in list_jobs(self.root)]
        orders = [max(read_whole(job.get("order")), rank_job(job)) for job in jobs]
        return max([*orders, time.time_ns() - 1]) + 1
