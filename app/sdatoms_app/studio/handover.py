"""One GPU for two: where the pipeline lies while a training runs, and what becomes of pictures.

Trainings are processes of their own on the device that the pipeline lies on. While one is under
way the pipeline is moved to the machine's memory, adapters and all, and comes back afterwards:

- wait: pictures wait for the end of the training;
- cpu: they are painted on the processor meanwhile;
- share: nothing is moved, both use the device at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import torch

from sdatoms.diffusion.open import pick_device
from sdatoms.diffusion.placement import Placement, find_placement, lift, place

__all__ = [
    "POLICIES",
    "Handover",
    "Policy",
    "watch",
]

Policy = Literal["wait", "cpu", "share"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
INTERVAL = 1.0
"""Seconds between two looks at the trainings while somebody waits for one."""


class Waiting(Protocol):
    """What is told of a wait and may end it; a `Job` is one."""

    def tell(self, **changes: Any) -> None: ...
    def pause(self, seconds: float) -> None: ...
    def take_turn(self, lock: threading.Lock) -> None: ...


class Handover:
    """Lends the pipeline's device to trainings.

    Args:
        policy: what becomes of pictures meanwhile.
        find_training: the id of a training that is under way; None when there is none.
        home: the device that pipelines are opened on; None picks it as `load_base` does.
        shared: the device that trainings use; None: the same.
        refuge: where the pipeline goes meanwhile.
    """

    def __init__(
        self,
        policy: Policy = "wait",
        find_training: Callable[[], str | None] = lambda: None,
        *,
        home: str | None = None,
        shared: str | None = None,
        refuge: str = "cpu",
    ) -> None:
        self.policy = policy
        self.find_training = find_training
        self.home = home or pick_device()
        self.refuge = refuge
        self.lends = policy != "share" and (shared or self.home) == self.home != refuge
        """Whether there is anything to hand over: on a machine without a GPU there is not."""
        self.away = False
        """Whether the device is lent now."""
        self.borrower: str | None = None
        """Who else has the device, such as a measurement of settings."""
        self._placement: Placement | None = None
        """How the pipeline lay at home; None where it was opened while it was away."""

    def find_borrower(self) -> str | None:
        """Who has the device, or wants it, in words; None: nobody."""
        training = self.find_training()
        return self.borrower if training is None else f"the training {training}"

    @property
    def wanted(self) -> bool:
        """Whether a training wants the device now."""
        return self.lends and self.find_borrower() is not None

    @property
    def settled(self) -> bool:
        """Whether the pipeline lies where it is to lie."""
        return self.away == self.wanted

    def settle(self, pipe: Any) -> bool:
        """Move the pipeline where it is to lie; tells whether it can be used further.

        Args:
            pipe: None where none is open; whoever calls this holds the studio's lock.
        """
        wanted = self.wanted
        if self.away == wanted:
            return True
        self.away = wanted
        if pipe is None:
            self._placement = None
            return True
        if self.away:
            self._placement = find_placement(pipe)
            lift(pipe, torch.device(self.refuge))
            return True
        if self._placement is None:
            return False
        lift(pipe, torch.device("cpu"))
        place(pipe, self._placement, torch.device(self.home))
        return True

    def choose_opening(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `load_base` for a base that is opened now."""
        if not self.away:
            return {"device": self.home, **given}
        self._placement = None
        return {**given, "device": self.refuge, "offload": "none"}

    def take_turn(self, job: Waiting, lock: threading.Lock) -> None:
        """Acquire the studio's lock when pictures may be painted; the job is told why not yet."""
        while True:
            while self.policy == "wait" and self.wanted:
                job.tell(message=self.describe())
                job.pause(INTERVAL)
            job.take_turn(lock)
            if not (self.policy == "wait" and self.wanted):  # none has begun in the meantime
                return
            lock.release()

    @contextmanager
    def hold(self, lock: threading.Lock, tell: Callable[[str], None]) -> Iterator[None]:
        """The same for work without a job, in a `with` block."""

        class Plain:
            def tell(self, **changes: Any) -> None:
                tell(changes["message"])

            def pause(self, seconds: float) -> None:
                time.sleep(seconds)

            def take_turn(self, lock: threading.Lock) -> None:
                lock.acquire()

        self.take_turn(Plain(), lock)
        try:
            yield
        finally:
            lock.release()

    def describe(self) -> str:
        """One line for every page; empty where nothing is lent."""
        borrower = self.find_borrower() if self.lends else None
        if borrower is None:
            return ""
        who = f"{borrower[:1].upper()}{borrower[1:]}"
        where = self.home.partition(":")[0].replace("cuda", "GPU")
        if self.policy == "cpu":
            return f"{who} has the {where}; pictures are generated on the processor"
        return f"{who} has the {where}; pictures wait for its end"


def watch(hand_over: Callable[[], bool], stopped: threading.Event) -> None:
    """Hand over and take back whenever that is due, until `stopped`."""
    while not stopped.wait(2 * INTERVAL):
        hand_over()
