"""One training of the personalization benchmark: the same loop, order and noise for all methods."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.adapters.load import load_atoms
from sdatoms.atoms.schedules import parse_schedule
from sdatoms.bench.cells import Cell
from sdatoms.bench.judge import Judge, Painted
from sdatoms.bench.methods import attach_method, count_method
from sdatoms.bench.peers import Peer
from sdatoms.bench.tasks import Task
from sdatoms.diffusion.open import load_base
from sdatoms.errors import first_line
from sdatoms.storage import write_whole
from sdatoms.training.batches import Batch, Draw, draw_batches
from sdatoms.training.conditions import Condition
from sdatoms.training.config import TrainConfig
from sdatoms.training.data import TrainingData
from sdatoms.training.inputs import check_inputs
from sdatoms.training.optimizers import Averages, make_schedule
from sdatoms.training.parts import make_denoising, make_run_optimizer, start_word_decay
from sdatoms.training.preparation import make_buckets, prepare_data
from sdatoms.training.trainer import choose_attention

__all__ = ["Run", "make_config", "read_versions", "run_cell"]


def make_config(cell: Cell, task: Task, base: str | None) -> TrainConfig:
    """A cell's settings as the trainer's."""
    settings = {"token_lr": cell.rate, **cell.method.training}
    if settings.get("with_prior_preservation"):
        settings["class_prompt"] = task.class_prompt
    if cell.method.spatial != 1:
        settings["spatial_learning_rate"] = cell.rate * cell.method.spatial
    prompt = task.instance_prompt
    if word := settings.get("token_abstraction"):
        prompt = prompt.replace("sks", word)
    return TrainConfig(
        pretrained_model_name_or_path=base,
        instance_data_dir=str(task.folder),
        instance_prompt=prompt,
        max_train_steps=max(cell.steps),
        train_batch_size=cell.batch_size,
        learning_rate=cell.rate,
        seed=cell.seed,
        **settings,
    )


class Run:
    """A method in a pipeline of its own, with its data and optimizer.

    Args:
        pipe: a fresh base, changed in place.
    """

    def __init__(self, pipe: Any, cell: Cell, config: TrainConfig) -> None:
        self.pipe, self.config = pipe, config
        with torch.random.fork_rng():
            torch.manual_seed(cell.seed)
            self.peer: Peer = attach_method(pipe, cell.method, config)
        buckets, folder = make_buckets(pipe, config), check_inputs(config)
        injections = dict(self.peer.injections)
        self.data: TrainingData = prepare_data(pipe, injections, folder, buckets, config)
        self.parameters = self.peer.parameters
        self.starts = [p.detach().clone() for p in self.parameters]
        self.optimizer = make_run_optimizer(
            injections,
            self.peer.words if injections else self.parameters,
            config,
            processes=1,
            log=lambda text: None,
        )
        start_word_decay(pipe, injections, self.optimizer, config, folder.sources)
        self.schedule = make_schedule(
            self.optimizer,
            config.lr_scheduler,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        named = [(str(k), p) for k, p in enumerate(self.parameters)]
        self.averages = Averages(named, config.ema_decay) if config.use_ema else None
        kept = (config.class_prompt or "") if config.with_prior_preservation else None
        self.draw = Draw(
            make_denoising(pipe, config),
            config.seed,
            config.train_batch_size,
            proportion_empty_prompts=config.proportion_empty_prompts,
            class_prompt=kept,
            prior_share=config.prior_share,
        )
        self.step = 0

    def predict(self, noisy: Tensor, batch: Batch, condition: Condition) -> Tensor:
        return self.pipe.unet(
            noisy,
            batch.timesteps,
            condition.context,
            encoder_attention_mask=condition.mask,
            return_dict=False,
        )[0]

    def measure(self, batch: Batch) -> Tensor:
        """Mean loss of a batch."""
        denoising, data = self.draw.denoising, self.data
        batch = replace(batch, prompts=tuple(map(self.peer.rewrite, batch.prompts)))
        noisy = denoising.mix(batch.latents, batch.input_noise, batch.timesteps)
        target = denoising.target(batch.latents, batch.noise, batch.timesteps)
        if batch.from_base:
            # At its start every method is the base.
            with torch.no_grad(), hold(self.parameters, self.starts):
                target = self.predict(noisy, batch, data.condition(batch, base=True))
        predicted = self.predict(noisy, batch, data.condition(batch))
        return denoising.error(predicted, target, batch.timesteps, batch.mask).mean()

    def take_step(self) -> float:
        """One optimizer step; returns the loss, NaN where it or a gradient is not finite."""
        self.pipe.unet.train()
        total = 0.0
        with choose_attention(self.pipe.device):
            for batch in draw_batches(self.data.instances, self.data.classes, self.step, self.draw):
                weight = self.config.prior_loss_weight if batch.prior else 1.0
                loss = weight * self.measure(batch)
                loss.backward()
                total += float(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if not torch.isfinite(norm):
            return float("nan")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.averages:
            self.averages.update()
        self.step += 1
        return total

    @contextmanager
    def finish(self) -> Iterator[None]:
        """What is painted with: the averages where there are any, in evaluation mode."""
        self.pipe.unet.eval()
        values = list(self.averages.values.values()) if self.averages else None
        with hold(self.parameters, values or [p.detach().clone() for p in self.parameters]):
            yield


def read_versions() -> str:
    """Of what may refuse a method."""
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "peft"))


@contextmanager
def hold(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Other values for the time of a `with` block."""
    kept = [p.detach().clone() for p in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data.copy_(value)
        yield
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data.copy_(value)


def run_cell(
    pipe: Any, cell: Cell, config: TrainConfig, judge: Judge
) -> tuple[dict[str, Any], dict[str, Painted]]:
    """Train a cell on a fresh base and measure it at its marks. Returns the result, and what was
    painted at each mark.

    The result tells the trained numbers, bytes and layers, processor seconds a step, and by mark a
    value a prompt; or `diverged`, the step after which a loss was not finite; or `refused`, why
    another library does not run here.
    """
    try:
        run = Run(pipe, cell, config)
        began = time.process_time()
        losses, seconds = [run.take_step()], [time.process_time() - began]
    except Exception as error:
        if not cell.method.is_foreign:  # another library's refusals are of every class
            raise
        why = f"{type(error).__name__}: {first_line(error)}"
        return {"refused": why, "versions": read_versions()}, {}
    facts: dict[str, Any] = {**count_method(run.peer), "marks": {}}
    painted: dict[str, Painted] = {}
    for step in range(1, max(cell.steps) + 1):
        if step > 1:
            began = time.process_time()
            losses.append(run.take_step())
            seconds.append(time.process_time() - began)
        if losses[-1] != losses[-1]:
            return facts | {"diverged": step}, painted
        if step in cell.steps:
            with run.finish():
                if cell.method.strength:
                    made = paint_file(run, judge, cell.method.strength)
                else:
                    made = judge.paint_all(run.pipe, run.peer.rewrite)
            painted[str(step)], facts["marks"][str(step)] = made, judge.measure(made)
    facts["seconds_per_step"] = round(statistics.median(seconds), 4)
    facts["loss"] = round(statistics.mean(losses[-50:]), 6)
    return facts, painted


def paint_file(run: Run, judge: Judge, strength: str) -> Painted:
    """What a run's file paints on a fresh base, at a strength that goes over the steps."""
    pipe = load_base(run.config.pretrained_model_name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        path = write_whole(Path(folder) / "atoms.safetensors", run.peer.save())
        load_atoms(pipe, path, name="atoms")
    return judge.paint_all(pipe, run.peer.rewrite, {"atoms": parse_schedule(strength)})
