"""Curves and pictures in TensorBoard, Weights & Biases and others, by accelerate's trackers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers
from accelerate.utils import ProjectConfiguration
from PIL import Image

from sdatoms.errors import AtomError

__all__ = [
    "Trackers",
    "check_tracker",
]


def check_tracker(report_to: str | None) -> list[str]:
    """The tracker asked for, in a list.

    Raises:
        AtomError: it is unknown, or its package is missing.
    """
    if report_to in (None, "", "none"):  # as other trainers say it
        return []
    if report_to != "all" and report_to not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(LOGGER_TYPE_TO_CLASS)
        raise AtomError(f"--report_to is {report_to!r}; it takes all, {known}")
    if report_to != "all" and not filter_trackers([report_to], "."):
        raise AtomError(
            f"--report_to {report_to} needs its package; install it with pip install {report_to}"
        )
    return [report_to]


class Trackers:
    """The trackers of one run; none unless they are asked for.

    Args:
        folder: run directory; their files go into its `logs`.
        report_to: name of a tracker, or all for each that is installed.
        further: accelerate trackers made by the caller.
        settings: of the run, which trackers show beside the curves.

    Raises:
        AtomError: a tracker is unknown, or its package is missing.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        report_to: str | None,
        further: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        names = check_tracker(report_to)
        found = filter_trackers([*names, *further], str(folder / "logs"))
        self.accelerator = accelerator
        self.active = bool(found)
        if self.active:
            accelerator.log_with = found
            accelerator.project_configuration = ProjectConfiguration(
                str(folder), logging_dir=str(folder / "logs")
            )
            plain = {
                k: " | ".join(v) if isinstance(v, tuple) else v for k, v in (settings or {}).items()
            }
            accelerator.init_trackers(
                "sdatoms", config={k: "" if v is None else v for k, v in plain.items()}
            )

    def log(self, row: dict[str, Any], step: int) -> None:
        """One step's numbers."""
        if self.active:
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
            self.accelerator.log(numbers, step=step)

    def show(
        self, name: str, pictures: Sequence[Image.Image], prompts: Sequence[str], step: int
    ) -> None:
        """Sample pictures, where a tracker takes pictures."""
        if not self.active or not pictures:
            return
        stack = np.stack([np.asarray(picture) for picture in pictures])
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.tracker.add_images(name, stack, step, dataformats="NHWC")
            elif tracker.name == "wandb":
                wandb = importlib.import_module("wandb")
                images = [wandb.Image(p, caption=c) for p, c in zip(pictures, prompts, strict=True)]
                tracker.tracker.log({"samples": images}, step=step)

    def close(self) -> None:
        if self.active:
            self.accelerator.end_training()
