"""Samples of a run while it trains: painted as the saved file would paint them, and measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdatoms.adapters.bake import bake_injection
from sdatoms.diffusion.guidance import find_guidance
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.triggers import UNRELATED_PROMPTS
from sdatoms.layers.inject import without_atoms
from sdatoms.pictures import read_picture
from sdatoms.training.checkpoints import read_rng, restore_rng
from sdatoms.training.config import TrainConfig
from sdatoms.training.run_folder import name_step
from sdatoms.training.samples import (
    Evaluate,
    list_jobs,
    read_sample_sampler,
    read_samples,
    save_samples,
)
from sdatoms.training.trainer import Trainer

__all__ = [
    "Sampler",
    "hold_output",
    "name_unrelated",
]


class Sampler:
    """Paints and measures samples of one run.

    Args:
        folder: where pictures are kept, `base-0.png`, `step-000100-0.png`, ….
        prompts: of the samples, `count` pictures each, from `seed` on.
        evaluate: measures them; with it, `num_drift` pictures of unrelated prompts are painted.
        batch_size: unrelated pictures painted at once; never more than a training batch, so that
            samples are no peak of memory.
        report: takes "samples" before each denoising step.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        *,
        prompts: Sequence[str],
        count: int,
        seed: int,
        evaluate: Evaluate | None = None,
        num_drift: int = 0,
        batch_size: int = 1,
        report: Callable[[str], None] = lambda phase: None,
    ) -> None:
        self.trainer, self.folder, self.evaluate = trainer, folder, evaluate
        self.jobs = list_jobs(prompts, count, seed)
        self.unrelated = list(UNRELATED_PROMPTS[:num_drift]) if evaluate else []
        self.batch_size, self.report = batch_size, report
        self.sampling = read_sample_sampler(trainer.config)
        self.unrelated_folder = folder / name_unrelated(self.sampling)

    def describe(self) -> dict[str, Any]:
        """All that makes samples of two steps comparable."""
        jobs = [[prompt, seed] for prompt, seed in self.jobs]
        guided = {"guidance_scale": find_guidance(self.trainer.pipe)}
        return {"jobs": jobs, "unrelated": len(self.unrelated), **guided, **self.sampling}

    @property
    def prompts(self) -> list[str]:
        """One for each sample picture."""
        return [prompt for prompt, _ in self.jobs]

    def paint(self, base: bool = False) -> tuple[str, list[Image.Image], dict[str, float]]:
        """Name, pictures and measurements of the atoms as they are, or of the untouched base.

        A picture equals the one generated later, pixel for pixel: the same function, with the
        atoms baked in for the time of painting.
        """
        trainer = self.trainer
        name = name_step(None if base else trainer.step)
        tensors = {} if base else trainer.pack(trainer.output()).tensors
        self.report("samples")
        rng = read_rng()
        trainer.data.fetch()
        try:
            with hold_output(trainer, tensors):
                pictures = paint(
                    trainer.pipe,
                    self.prompts,
                    [seed for _, seed in self.jobs],
                    **self.sampling,
                    callback=lambda *_: self.report("samples"),
                )
                metrics = self.measure(name, pictures)
        finally:
            trainer.data.park()
            restore_rng(rng)
        save_samples(self.folder, name, pictures)
        return name, pictures, metrics

    def measure(self, name: str, pictures: list[Image.Image]) -> dict[str, float]:
        """What the evaluator finds on samples, with the atoms still in place."""
        if self.evaluate is None:
            return {}
        pairs = self.paint_unrelated(name)
        instances = [read_picture(source.path) for source in self.trainer.folder.sources]
        found = self.evaluate(self.trainer.pipe, pictures, self.prompts, instances, pairs)
        return {str(name): float(value) for name, value in found.items()}

    def paint_unrelated(self, name: str) -> list[tuple[Image.Image, Image.Image]]:
        """Pictures of unrelated prompts, each with the base's, which are kept from its turn."""
        count = len(self.unrelated)
        if not count:
            return []
        pictures = paint(
            self.trainer.pipe,
            self.unrelated,
            range(count),
            batch_size=self.batch_size,
            **self.sampling,
            callback=lambda *_: self.report("samples"),
        )
        folder = self.unrelated_folder
        save_samples(folder, name, pictures)
        base = read_samples(folder, "base", count)
        if not base:
            self.trainer.log(
                f"drift is not measured: the base's pictures are missing from {folder}"
            )
            return []
        return list(zip(pictures, base, strict=True))


def name_unrelated(sampling: Mapping[str, Any]) -> str:
    """The folder of the pictures that drift is measured on. It is a way between pictures of one
    sampler and as many steps, so that others have a folder of their own."""
    usual = TrainConfig.num_inference_steps
    told = [str(v) for k, v in sampling.items() if (k, v) != ("num_inference_steps", usual)]
    return re.sub(r"\W+", "-", " ".join(["unrelated", *told])).lower()


@contextmanager
def hold_output(trainer: Trainer, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The base as the saved file would make it, in evaluation mode, for the time of a `with` block.

    Args:
        tensors: of the file; without any, the base alone, whose weights get no change.
    """
    modes = read_modes(trainer)
    try:
        with ExitStack() as stack:
            for component, injection in trainer.injections.items():
                trainer.pipe.components[component].eval()
                baked = bake_injection(injection, tensors, component) if tensors else None
                stack.enter_context(baked or without_atoms(injection))
            for component, tokens in trainer.tokens.items():
                if tensors:
                    rows = tensors[f"{component}.tokens.embeddings"]
                    stack.enter_context(tokens.hold(rows))
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def read_modes(trainer: Trainer) -> list[tuple[torch.nn.Module, bool]]:
    roots: list[Any] = [getattr(trainer.pipe, component) for component in trainer.injections]
    return [(module, module.training) for root in roots for module in root.modules()]
