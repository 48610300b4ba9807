"""DreamBooth training of filter atoms: one loop, a generator.

for step in train(config):
    print(step.step, step.loss)
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdatoms.adapters.bake import bake_injection
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.prompts import UNRELATED_PROMPTS
from sdatoms.errors import AtomError
from sdatoms.pictures import make_thumbnail, read_picture
from sdatoms.storage import write_whole
from sdatoms.training.checkpoints import read_rng, restore_rng, resume, save_checkpoint
from sdatoms.training.config import TrainConfig
from sdatoms.training.failures import is_closed_disk, is_full_memory, mark_failed
from sdatoms.training.processes import agree
from sdatoms.training.report import describe_run, push_run, write_card
from sdatoms.training.samples import (
    Best,
    Evaluate,
    draw_samples,
    list_jobs,
    read_samples,
    save_samples,
)
from sdatoms.training.trackers import Trackers
from sdatoms.training.trainer import Trainer, TrainStep

__all__ = [
    "Run",
    "estimate",
    "train",
]


def train(
    config: TrainConfig,
    *,
    evaluate: Evaluate | None = None,
    trackers: Sequence[Any] = (),
) -> Generator[TrainStep]:
    """Train and yield after every optimizer step. Stop iterating (`close()`) to stop: the state is
    saved first.

    Args:
        evaluate: measures the samples; its numbers go into metrics.jsonl and decide the best step.
        trackers: further accelerate trackers, beside those `--report_to` names.

    Raises:
        AtomError: pictures, flags or base cannot be used; the loss is no longer finite; memory or
            disk is full. What is on disk is whole.
    """
    if config.best_metric not in (None, "auto") and evaluate is None:
        raise AtomError(
            f"--best_metric {config.best_metric} needs something that measures the samples; none "
            "was given to train()"
        )
    try:
        run = Run(config, evaluate, trackers)
    except BaseException as error:
        mark_failed(config)
        if is_full_memory(error):
            raise AtomError(
                "out of memory before the first step; try a smaller --resolution or --variant fp16"
            ) from None
        if is_closed_disk(error):
            raise AtomError(
                f"the run directory {config.output_dir!r} cannot be written: {error}"
            ) from None
        raise
    phase = "failed"
    try:
        with explain_failures(run):
            try:
                yield from run.walk()
                phase = "done"
            except GeneratorExit:
                run.save()
                phase = "interrupted"
                raise
    except KeyboardInterrupt:
        phase = "interrupted"
        raise
    finally:
        run.trackers.close()
        with contextlib.suppress(OSError):  # a full disk must not hide why the run failed
            run.trainer.tell(phase, 0.0)


class Run:
    """One run from its first step, or a checkpoint, to its atom file."""

    def __init__(
        self, config: TrainConfig, evaluate: Evaluate | None, trackers: Sequence[Any]
    ) -> None:
        self.config, self.evaluate = config, evaluate
        self.trainer = trainer = Trainer(config)
        self.trackers = Trackers(trainer.accelerator, trainer.run.path, config, trackers)
        prompts = config.validation_prompts or (config.validation_prompt or config.instance_prompt,)
        self.jobs = list_jobs(prompts, config.num_validation_images, config.seed)
        self.unrelated = list(UNRELATED_PROMPTS[: config.num_drift_images if evaluate else 0])
        self.best: Best | None = None
        metric = config.best_metric
        if metric == "auto":
            metric = "fidelity" if evaluate else None
            if metric is None:
                trainer.log("nothing measures the samples: --best_metric auto keeps the last step")
        if metric:
            patience = config.early_stopping_patience
            self.best = Best(metric, config.best_metric_goal, patience)
        self.measured: dict[str, dict[str, float]] = {}
        """Name of the samples (`base`, `step-…`) → what was measured on them."""
        self.saved = -1
        state = None
        if config.resume_from_checkpoint:
            state = resume(trainer, config.resume_from_checkpoint)
        if state:
            self.saved = trainer.step
            self.measured = state["measured"]
            if self.best and state["best"]:
                self.best.load(state["best"])
        elif trainer.main:
            trainer.run.start_afresh()

    def walk(self) -> Iterator[TrainStep]:
        """Yield every step; write the results after the last one."""
        trainer, total = self.trainer, self.config.max_train_steps
        trainer.log(
            f"training {trainer.num_parameters} numbers in "
            f"{sum(len(i.layers) for i in trainer.injections.values())} layers on "
            f"{len(trainer.instances)} pictures for {total} steps"
        )
        if trainer.step == 0:
            self.validate(base=True)
        start, began = trainer.step, time.time()
        while trainer.step < total and not agree(bool(self.best and self.best.exhausted)):
            step = trainer.take_step()
            metrics = self.validate() if self.is_due(step.step) else {}
            row = {**step._asdict(), **metrics}
            eta = (time.time() - began) / (step.step - start) * (total - step.step)
            if trainer.main:
                trainer.run.add_metrics(row)
            trainer.tell("training", eta, force=False)
            self.trackers.log(row, step.step)
            if step.step % self.config.checkpointing_steps == 0 and step.step < total:
                self.save()
            yield step
        if trainer.step < total:
            trainer.log(f"stopped early at step {trainer.step}")
        self.save()
        self.finish()

    def is_due(self, step: int) -> bool:
        every = self.config.validation_steps
        return bool(every) and (step % every == 0 or step == self.config.max_train_steps)

    def save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.saved != self.trainer.step:
            best = self.best.state() if self.best else None
            save_checkpoint(self.trainer, {"best": best, "measured": self.measured})
            self.saved = self.trainer.step

    def validate(self, base: bool = False) -> dict[str, float]:
        """Paint and measure samples as the saved file would give them, or the untouched base's.

        The picture equals the one generated later, pixel for pixel: the same function, with the
        atoms baked in for the time of painting.
        """
        trainer = self.trainer
        if not trainer.main or not trainer.material.paints:
            return {}
        name = "base" if base else f"step-{trainer.step:06d}"
        tensors = {} if base else trainer.pack(trainer.output()).tensors
        trainer.tell("samples", force=False)
        rng, modes = read_rng(), read_modes(trainer)
        trainer.material.fetch()
        with contextlib.ExitStack() as stack:
            for component, injection in trainer.injections.items():
                trainer.pipe.components[component].eval()
                if tensors:
                    stack.enter_context(bake_injection(injection, tensors, component))
            for component, tokens in trainer.tokens.items():
                if tensors:
                    rows = tensors[f"{component}.tokens.embeddings"]
                    stack.enter_context(tokens.hold(rows))
            prompts, seeds = [p for p, _ in self.jobs], [s for _, s in self.jobs]
            pictures = paint(
                trainer.pipe,
                prompts,
                seeds,
                callback=lambda *_: trainer.tell("samples", force=False),
            )
            metrics = self.measure(name, pictures, prompts)
        trainer.material.park()
        for module, mode in modes:
            module.training = mode
        restore_rng(rng)
        save_samples(trainer.run.samples, name, pictures)
        self.trackers.show(name, pictures, prompts, trainer.step)
        if metrics:
            self.measured[name] = metrics
            trainer.log(f"{name}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        if self.best and not base and self.best.offer(trainer.step, metrics, trainer.output()):
            trainer.log(f"best {self.best.metric} so far at step {trainer.step}")
        return metrics

    def measure(
        self, name: str, pictures: list[Image.Image], prompts: list[str]
    ) -> dict[str, float]:
        """What the evaluator finds on samples, with the atoms still in place."""
        if self.evaluate is None:
            return {}
        pairs = self.paint_unrelated(name)
        sources = self.trainer.material.sources
        instances = [read_picture(source.path) for source in sources]
        found = self.evaluate(self.trainer.pipe, pictures, prompts, instances, pairs)
        return {str(name): float(value) for name, value in found.items()}

    def paint_unrelated(self, name: str) -> list[tuple[Image.Image, Image.Image]]:
        """Pictures of unrelated prompts, each with the base's, which are kept from its turn.

        Never more at once than a training batch, so that samples are no peak of memory.
        """
        trainer, count = self.trainer, len(self.unrelated)
        if not count:
            return []
        pictures = paint(
            trainer.pipe,
            self.unrelated,
            range(count),
            batch_size=min(self.config.sample_batch_size, self.config.train_batch_size),
            callback=lambda *_: trainer.tell("samples", force=False),
        )
        folder = trainer.run.samples / "unrelated"
        save_samples(folder, name, pictures)
        base = read_samples(folder, "base", count)
        if not base:
            trainer.log(f"drift is not measured: the base's pictures are missing from {folder}")
            return []
        return list(zip(pictures, base, strict=True))

    def finish(self) -> None:
        """Write `atoms.safetensors`, the grid of samples and `report.json`."""
        trainer = self.trainer
        if not trainer.main:
            return
        chosen, step = trainer.output(), trainer.step
        if self.best and self.best.tensors:
            chosen, step = self.best.tensors, self.best.step
        sample = trainer.run.samples / f"step-{step:06d}-0.png"
        thumbnail = make_thumbnail(Image.open(sample)) if sample.is_file() else None
        file = trainer.pack(chosen, step=step, thumbnail=thumbnail)
        path = file.save(trainer.run.path / "atoms.safetensors")
        grid = draw_samples(trainer.run.samples, self.jobs) if trainer.material.paints else None
        if grid:
            grid.save(trainer.run.path / "samples.png")
        facts = describe_run(trainer, path)
        facts |= {"chosen_step": step, "metrics": self.measured}
        trainer.run.write_json("report.json", facts)
        card = write_card(self.config, facts, grid is not None)
        write_whole(trainer.run.path / "README.md", card.encode())
        if self.config.push_to_hub:
            trainer.log(f"pushed to {push_run(trainer.run.path, self.config)}")


def read_modes(trainer: Trainer) -> list[tuple[torch.nn.Module, bool]]:
    roots = [getattr(trainer.pipe, component) for component in trainer.injections]
    return [(module, module.training) for root in roots for module in root.modules()]


@contextlib.contextmanager
def explain_failures(run: Run) -> Iterator[None]:
    """Turn a full memory or disk into one sentence, with the last good state on disk."""
    trainer = run.trainer
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_full_memory(error):
            raise
        trainer.optimizer.zero_grad()
        if not trainer.torn:
            run.save()
        raise AtomError(
            f"out of memory at step {trainer.step + 1}; the state of step {run.saved} is saved; "
            "try --gradient_checkpointing, a smaller --train_batch_size, or --mixed_precision bf16"
        ) from None
    except OSError as error:
        if not is_closed_disk(error):
            raise
        steps = trainer.run.list_checkpoints()
        kept = f"step-{steps[-1]:06d}" if steps else "none"
        raise AtomError(
            f"the run directory {str(trainer.run.path)!r} cannot be written at step "
            f"{trainer.step}: {error.strerror}; the last whole checkpoint is {kept}"
        ) from None


def estimate(config: TrainConfig) -> dict[str, Any]:
    """Parameters, bytes, memory, steps and minutes of a run, from two real steps in a temporary
    folder."""
    with tempfile.TemporaryDirectory() as folder:
        trial = replace(
            config,
            output_dir=folder,
            resume_from_checkpoint=None,
            validation_steps=0,
            best_metric=None,
            early_stopping_patience=None,
            report_to=None,
            push_to_hub=False,
        )
        if config.with_prior_preservation and config.prior_preservation_mode == "images":
            trial = replace(trial, class_data_dir=config.instance_data_dir, num_class_images=1)
        trainer = Trainer(trial)
        seconds = [trainer.take_step().seconds for _ in range(2)]
        path = trainer.pack().save(Path(folder) / "atoms.safetensors")
        facts = describe_run(trainer, path)
    return {
        "parameters": facts["parameters"],
        "bytes": facts["bytes"],
        "memory": f"{max(facts['peak_memory_bytes'], facts['peak_gpu_bytes']) / 2**30:.1f} GiB",
        "steps": config.max_train_steps,
        "minutes": f"{config.max_train_steps * min(seconds) / 60:.1f} "
        "(without class pictures and samples)",
        "pictures": "; ".join([f"{len(facts['instance_pictures'])} usable", *trainer.notes]),
    }
