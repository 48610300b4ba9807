"""DreamBooth training of filter atoms: one loop, a generator.

for step in train(config):
    print(step.step, step.loss)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from PIL import Image

from sdatoms.errors import AtomError
from sdatoms.pictures import make_thumbnail
from sdatoms.storage import write_whole
from sdatoms.training.checkpoints import resume, save_checkpoint
from sdatoms.training.config import TrainConfig
from sdatoms.training.failures import is_closed_disk, is_full_memory
from sdatoms.training.inputs import check_inputs
from sdatoms.training.processes import agree
from sdatoms.training.report import push_run, write_card
from sdatoms.training.run_folder import RunDirectory
from sdatoms.training.samples import Best, Evaluate, draw_samples
from sdatoms.training.sampling import Sampler
from sdatoms.training.trackers import Trackers, check_tracker
from sdatoms.training.trainer import Trainer, TrainStep, describe_trainer

__all__ = [
    "Run",
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
    run = Run(config, evaluate)
    try:
        run.prepare(trackers)
    except BaseException as error:
        run.close("failed")
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
        run.close(phase)


class Run:
    """One run from its first step, or a checkpoint, to its atom file."""

    trainer: Trainer
    sampler: Sampler
    trackers: Trackers | None = None

    def __init__(self, config: TrainConfig, evaluate: Evaluate | None) -> None:
        self.config, self.evaluate = config, evaluate
        self.directory = RunDirectory(Path(config.output_dir))
        self.accepted = False
        """Whether the call was found good; nothing is written before."""
        self.step = 0
        self.saved = -1
        self.waiting: list[str] = []
        """Lines for the log from before."""
        self.measured: dict[str, dict[str, float]] = {}
        """Name of the samples (`base`, `step-…`) → what was measured on them."""
        self.best: Best | None = None
        metric = config.best_metric
        if metric == "auto":
            metric = "fidelity" if evaluate else None
            if metric is None:
                self.log("nothing measures the samples: --best_metric auto keeps the last step")
        if metric:
            patience = config.early_stopping_patience
            self.best = Best(metric, config.best_metric_goal, patience)

    def prepare(self, trackers: Sequence[Any] = ()) -> None:
        """Open the base, make the parts of the run, paint class pictures, encode.

        Raises:
            AtomError: pictures, flags or base cannot be used.
        """
        config = self.config
        folder = check_inputs(config)
        check_tracker(config.report_to)
        if config.resume_from_checkpoint and is_main():
            self.directory.clean()
        for note in folder.notes:
            self.log(note)
        self.trainer = Trainer(
            config, folder=folder, log=self.log, report=self.report, accept=self.accept
        )
        self.trackers = Trackers(
            self.trainer.accelerator,
            self.directory.path,
            config.report_to,
            trackers,
            asdict(config),
        )
        self.sampler = Sampler(
            self.trainer,
            self.directory.samples,
            prompts=config.validation_prompts
            or (config.validation_prompt or config.instance_prompt,),
            count=config.num_validation_images,
            seed=config.seed,
            evaluate=self.evaluate,
            num_drift=config.num_drift_images,
            batch_size=min(config.sample_batch_size, config.train_batch_size),
            report=self.report,
        )

    def accept(self, trainer: Trainer) -> None:
        """Take the checkpoint's state over, and begin to write into the run directory."""
        state = None
        if self.config.resume_from_checkpoint:
            state = resume(trainer, self.directory, self.config.resume_from_checkpoint)
        self.accepted = True
        if trainer.main:
            self.directory.create()
            self.directory.clean()
            self.directory.write_config(asdict(self.config))
            if state:
                self.directory.trim_metrics(trainer.step)
            else:
                self.directory.start_afresh()
        self.step = trainer.step
        for line in self.waiting:
            self.log(line)
        if state:
            self.saved = trainer.step
            self.measured = state["measured"]
            if self.best and state["best"]:
                self.best.load(state["best"])
        self.report("loading", force=True)

    def log(self, text: str) -> None:
        """Append a line to the log."""
        if not self.accepted:
            self.waiting.append(text)
        elif is_main():
            self.directory.log(text)

    def report(self, phase: str, eta_s: float | None = None, *, force: bool = False) -> None:
        """Show in status.json what goes on; without `force` at most once a second."""
        if self.accepted and is_main():
            total = self.config.max_train_steps
            self.directory.set_status(phase, self.step, total, eta_s, force=force)

    def close(self, phase: str) -> None:
        """End the run in a phase."""
        if self.trackers:
            self.trackers.close()
        with contextlib.suppress(OSError):  # a full disk must not hide why the run failed
            self.report(phase, 0.0, force=True)

    def walk(self) -> Iterator[TrainStep]:
        """Yield every step; write the results after the last one."""
        trainer, total = self.trainer, self.config.max_train_steps
        self.log(
            f"training {trainer.num_parameters} numbers in "
            f"{sum(len(i.layers) for i in trainer.injections.values())} layers on "
            f"{len(trainer.data.instances)} pictures for {total} steps"
        )
        if trainer.step == 0:
            self.validate(base=True)
        start, began = trainer.step, time.time()
        while trainer.step < total and not agree(bool(self.best and self.best.exhausted)):
            step = trainer.take_step()
            self.step = step.step
            metrics = self.validate() if self.is_due(step.step) else {}
            row = {**step._asdict(), **metrics}
            eta = (time.time() - began) / (step.step - start) * (total - step.step)
            if trainer.main:
                self.directory.add_metrics(row)
            self.report("training", eta)
            if self.trackers:
                self.trackers.log(row, step.step)
            if step.step % self.config.checkpointing_steps == 0 and step.step < total:
                self.save()
            yield step
        if trainer.step < total:
            self.log(f"stopped early at step {trainer.step}")
        self.save()
        self.finish()

    def is_due(self, step: int) -> bool:
        every = self.config.validation_steps
        return bool(every) and (step % every == 0 or step == self.config.max_train_steps)

    def save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.saved == self.trainer.step:
            return
        best = self.best.state() if self.best else None
        if self.trainer.main:
            further = {"best": best, "measured": self.measured}
            limit = self.config.checkpoints_total_limit
            save_checkpoint(self.trainer, self.directory, further, limit)
        self.saved = self.trainer.step

    def validate(self, base: bool = False) -> dict[str, float]:
        """Paint and measure samples; the best so far is kept."""
        trainer = self.trainer
        if not trainer.main or not trainer.data.paints:
            return {}
        name, pictures, metrics = self.sampler.paint(base)
        if self.trackers:
            self.trackers.show(name, pictures, self.sampler.prompts, trainer.step)
        if metrics:
            self.measured[name] = metrics
            self.log(f"{name}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        if self.best and not base and self.best.offer(trainer.step, metrics, trainer.output()):
            self.log(f"best {self.best.metric} so far at step {trainer.step}")
        return metrics

    def finish(self) -> None:
        """Write `atoms.safetensors`, the grid of samples, `report.json` and the model card."""
        trainer, config, directory = self.trainer, self.config, self.directory
        if not trainer.main:
            return
        chosen, step = trainer.output(), trainer.step
        if self.best and self.best.tensors:
            chosen, step = self.best.tensors, self.best.step
        sample = directory.samples / f"step-{step:06d}-0.png"
        thumbnail = make_thumbnail(Image.open(sample)) if sample.is_file() else None
        file = trainer.pack(chosen, step=step, thumbnail=thumbnail)
        path = file.save(directory.path / "atoms.safetensors")
        grid = draw_samples(directory.samples, self.sampler.jobs) if trainer.data.paints else None
        if grid:
            grid.save(directory.path / "samples.png")
        facts = describe_trainer(trainer, path)
        facts |= {"chosen_step": step, "metrics": self.measured}
        directory.write_json("report.json", facts)
        card = write_card(
            facts,
            words=config.trigger or config.instance_prompt,
            base=config.pretrained_model_name_or_path,
            variant=config.atom_variant,
            seed=config.seed,
            has_grid=grid is not None,
        )
        write_whole(directory.path / "README.md", card.encode())
        if config.push_to_hub:
            self.log(f"pushed to {push_run(directory.path, config.hub_model_id)}")


def is_main() -> bool:
    return PartialState().is_main_process


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
        steps = run.directory.list_checkpoints()
        kept = f"step-{steps[-1]:06d}" if steps else "none"
        raise AtomError(
            f"the run directory {str(run.directory.path)!r} cannot be written at step "
            f"{trainer.step}: {error.strerror}; the last whole checkpoint is {kept}"
        ) from None
