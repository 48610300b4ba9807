"""Sample pictures on a schedule, what is measured on them, and the best step so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from sdatoms.diffusion.samplers import check_sampler, read_sampler
from sdatoms.errors import AtomError
from sdatoms.pictures import draw_grid, read_picture, save_image
from sdatoms.training.config import TrainConfig

__all__ = [
    "Best",
    "Evaluate",
    "draw_samples",
    "list_jobs",
    "read_sample_sampler",
    "read_samples",
    "save_samples",
]


class Evaluate(Protocol):
    """Measures sample pictures; the names it returns are those of the curves."""

    def __call__(
        self,
        pipe: Any,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        instances: Sequence[Image.Image],
        unrelated: Sequence[tuple[Image.Image, Image.Image]],
    ) -> Mapping[str, float]:
        """Called with the atoms in place, so that `pipe` paints as the saved file would.

        Args:
            pictures: one for each of `prompts`.
            instances: the pictures trained on.
            unrelated: pairs of pictures, now and by the base, of prompts that have nothing to do
                with what is trained.
        """
        ...


class Best:
    """The step whose samples measured best, and its atoms."""

    def __init__(self, metric: str, goal: str, patience: int | None) -> None:
        self.metric, self.goal, self.patience = metric, goal, patience
        self.value: float | None = None
        self.step = 0
        self.since = 0
        """Measurements since the best one."""
        self.tensors: dict[str, Tensor] = {}

    @property
    def exhausted(self) -> bool:
        """Whether the patience is at its end."""
        return self.patience is not None and self.since >= self.patience

    def offer(self, step: int, metrics: Mapping[str, float], tensors: dict[str, Tensor]) -> bool:
        """Keep the atoms if they measured better than all before; says whether they did.

        Raises:
            AtomError: nothing of that name was measured.
        """
        if self.metric not in metrics:
            raise AtomError(
                f"--best_metric {self.metric} is not measured; measured are "
                f"{', '.join(sorted(metrics)) or 'none'}"
            )
        value, sign = float(metrics[self.metric]), 1 if self.goal == "max" else -1
        better = value == value and (self.value is None or sign * value > sign * self.value)
        if better:
            self.value, self.step, self.since = value, step, 0
            self.tensors = {key: tensor.detach().clone() for key, tensor in tensors.items()}
        else:
            self.since += 1
        return better

    def state(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "value": self.value,
            "step": self.step,
            "since": self.since,
            "tensors": self.tensors,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; another metric's best is not taken over."""
        if state["metric"] == self.metric:
            self.value, self.step, self.since = state["value"], state["step"], state["since"]
            self.tensors = dict(state["tensors"])


def read_sample_sampler(config: TrainConfig) -> dict[str, Any]:
    """The arguments of `sdatoms.diffusion.pipeline.paint` for `--num_inference_steps` and
    `--validation_scheduler`, without which the base's own sampler paints.

    Raises:
        AtomError: the sampler or its schedule is unknown, needs a package, or other steps.
    """
    steps = config.num_inference_steps
    if config.validation_scheduler is None:
        return {"num_inference_steps": steps}
    sampler, schedule = read_sampler(config.validation_scheduler)
    check_sampler(sampler, schedule, steps)
    return {"num_inference_steps": steps, "scheduler": sampler, "schedule": schedule}


def list_jobs(prompts: Sequence[str], count: int, seed: int) -> list[tuple[str, int]]:
    """Prompt and seed of every sample picture, prompt by prompt."""
    return [(prompt, (seed + k) % (1 << 64)) for prompt in prompts for k in range(count)]


def save_samples(folder: Path, name: str, pictures: Sequence[Image.Image]) -> None:
    """Write `<name>-0.png`, `<name>-1.png`, …"""
    for k, picture in enumerate(pictures):
        save_image(picture, folder / f"{name}-{k}.png")


def read_samples(folder: Path, name: str, count: int) -> list[Image.Image]:
    """What `save_samples` wrote; empty where one of them is missing."""
    paths = [folder / f"{name}-{k}.png" for k in range(count)]
    return [read_picture(path) for path in paths] if all(p.is_file() for p in paths) else []


def draw_samples(folder: Path, jobs: Sequence[tuple[str, int]]) -> Image.Image | None:
    """All samples as one grid: a row a prompt and seed, the base in the first column."""
    names = {p.stem.rpartition("-")[0] for p in folder.glob("*.png")}
    columns = [
        name
        for name in sorted(names)
        if (name == "base" or name.startswith("step-"))
        and (folder / f"{name}-{len(jobs) - 1}.png").is_file()
    ]
    if not columns or not jobs:
        return None
    rows = []
    for k in range(len(jobs)):
        rows.append([Image.open(folder / f"{column}-{k}.png") for column in columns])
    labels = [f"{prompt[:40]}, seed {seed}" for prompt, seed in jobs]
    return draw_grid(rows, labels, columns)
