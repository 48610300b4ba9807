"""DreamBooth training of filter atoms: one loop, a generator.

for step in train(config):
    print(step.step, step.loss)
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdatoms.errors import AtomError
from sdatoms.storage import write_whole
from sdatoms.training.checkpoints import resume, save_checkpoint
from sdatoms.training.concepts import complete_config, list_concepts, write_data_config
from sdatoms.training.config import TrainConfig
from sdatoms.training.failures import explain_failures, explain_opening
from sdatoms.training.inputs import check_inputs
from sdatoms.training.lock import RunLock
from sdatoms.training.output_folder import check_output_folder, keep_given
from sdatoms.training.processes import agree, is_main
from sdatoms.training.record import make_record, read_record
from sdatoms.training.report import push_run
from sdatoms.training.results import write_results
from sdatoms.training.run_folder import RunDirectory, name_step, write_toml
from sdatoms.training.run_log import RunLog
from sdatoms.training.samples import Evaluate
from sdatoms.training.sampling import Sampler
from sdatoms.training.stopping import WISHES, StopRequest, TrainingStopped
from sdatoms.training.trackers import Trackers, check_tracker
from sdatoms.training.trainer import Trainer, TrainStep
from sdatoms.training.validation import LOSS, Validation, choose_rule

__all__ = [
    "Run",
    "train",
]


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
        with explain_opening(run.directory.path, run.config):
            run.prepare(trackers)
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
        self.stop = stop or StopRequest()
        self.directory = RunDirectory(Path(config.output_dir))
        self.lock = RunLock(self.directory.path)
        self.record: dict[str, Any] = {}
        lines = RunLog(self.directory, notify)
        self.lines, self.log, self.note = lines, lines.log, lines.note
        self.step = 0
        self.saved = -1
        self.validation = Validation(None, log=self.log, note=self.note, report=self.report)

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
        self.config, folder, self.validation.best = choose_rule(
            self.config,
            folder,
            evaluates=bool(self.evaluate),
            held=self.count_held(),
            note=self.note,
        )
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
        self.validation.attach(self.trainer, self.sampler, self.trackers)

    def count_held(self) -> int | None:
        """How many pictures a run that is resumed held back; None where none is."""
        wanted = self.config.resume_from_checkpoint
        found = self.directory.find_checkpoint(wanted) if wanted else None
        if found is None:
            return None
        settings = (read_record(found[1]) or {}).get("settings", {})
        return settings.get("num_validation_pictures") or 0

    def claim(self) -> None:
        """Own the run directory, where there is one; what a killed save left is put right.

        Raises:
            AtomError: another training owns it, or it holds what no training wrote.
        """
        failure = None
        if is_main() and os.path.lexists(self.directory.path):
            try:
                check_output_folder(self.directory.path)
                self.lock.acquire()
                self.directory.clean()
            except AtomError as error:
                failure = error
        if agree(failure is not None):
            raise failure or AtomError("the run directory cannot be written to")

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
            keep_given(self.directory.path)
            self.directory.set_status("loading", self.step, config.max_train_steps, None)
            write_whole(self.directory.path / "config.toml", text.encode())
            if config.data_config:
                described = write_data_config(list_concepts(config))
                write_whole(self.directory.path / "data.toml", described.encode())
            if resumed:
                self.directory.trim_metrics(trainer.step)
            else:
                self.directory.start_afresh()
        self.stop.writing = True
        self.lines.begin()
        for line in trainer.folder.taken:
            self.note(line)
        if resumed:
            self.log(f"resumed from {name_step(trainer.step)}")
            if trainer.step >= config.max_train_steps:
                self.note(
                    f"all {config.max_train_steps} steps are done; a larger --max_train_steps "
                    "trains on"
                )
            self.saved = trainer.step
            self.validation.load(resumed.state)
        self.report("loading", force=True)

    def report(self, phase: str, eta_s: float | None = None, *, force: bool = False) -> None:
        """Show in status.json what goes on; without `force` at most once a second.

        Raises:
            TrainingStopped: it was asked to stop; not with `force`.
        """
        if self.stop.asked and not force:
            raise TrainingStopped(self.step)
        if self.lines.begun and is_main():
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
            if metrics := self.validation.measure_loss(base=True):  # where its curve begins
                self.directory.add_metrics({"step": 0, "total": total} | metrics)
        elif self.is_due(trainer.step) and self.validation.misses_samples():
            self.validation.measure()
        start, began = trainer.step, time.time()
        while trainer.step < total and not agree(self.validation.exhausted):
            if trainer.step:  # the first step comes first: somebody waits for it
                now = time.time()
                self.validation.measure_base()
                began += time.time() - now
            if agree(self.stop.asked):
                self.save()
                raise TrainingStopped(trainer.step, saved=True)
            step = trainer.take_step()
            self.step = step.step
            wishes = self.take_wishes()
            metrics = self.validation.measure() if self.is_due(step.step) else {}
            if "samples" in wishes and not self.is_due(step.step):
                metrics = self.validation.measure(asked=True)
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

    def save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.saved == self.trainer.step:
            return
        if self.trainer.main:
            further, limit = self.validation.state(), self.config.checkpoints_total_limit
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

    def finish(self) -> None:
        """Write the results, and upload them where that is asked for."""
        if not self.trainer.main:
            return
        chosen, step = self.validation.choose()
        write_results(
            self.trainer,
            self.directory,
            chosen,
            step=step,
            jobs=self.sampler.jobs,
            measured=self.validation.measured,
        )
        if self.config.push_to_hub:
            self.log(f"pushed to {push_run(self.directory.path, self.config.hub_model_id)}")

    def save_after_failure(self) -> int:
        """A checkpoint, unless an optimizer step was torn; returns the step that is saved."""
        self.trainer.optimizer.zero_grad()
        if not self.trainer.torn:
            self.save()
        return self.saved
