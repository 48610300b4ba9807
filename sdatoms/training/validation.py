"""What a run measures of itself: samples, loss on held-back pictures, and which step is best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from sdatoms.training.config import TrainConfig
from sdatoms.training.folder import PictureFolder
from sdatoms.training.held_back import FEWEST, suggest_held
from sdatoms.training.inputs import check_inputs
from sdatoms.training.run_folder import name_step
from sdatoms.training.samples import Best
from sdatoms.training.sampling import Sampler
from sdatoms.training.stopping import TrainingStopped
from sdatoms.training.trackers import Trackers
from sdatoms.training.trainer import Trainer
from sdatoms.training.validation_loss import ValidationLoss

__all__ = [
    "LOSS",
    "Validation",
    "choose_rule",
]

LOSS = "validation_loss"
NEEDED = (
    "--evaluator clip measures samples, --num_validation_pictures or --validation_data_dir the "
    "loss on pictures not trained on"
)


def choose_rule(
    config: TrainConfig,
    folder: PictureFolder,
    *,
    evaluates: bool,
    held: int | None,
    note: Callable[[str], None],
) -> tuple[TrainConfig, PictureFolder, Best | None]:
    """Settle which measure chooses the file's step; where it is the validation loss and nobody
    said on what, hold pictures back. Says so where nothing is measured.

    Args:
        evaluates: whether something measures the samples.
        held: pictures to hold back unasked, as a resumed run did before; None: by their number.
        note: takes a line for whoever looks on.

    Raises:
        AtomError: none would be left to train on.
    """
    count, metric, few = len(folder.sources), config.best_metric, ""
    if metric == "auto" and evaluates:
        metric = "fidelity"
    elif metric == "auto" and config.validation_steps:
        if not folder.held and config.num_validation_pictures is None:
            few = f"pictures are held back unasked of {FEWEST} or more, and there are {count}"
            if held := suggest_held(count) if held is None else held:
                config = replace(config, num_validation_pictures=held)
                folder = check_inputs(config)
        metric = LOSS if folder.held else None
    elif metric == "auto":
        metric = None
    best = None
    if metric:
        goal = "min" if metric == LOSS else config.best_metric_goal
        best = Best(metric, goal, config.early_stopping_patience)
    elif config.best_metric:
        why = f"; {few}" if few else ""
        note(f"nothing measures the samples: --best_metric auto keeps the last step{why}; {NEEDED}")
    elif not evaluates and not folder.held and config.validation_steps:
        note(f"nothing is measured while this trains, the samples are to see; {NEEDED}")
    if metric == LOSS:
        note(
            f"the step with the least loss on {len(folder.held)} held-back "
            f"{'picture' if len(folder.held) == 1 else 'pictures'} is kept, of those measured "
            f"every {config.validation_steps} steps"
        )
    return config, folder, best


class Validation:
    """Measures one run, and keeps the best step so far.

    Args:
        best: what chooses the step, if anything does.
        log: takes a line for the run's log.
        note: takes a line for whoever looks on, too.
        report: takes the name of what goes on; with `force` it never raises.
    """

    sampler: Sampler
    loss: ValidationLoss | None = None
    trackers: Trackers | None = None

    def __init__(
        self,
        best: Best | None,
        *,
        log: Callable[[str], None],
        note: Callable[[str], None],
        report: Callable[..., None],
    ) -> None:
        self.best, self.log, self.note, self.report = best, log, note, report
        self.measured: dict[str, dict[str, float]] = {}
        """Name of the samples (`base`, `step-…`) → what was measured on them."""
        self.compared: dict[str, Any] | None = None
        """What the validation losses so far were measured on."""
        self.sampled: dict[str, Any] | None = None
        """What the base was painted as; None: not by a run that kept it."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        best = self.best.state() if self.best else None
        return {
            "best": best,
            "measured": self.measured,
            "validation": self.compared,
            "sampled": self.sampled,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.measured, self.compared = state["measured"], state.get("validation")
        self.sampled = state.get("sampled")
        if self.best and state["best"]:
            self.best.load(state["best"])

    def attach(self, trainer: Trainer, sampler: Sampler, trackers: Trackers) -> None:
        """Take what paints and what shows; a best step that was measured on other samples, or on
        other held-back pictures, is forgotten."""
        self.trainer, self.sampler, self.trackers = trainer, sampler, trackers
        if trainer.data.paints and self.sampled not in (None, sampler.describe()):
            self.note("other samples are generated than before: they are measured anew")
            losses = {name: found.get(LOSS) for name, found in self.measured.items()}
            self.measured = {name: {LOSS: v} for name, v in losses.items() if v is not None}
            if self.best and self.best.metric != LOSS:
                self.best = Best(self.best.metric, self.best.goal, self.best.patience)
        if not trainer.data.held:
            return
        self.loss = ValidationLoss(trainer, trainer.data.held, trainer.config.seed)
        described, best = self.loss.describe(), self.best
        if self.compared not in (None, described) and best and best.metric == LOSS:
            self.note("other pictures are held back than before: the best step is looked for anew")
            self.best = Best(LOSS, "min", best.patience)
        self.compared = described

    @property
    def exhausted(self) -> bool:
        """Whether the best step is so long ago that the run ends."""
        return bool(self.best and self.best.exhausted)

    def misses_samples(self, base: bool = False) -> bool:
        """Whether samples of this step, as after a resumption, or of the base were not painted to
        their end, or of the base as other ones."""
        count = len(self.sampler.jobs)
        path = self.sampler.folder / f"{self.name(base)}-{count - 1}.png"
        other = base and self.sampled not in (None, self.sampler.describe())
        return bool(count) and (other or not path.is_file())

    def name(self, base: bool = False) -> str:
        """Of the samples, and of what is measured."""
        return name_step(None if base else self.trainer.step)

    def measure_loss(self, base: bool = False, offer: bool = True) -> dict[str, float]:
        """The loss on the pictures held back, where there are some.

        Args:
            base: of the untouched base.
            offer: keep the step where it is the best so far.
        """
        if not self.trainer.main or not self.loss:
            return {}
        self.report("validation", force=True)
        metrics = {LOSS: self.loss.measure(base)}
        self.keep(self.name(base), metrics, offer=offer)
        return metrics

    def measure_base(self) -> None:
        """Paint and measure samples of the untouched base, where that was not done: after the first
        step, which somebody waits for, and before those of any step, whose drift they tell."""
        if self.trainer.main and self.trainer.data.paints and self.misses_samples(base=True):
            self.paint(base=True)

    def measure(self, asked: bool = False) -> dict[str, float]:
        """Paint and measure samples; the best so far is kept. No samples where a stop is asked for
        meanwhile, which is then heard before the next step.

        Args:
            asked: by hand, between the steps that are due: the best step and the patience are left
                as they are, so that looking changes nothing.
        """
        trainer = self.trainer
        if not trainer.main:
            return {}
        self.measure_base()
        metrics = self.measure_loss(offer=not asked)
        found = self.paint(offer=not asked) if trainer.data.paints else None
        if found is None:
            return metrics
        if asked:
            self.note(f"painted samples of step {trainer.step} as asked")
        if self.best and self.best.metric not in metrics | found:
            self.best.offer(trainer.step, metrics | found, {})  # says what is measured
        return metrics | found

    def paint(self, base: bool = False, offer: bool = True) -> dict[str, float] | None:
        """What was measured on samples painted now; None where a stop was asked for meanwhile."""
        try:
            name, pictures, found = self.sampler.paint(base)
        except TrainingStopped:
            return None
        if base:
            self.sampled = self.sampler.describe()
        if self.trackers:
            self.trackers.show(name, pictures, self.sampler.prompts, self.trainer.step)
        self.keep(name, found, offer=offer)
        return found

    def keep(self, name: str, metrics: dict[str, float], *, offer: bool = True) -> None:
        """Note what was measured; with `offer`, the step is kept where it is the best so far."""
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
        if self.best.offer(self.trainer.step, metrics, self.trainer.output()):
            self.log(f"best {metric} so far at step {self.trainer.step}")

    def choose(self) -> tuple[dict[str, Tensor], int]:
        """The atoms that the file gets, and their step: the best ones, or those of now."""
        if self.best and self.best.tensors:
            return self.best.tensors, self.best.step
        return self.trainer.output(), self.trainer.step
