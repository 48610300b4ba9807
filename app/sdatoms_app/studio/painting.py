"""One piece of work in a thread of its own, watched from a page.

The newest preview wins; cancelling stops the work at its next step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image

__all__ = [
    "Cancelled",
    "Desk",
    "Job",
    "Update",
]

INTERVAL = 0.3
"""Seconds between two updates of a page, and between two previews."""
PATIENCE = 600.0
"""Seconds a job may wait for its turn."""


class Cancelled(Exception):
    """Raised inside the work when somebody cancelled it."""


class Update(NamedTuple):
    """What a page shows of a job; each replaces the one before."""

    done: int
    total: int
    message: str
    preview: Image.Image | None = None
    finished: tuple[Any, ...] = ()
    """Results so far."""
    remarks: tuple[str, ...] = ()
    """What should be known about the results."""


class Job:
    """Runs `work(job)` in a thread; `watch` yields updates and at the end returns or raises."""

    def __init__(self, work: Callable[[Job], None]) -> None:
        self._work = work
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._update = Update(0, 1, "waiting")
        self._version = 0
        self._ended = False
        self._error: BaseException | None = None
        self._last_preview = 0.0

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    @property
    def ended(self) -> bool:
        return self._ended

    def cancel(self) -> None:
        """Ask the work to stop; it does at its next `check`."""
        self._stop.set()

    def check(self) -> None:
        """Raise `Cancelled` if the job was cancelled; the work calls this at every step."""
        if self._stop.is_set():
            raise Cancelled

    def tell(self, **changes: Any) -> None:
        """Replace what the page shows."""
        with self._changed:
            self._update = self._update._replace(**changes)
            self._version += 1
            self._changed.notify_all()

    def wants_preview(self) -> bool:
        """Whether the last preview is old enough for another; asking counts as drawing one."""
        now = time.monotonic()
        if now - self._last_preview < INTERVAL:
            return False
        self._last_preview = now
        return True

    def pause(self, seconds: float) -> None:
        """Wait, unless the job is cancelled."""
        self._stop.wait(seconds)
        self.check()

    def take_turn(self, lock: threading.Lock) -> None:
        """Acquire the lock, unless the job is cancelled or has waited ten minutes."""
        deadline = time.monotonic() + PATIENCE
        while not lock.acquire(timeout=0.05):
            self.check()
            if time.monotonic() > deadline:
                raise Cancelled

    def start(self) -> Job:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def _run(self) -> None:
        try:
            self._work(self)
        except Cancelled:
            self._stop.set()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def watch(self) -> Iterator[Update]:
        """The newest update at most every 0.3 s, the last one always; then what the work raised.

        Whoever stops watching cancels the job.
        """
        seen = -1
        try:
            while True:
                ended, update, seen = self._wait(seen)
                yield update
                if ended:
                    break
                with self._changed:  # wakes early at the end: the last word comes at once
                    self._changed.wait_for(lambda: self._ended, INTERVAL)
        finally:
            if not self._ended:
                self.cancel()
        if self._error is not None:
            raise self._error

    def _wait(self, seen: int) -> tuple[bool, Update, int]:
        """Wait for a version other than `seen`, or a second; whether the job ended, and the
        newest."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._version != seen, 1.0)
            return self._ended, self._update, self._version


class Desk:
    """The running jobs of every visitor, under a key such as the session they belong to."""

    def __init__(self) -> None:
        self._jobs: dict[str, list[Job]] = {}
        self._lock = threading.Lock()

    def start(self, key: str | None, work: Callable[[Job], None]) -> Job:
        """Start a job."""
        job = Job(work)
        with self._lock:
            running = [other for other in self._jobs.get(key or "", []) if not other.ended]
            self._jobs[key or ""] = [*running, job]
        return job.start()

    def cancel(self, key: str | None) -> bool:
        """Cancel every job under the key; tells whether one was running."""
        with self._lock:
            running = [job for job in self._jobs.pop(key or "", []) if not job.ended]
        for job in running:
            job.cancel()
        return bool(running)

    def forget(self, key: str | None, job: Job) -> None:
        """Drop a job that ended."""
        with self._lock:
            rest = [other for other in self._jobs.pop(key or "", []) if other is not job]
            if rest:
                self._jobs[key or ""] = rest
