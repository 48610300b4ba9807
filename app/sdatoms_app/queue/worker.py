"""Runs queued trainings one after another, detached from the app.

`python -m sdatoms_app.queue.worker RUNS_FOLDER` leaves the app's session, waits until no training
of that folder is under way, and takes the oldest queued job until none is left. Two locks that the
kernel drops with their holders keep order: whoever holds `.training` trains, whoever holds
`.waiting` is next, and further workers leave at once, since the next one will find their job too.
The trainer inherits `.training`, so that a killed worker cannot let two trainings run at a time.

A job is a run directory with a `job.json`. All that is imported here needs the standard library
alone: a worker that waits for hours takes a few megabytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdatoms.storage import read_table

__all__ = [
    "JOB",
    "OUTPUT",
    "REQUEST",
    "choose_environment",
    "claim_job",
    "hold_lock",
    "list_jobs",
    "rank_job",
    "read_whole",
    "run_jobs",
    "update_job",
    "wake",
    "write_json",
]

JOB, REQUEST, OUTPUT = "job.json", "request.json", "output.txt"
LARGEST = 2**62
"""Of numbers in these files; times in ns are less."""


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Written whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


@contextlib.contextmanager
def hold_lock(root: Path) -> Iterator[None]:
    """Exclusive over all processes, for the moment it takes to change `job.json` files."""
    with (root / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def update_job(run: Path, **changes: Any) -> dict[str, Any]:
    """Change entries of a job; call while holding the lock. Returns the whole job."""
    job = read_table(run / JOB, {}) | changes
    write_json(run / JOB, job)
    return job


def list_jobs(root: Path) -> list[Path]:
    """Run directories with a job, in the order they are trained: as they came, unless moved."""
    found = [(rank_job(read_table(path, {})), path.parent) for path in root.glob(f"*/{JOB}")]
    return [run for _, run in sorted(found, key=lambda pair: (pair[0], pair[1].name))]


def rank_job(job: dict[str, Any]) -> int:
    """Where a job stands among the others; less comes first."""
    return read_whole(job.get("rank")) or read_whole(job.get("order"))


def read_whole(value: Any, most: int = LARGEST) -> int:
    """A number of a file that may be damaged as a whole one from 0 to `most`; 0 where it is none of
    these, as truth values, texts, NaN and infinities are not."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
    return int(value) if fits else 0


def choose_environment(job: dict[str, Any]) -> dict[str, str]:
    """The trainer's environment: it sees the GPU that was chosen for it, where one was.

    The number counts among the GPUs that this process may see itself.
    """
    environment = os.environ | {"TQDM_DISABLE": "1"}
    gpu = job.get("gpu")
    if not isinstance(gpu, int) or isinstance(gpu, bool) or gpu < 0:
        return environment
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    name = seen[gpu] if gpu < len(seen) else str(gpu)
    return environment | {"CUDA_VISIBLE_DEVICES": name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def claim_job(root: Path) -> Path | None:
    """Mark the first queued job as started and return its directory; None when none is queued. One
    that cannot be marked, such as one that is just being deleted, is passed over."""
    with hold_lock(root):
        for run in list_jobs(root):
            if read_table(run / JOB, {}).get("state") == "queued":
                with contextlib.suppress(OSError):
                    changes = {"worker": os.getpid(), "pid": None, "started": time.time()}
                    update_job(run, state="started", **changes)
                    return run
    return None


def run_job(root: Path, run: Path, training: int) -> int:
    """Train one job to its end; what the trainer prints goes to `output.txt`."""
    command = [sys.executable, "-m", "sdatoms", "train", "--config", str(run / REQUEST)]
    try:
        output = (run / OUTPUT).open("wb")
    except OSError:  # it was deleted since or is damaged, which holds up no other
        with contextlib.suppress(OSError), hold_lock(root):
            update_job(run, state="ended", exit_code=1, ended=time.time())
        return 1
    with output:
        trainer = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(training,),
            env=choose_environment(read_table(run / JOB, {})),
        )
    with hold_lock(root):
        job = update_job(run, pid=trainer.pid)
        if job.get("stop_requested"):  # asked for between the claim and now
            trainer.send_signal(signal.SIGTERM)
    code = trainer.wait()
    with hold_lock(root):
        # Not deleted, not queued again since.
        if read_table(run / JOB, {}).get("pid") == trainer.pid:
            update_job(run, state="ended", exit_code=code, ended=time.time())
    return code


def run_jobs(root: Path) -> None:
    """Train queued jobs in order until none is left."""
    with (root / ".training").open("a") as training:
        with (root / ".waiting").open("a") as waiting:
            try:
                fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            fcntl.flock(training, fcntl.LOCK_EX)
        while run := claim_job(root):
            run_job(root, run, training.fileno())


def wake(root: Path) -> None:
    """Start a worker that outlives this process; returns as soon as it stands on its own."""
    subprocess.run(
        [sys.executable, "-m", "sdatoms_app.queue.worker", str(root)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def main() -> None:
    root = Path(sys.argv[1])
    if os.fork():
        os._exit(0)
    os.setsid()
    run_jobs(root)


if __name__ == "__main__":
    main()
