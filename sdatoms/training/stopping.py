"""What a training is asked meanwhile: to stop, and to paint samples or save a checkpoint now.

A stop is heard between pictures and steps, whatever goes on; the others after the step under way.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sdatoms.training.processes import agree

__all__ = [
    "WISHES",
    "StopRequest",
    "TrainingStopped",
    "stop_together",
]

WISHES = {"samples": "SIGUSR1", "checkpoint": "SIGUSR2"}
"""What can be asked for now → its signal, on systems that have it; a file of the name with `.now`
in the run directory asks as well."""


class TrainingStopped(Exception):
    """A training ended because it was asked to; what it had is saved."""

    def __init__(self, step: int = 0, saved: bool = False) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step
        self.saved = saved
        """Whether there is a checkpoint to continue from."""


class StopRequest:
    """Whether a training was asked to stop.

    With `listen`, Ctrl-C, SIGTERM and SIGHUP ask; a second one stops at once. While nothing is
    written, the first one does. SIGUSR1 and SIGUSR2 ask for what `WISHES` says.
    """

    def __init__(self) -> None:
        self.asked = False
        self.wishes: set[str] = set()
        """Names of `WISHES` that were asked for and not yet done."""
        self.writing = False
        """Whether there is something to save, so that a stop must be waited for."""

    def listen(self) -> None:
        """Turn signals into requests; a hang-up that is ignored, as by nohup, stays ignored."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.ask)
        for wish, name in WISHES.items():
            if number := getattr(signal, name, None):
                signal.signal(number, lambda *_, wish=wish: self.wishes.add(wish))

    def ask(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Ask; the second time, or while nothing is written, stop at once."""
        at_once = self.asked or not self.writing
        self.asked = True
        if at_once and number:
            raise KeyboardInterrupt


@contextmanager
def stop_together(wait: Callable[[], None]) -> Iterator[None]:
    """Work of which each process may be stopped by itself: all stop after it, or none.

    Args:
        wait: returns when all processes have come here.
    """
    stopped: TrainingStopped | None = None
    try:
        yield
    except TrainingStopped as request:
        stopped = request
    wait()
    if agree(stopped is not None):
        raise stopped or TrainingStopped()
