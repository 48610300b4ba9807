"""Strengths that go over the denoising steps, changed between two steps.

    with follow_schedules(pipe, {"dog": parse_schedule("0 until 0.2, then 1")}) as follow:
        image = pipe("a sks dog", callback_on_step_end=follow).images[0]

Strengths are linear: a change writes `W + Σ s ΔW` anew from the pristine weights, and only into
layers whose strength is another than at the step before. At the end of the block, whatever ended
it, every adapter has its own strength again, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sdatoms.adapters.load import AdapterSet
from sdatoms.atoms.schedules import Schedule
from sdatoms.errors import AtomError

__all__ = [
    "StepCallback",
    "follow_schedules",
]

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""What diffusers takes as `callback_on_step_end`."""


@contextmanager
def follow_schedules(target: Any, schedules: Mapping[str, Schedule]) -> Iterator[StepCallback]:
    """For one call of a pipeline: adapters begin at their schedules' first strengths, and the
    callback moves them on.

    Text encoders run before the first step; their layers have the schedule's factor farthest from
    0 all the while.

    Args:
        target: the pipeline.
        schedules: by adapter; strengths of others stay.

    Raises:
        AtomError: no adapter has such a name, or a strength leaves no finite weights.
    """
    adapters = AdapterSet(target)
    names = adapters.names
    for name in schedules:
        if name not in names:
            raise AtomError(
                f"there is a schedule for {name!r}, and no such adapter; loaded are "
                f"{', '.join(names) or 'none'}"
            )

    def follow(running: Any, step: int, _time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        steps = running.num_timesteps
        if schedules and step + 1 < steps:  # after the last step there is nothing to prepare
            adapters.follow(schedules, (step + 1) / steps)
        return kwargs

    if not schedules:
        yield follow
        return
    try:
        adapters.follow(schedules, 0.0)
        yield follow
    finally:
        adapters.follow(schedules, None)
