"""DreamBooth training of filter atoms: one loop, a generator.

for step in train(config):
    print(step.step, step.loss)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from sdatoms.errors import AtomError, is_full_memory
from sdatoms.storage import write_whole
from sdatoms.training.checkpoints import resume, save_checkpoint
from sdatoms.training.concepts import complete_config, list_concepts, write_data_config
from sdatoms.training.config import TrainConfig
from sdatoms.training.failures import advise_on_memory, explain_failures, is_closed_disk
from sdatoms.training.folder import PictureFolder
from sdatoms.training.held_back import FEWEST, suggest_held
from sdatoms.training.inputs import check_inputs
from sdatoms.training.lock import RunLock
from sdatoms.training.processes import agree
from sdatoms.training.record import make_record, read_record
from sdatoms.training.report import push_run
from sdatoms.training.results import write_results
from sdatoms.training.run_folder import RunDirectory, write_toml
from sdatoms.training.samples import Best, Evaluate
from sdatoms.training.sampling import Sampler
from sdatoms.training.stopping import WISHES, StopRequest, TrainingStopped
from sdatoms.training.trackers import Trackers, check_tracker
from sdatoms.training.trainer import Trainer, TrainStep
from sdatoms.training.validation_loss import ValidationLoss

__all__ = [
    "Run",
    "train",
]

LOSS = "validation_loss"
NEEDED = (
    "--evaluator clip measures samples, --num_validation_pictures or --validation_data_dir the "
    "loss on pictures not trained on"
)


def train(
    config: TrainConfig,
    *,
    evaluate: Evaluate | None = None,
    trackers: Sequence[Any] = (),
    stop: StopRequest | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Generator[TrainStep]:
    """Train and yield after every optimizer step. Stop iterating (`close()`) to stop: the state is
    saved first.

    Args:
        evaluate: measures the samples; its numbers go into metrics.jsonl and decide the best step.
        trackers: further accelerate trackers, beside those `--report_to` names.
        stop: is looked at between pictures and steps.
        notify: takes lines that a person should see, such as what is odd about the pictures.

    Raises:
        AtomError: pictures, flags or base cannot be used, and nothing was written; or the loss is
            no longer finite, memory or disk is full, and what is on disk is whole.
        TrainingStopped: it was asked to stop; what it had is saved.
    """
    if config.best_metric not in (None, "auto", LOSS) and evaluate is None:
        raise AtomError(
            f"--best_metric {config.best_metric} needs something that measures the samples; none "
            "was given to train()"
        )
    run = Run(config, evaluate, stop=stop, notify=notify)
    phase = "failed"
    try:
        try:
            run.prepare(trackers)
        except (MemoryError, RuntimeError, OSError) as error:
            if is_full_memory(error):
                advice = advise_on_memory(run.config, training=False)
                raise AtomError(f"out of memory before the first step; try {advice}") from None
            if is_closed_disk(error):
                raise AtomError(blame_path(error, run.directory.path)) from None
            raise
        with explain_failures(run.directory, run.config, lambda: run.step, run.save_after_failure):
            try:
                yield from run.walk()
                phase = "done"
            except GeneratorExit:
                run.save()
                phase = "stopped"
                raise
    except (KeyboardInterrupt, TrainingStopped):
        phase = "stopped"
        raise
    finally:
        run.close(phase)


class Run:
    """One run from its first step, or a checkpoint, to its atom file."""

    trainer: Trainer
    sampler: Sampler
    trackers: Trackers | None = None

    def __init__(
        self,
        config: TrainConfig,
        evaluate: Evaluate | None = None,
        *,
        stop: StopRequest | None = None,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config = config = complete_config(config)
        self.evaluate = evaluate
        self.stop, self.notify = stop or StopRequest(), notify
        self.directory = RunDirectory(Path(config.output_dir))
        self.lock = RunLock(self.directory.path)
        self.record: dict[str, Any] = {}
        self.accepted = False
        """Whether the call was found good; nothing is written before."""
        self.step = 0
        self.saved = -1
        self.waiting: list[str] = []
        """Lines for the log from before."""
        self.unsaid: list[str] = []
        """Notes from before; a call that is refused says why, and nothing else."""
        self.measured: dict[str, dict[str, float]] = {}
        """Name of the samples (`base`, `step-…`) → what was measured on them."""
        self.best: Best | None = None
        self.validation: ValidationLoss | None = None
        self.compared: dict[str, Any] | None = None
        """What the validation losses so far were measured on."""

    def prepare(self, trackers: Sequence[Any] = ()) -> None:
        """Open the base, make the parts of the run, paint class pictures, encode.

        Raises:
            AtomError: pictures, flags or base cannot be used.
        """
        folder = check_inputs(self.config)
        check_tracker(self.config.report_to)
        for note in folder.notes:
            self.note(note)
        self.claim()
        folder = self.choose_rule(folder)
        config = self.config
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
        if self.trainer.data.held:
            self.validation = ValidationLoss(self.trainer, self.trainer.data.held, config.seed)
            self.compare_best()

    def choose_rule(self, folder: PictureFolder) -> PictureFolder:
        """Settle which measure chooses the file's step; where it is the validation loss and nobody
        said on what, hold pictures back. Says so where nothing is measured."""
        config, count = self.config, len(folder.sources)
        metric, few = config.best_metric, ""
        if metric == "auto" and self.evaluate:
            metric = "fidelity"
        elif metric == "auto" and config.validation_steps:
            if not folder.held and config.num_validation_pictures is None:
                few = f"pictures are held back unasked of {FEWEST} or more, and there are {count}"
                if held := self.suggest_held(count):
                    config = replace(config, num_validation_pictures=held)
                    folder = check_inputs(config)
            metric = LOSS if folder.held else None
        elif metric == "auto":
            metric = None
        self.config = config
        if metric:
            goal = "min" if metric == LOSS else config.best_metric_goal
            self.best = Best(metric, goal, config.early_stopping_patience)
        elif config.best_metric:
            why = f"; {few}" if few else ""
            self.note(
                f"nothing measures the samples: --best_metric auto keeps the last step{why}; "
                f"{NEEDED}"
            )
        elif not self.evaluate and not folder.held and config.validation_steps:
            self.note(f"nothing is measured while this trains, the samples are to see; {NEEDED}")
        if metric == LOSS:
            self.note(
                f"the step with the least loss on {len(folder.held)} held-back "
                f"{'picture' if len(folder.held) == 1 else 'pictures'} is kept, of those measured "
                f"every {config.validation_steps} steps"
            )
        return folder

    def suggest_held(self, count: int) -> int:
        """How many pictures are held back unasked; in a resumed run as many as before."""
        wanted = self.config.resume_from_checkpoint
        found = self.directory.find_checkpoint(wanted) if wanted else None
        if found is None:
            return suggest_held(count)
        settings = (read_record(found[1]) or {}).get("settings", {})
        return settings.get("num_validation_pictures") or 0

    def compare_best(self) -> None:
        """Forget a best step that was measured on other held-back pictures."""
        assert self.validation is not None
        described = self.validation.describe()
        if self.compared not in (None, described) and self.best and self.best.metric == LOSS:
            self.note("other pictures are held back than before: the best step is looked for anew")
            self.best = Best(LOSS, "min", self.config.early_stopping_patience)
        self.compared = described

    def claim(self) -> None:
        """Own the run directory, where there is one; what a killed save left is put right.

        Raises:
            AtomError: another training owns it.
        """
        failure = None
        if is_main() and self.directory.path.is_dir():
            try:
                self.lock.acquire()
                self.directory.clean()
            except AtomError as error:
                failure = error
        if agree(failure is not None):
            raise failure or AtomError("another training owns the run directory")

    def accept(self, trainer: Trainer) -> None:
        """Take the checkpoint's state over, and begin to write into the run directory."""
        config = self.config
        dtype = trainer.precision.base_name
        self.record = make_record(config, trainer.folder, trainer.pipe, dtype)
        for note in trainer.notes:
            self.note(note)
        resumed, wanted = None, config.resume_from_checkpoint
        if wanted:
            resumed = resume(trainer, self.directory, self.record, wanted)
            if resumed is None:
                place = str(self.directory.path)
                self.note(f"nothing to resume: {place!r} holds no checkpoint; starting afresh")
            for note in resumed.notes if resumed else ():
                self.note(note)
        text = write_toml(asdict(config))
        if trainer.main:
            self.directory.create()
        self.claim()
        for name in WISHES if trainer.main else ():
            self.directory.take_wish(name)  # of a run that is over
        self.step = trainer.step
        if trainer.main:
            write_whole(self.directory.path / "config.toml", text.encode())
            if config.data_config:
                described = write_data_config(list_concepts(config))
                write_whole(self.directory.path / "data.toml", described.encode())
            if resumed:
                self.directory.trim_metrics(trainer.step)
            else:
                self.directory.start_afresh()
        self.accepted = self.stop.writing = True
        for line in self.waiting:
            self.log(line)
        for note in self.unsaid:
            self.notify(note)
        for line in trainer.folder.taken:
            self.note(line)
        if resumed:
            self.log(f"resumed from step-{trainer.step:06d}")
            if trainer.step >= config.max_train_steps:
                self.note(
                    f"all {config.max_train_steps} steps are done; a larger --max_train_steps "
                    "trains on"
                )
            self.saved = trainer.step
            self.measured = resumed.state["measured"]
            if self.best and resumed.state["best"]:
                self.best.load(resumed.state["best"])
            self.compared = resumed.state.get("validation")
        self.report("loading", force=True)

    def note(self, text: str) -> None:
        """A line for the log and for whoever looks on."""
        self.log(text)
        if is_main() and self.accepted:
            self.notify(text)
        elif is_main():
            self.unsaid.append(text)

    def log(self, text: str) -> None:
        """Append a line to the log."""
        if not self.accepted:
            self.waiting.append(text)
        elif is_main():
            self.directory.log(text)

    def report(self, phase: str, eta_s: float | None = None, *, force: bool = False) -> None:
        """Show in status.json what goes on; without `force` at most once a second.

        Raises:
            TrainingStopped: it was asked to stop; not with `force`.
        """
        if self.stop.asked and not force:
            raise TrainingStopped(self.step)
        if self.accepted and is_main():
            total = self.config.max_train_steps
            self.directory.set_status(phase, self.step, total, eta_s, force=force)

    def close(self, phase: str) -> None:
        """End the run in a phase."""
        if self.trackers:
            self.trackers.close()
        with contextlib.suppress(OSError):  # a full disk must not hide why the run failed
            self.report(phase, 0.0, force=True)
        self.lock.release()
        self.stop.writing = False  # what comes after may be stopped at once

    def walk(self) -> Iterator[TrainStep]:
        """Yield every step; write the results after the last one."""
        trainer, total = self.trainer, self.config.max_train_steps
        self.log(
            f"training {trainer.num_parameters} numbers in "
            f"{sum(len(i.layers) for i in trainer.injections.values())} layers on "
            f"{len(trainer.data.instances)} pictures for {total} steps"
        )
        if trainer.step == 0:
            metrics = self.validate(base=True)
            if LOSS in metrics:  # where its curve begins
                row = {"step": 0, "total": total, LOSS: metrics[LOSS]}
                self.directory.add_metrics(row)
        elif self.is_due(trainer.step) and self.misses_samples():
            self.validate()
        start, began = trainer.step, time.time()
        while trainer.step < total and not agree(bool(self.best and self.best.exhausted)):
            if agree(self.stop.asked):
                self.save()
                raise TrainingStopped(trainer.step, saved=True)
            step = trainer.take_step()
            self.step = step.step
            wishes = self.take_wishes()
            metrics = self.validate() if self.is_due(step.step) else {}
            if "samples" in wishes and not self.is_due(step.step):
                metrics = self.validate(asked=True)
            row = {**step._asdict(), **metrics}
            eta = (time.time() - began) / (step.step - start) * (total - step.step)
            if trainer.main:
                self.directory.add_metrics(row)
            self.report("training", eta, force=self.stop.asked)
            if self.trackers:
                self.trackers.log(row, step.step)
            if step.step % self.config.checkpointing_steps == 0 and step.step < total:
                self.save()
            elif "checkpoint" in wishes:
                self.save()
                self.note(f"saved step {step.step} as asked")
            yield step
        if trainer.step < total:
            self.log(f"stopped early at step {trainer.step}")
        self.save()
        self.finish()

    def is_due(self, step: int) -> bool:
        every = self.config.validation_steps
        return bool(every) and (step % every == 0 or step == self.config.max_train_steps)

    def misses_samples(self) -> bool:
        """Whether the samples of the step resumed from were not painted to their end."""
        count = len(self.sampler.jobs)
        name = f"step-{self.trainer.step:06d}-{count - 1}.png"
        return bool(count) and not (self.directory.samples / name).is_file()

    def save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.saved == self.trainer.step:
            return
        best = self.best.state() if self.best else None
        if self.trainer.main:
            further = {"best": best, "measured": self.measured, "validation": self.compared}
            limit = self.config.checkpoints_total_limit
            save_checkpoint(self.trainer, self.directory, self.record, further, limit)
        self.saved = self.trainer.step

    def take_wishes(self) -> set[str]:
        """What was asked for since the last step, by a signal or a file; each is done once."""
        if not self.trainer.main:
            return set()
        wishes = {name for name in WISHES if self.directory.take_wish(name)} | self.stop.wishes
        self.stop.wishes.clear()
        if "samples" in wishes and not self.trainer.data.paints:
            self.note(
                "no samples are painted in this run: what paints them was freed; --validation_steps"
                " and --num_validation_images above 0 keep it"
            )
        return wishes

    def validate(self, base: bool = False, asked: bool = False) -> dict[str, float]:
        """Paint and measure samples; the best so far is kept. No samples where a stop is asked for
        meanwhile, which is then heard before the next step.

        Args:
            asked: by hand, between the steps that are due: the best step and the patience are left
                as they are, so that looking changes nothing.
        """
        trainer = self.trainer
        if not trainer.main:
            return {}
        name = "base" if base else f"step-{trainer.step:06d}"
        metrics: dict[str, float] = {}
        if self.validation:
            self.report("validation", force=True)
            loss = self.validation.measure(base)
            metrics = {LOSS: loss}
            self.keep(name, metrics, offer=not asked)
        if not trainer.data.paints:
            return metrics
        try:
            _, pictures, found = self.sampler.paint(base)
        except TrainingStopped:
            return metrics
        if self.trackers:
            self.trackers.show(name, pictures, self.sampler.prompts, trainer.step)
        self.keep(name, found, offer=not asked)
        if asked:
            self.note(f"painted samples of step {trainer.step} as asked")
        if self.best and not base and self.best.metric not in metrics | found:
            self.best.offer(trainer.step, metrics | found, {})  # says what is measured
        return metrics | found

    def keep(self, name: str, metrics: dict[str, float], *, offer: bool = True) -> None:
        """Note what was measured; with `offer`, the step is kept where it is the best so far."""
        trainer = self.trainer
        before = self.measured.get(name, {})
        if metrics:
            self.measured[name] = before | metrics
            self.log(f"{name}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        metric = self.best.metric if self.best else ""
        # A step whose samples were cut short is measured again; its loss was offered already.
        if not self.best or name == "base" or metric not in metrics or not offer:
            return
        if metric == LOSS and LOSS in before:
            return
        if self.best.offer(trainer.step, metrics, trainer.output()):
            self.log(f"best {metric} so far at step {trainer.step}")

    def finish(self) -> None:
        """Write the results, and upload them where that is asked for."""
        if not self.trainer.main:
            return
        chosen, step = self.trainer.output(), self.trainer.step
        if self.best and self.best.tensors:
            chosen, step = self.best.tensors, self.best.step
        write_results(
            self.trainer,
            self.directory,
            chosen,
            step=step,
            jobs=self.sampler.jobs,
            measured=self.measured,
        )
        if self.config.push_to_hub:
            self.log(f"pushed to {push_run(self.directory.path, self.config.hub_model_id)}")

    def save_after_failure(self) -> int:
        """A checkpoint, unless an optimizer step was torn; returns the step that is saved."""
        self.trainer.optimizer.zero_grad()
        if not self.trainer.torn:
            self.save()
        return self.saved


def blame_path(error: Any, run: Path) -> str:
    """One sentence for a file that cannot be read or written: of the run directory, or another."""
    named = error.filename
    if isinstance(named, str) and not Path(named).is_relative_to(run):
        return f"{named!r} cannot be opened: {error.strerror}"
    return f"the run directory {str(run)!r} cannot be written: {error}"


def is_main() -> bool:
    return PartialState().is_main_process
