"""One experiment: choose a learning rate by the validation split, then test once.

Nothing sees the test split before every choice is made. A run that was interrupted continues from
its last saved state; one that has ended answers with its result and tests nothing again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdatoms.classifiers.drawings import draw_confusion
from sdatoms.classifiers.fit import TrainSettings, evaluate_classifier, fit
from sdatoms.classifiers.methods import Tuned, shift_rate
from sdatoms.classifiers.model import pack_head
from sdatoms.classifiers.pictures import Split, Task
from sdatoms.errors import AtomError
from sdatoms.pictures import save_image
from sdatoms.storage import write_whole
from sdatoms.training.checkpoints import pack_state, unpack_state

__all__ = [
    "Experiment",
    "make_accelerator",
    "run_experiment",
]

STATE, RESULT = "state.safetensors", "result.json"


@dataclass(frozen=True)
class Experiment:
    """What is tried, and where it is kept."""

    rates: tuple[float, ...]
    """Learning rates, tried in this order."""
    settings: TrainSettings
    widen: int = 0
    """How many rates more may be tried, by half powers of ten, while the best is the least or the
    greatest of several."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Kind of parameter → multiple of the learning rate, in place of the method's own."""
    train_on_validation: bool = False
    """Whether to train once more, at the chosen rate, on training and validation pictures."""
    folder: Path | None = None
    """Where state, result and files go; None keeps nothing."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else names the run, such as model and method; a state of other facts is refused."""

    @property
    def name(self) -> str:
        own = {
            "rates": self.rates,
            "widen": self.widen,
            "settings": asdict(self.settings),
            "ratios": dict(self.ratios),
            "train_on_validation": self.train_on_validation,
        }
        return json.dumps(own | dict(self.facts), sort_keys=True, default=str)


def make_accelerator(mixed_precision: str) -> Accelerator:
    """An accelerator of this precision, whatever an earlier one in the process had.

    Raises:
        AtomError: the machine cannot.
    """
    AcceleratorState._reset_state()
    try:
        return Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        raise AtomError(
            f"--mixed_precision {mixed_precision} does not work here: {error}"
        ) from None


def run_experiment(tuned: Tuned, task: Task, experiment: Experiment) -> dict[str, Any]:
    """Train at every rate, keep what validates best (accuracy, then loss), test it once.

    Raises:
        AtomError: the folder holds another run, or no rate gives a finite loss.
    """
    folder, settings = experiment.folder, experiment.settings
    if folder and (folder / RESULT).exists():
        result = json.loads((folder / RESULT).read_text())
        if result["name"] != experiment.name:
            raise AtomError(
                f"{str(folder)!r} holds the result of other settings; give another --output_dir"
            )
        return result
    accelerator = make_accelerator(settings.mixed_precision)
    tuned.classifier.place(accelerator.device)
    start, state = tuned.copy(), load_state(folder, experiment.name)
    trials, best = state.get("trials", []), state.get("best")

    def train(split: Split, rate: float) -> float:
        tuned.restore(start)
        current = state.pop("current", None)

        def save(now: dict[str, Any]) -> None:
            if folder and accelerator.is_main_process:
                store = {"trials": trials, "best": best, "current": now}
                save_state(folder, experiment.name, store)

        return fit(
            tuned,
            split,
            rate,
            settings,
            accelerator,
            flips=task.flips,
            ratios=experiment.ratios,
            state=current,
            save=save if folder else None,
        )

    while (rate := next_rate(experiment, trials)) is not None:
        try:
            seconds = train(task.train, rate)
        except AtomError as error:
            if len(experiment.rates) == 1:
                raise
            trials.append({"rate": rate, "accuracy": 0.0, "loss": None, "note": str(error)})
            continue
        found = evaluate_classifier(tuned.classifier, task.validation, accelerator.device)
        trial = {"rate": rate, "accuracy": found.accuracy, "loss": found.loss, "seconds": seconds}
        if best is None or rank(trial) > rank(trials[chosen(trials)]):
            best = tuned.copy()
        trials.append(trial)
    if best is None:
        raise AtomError("no learning rate gives a finite loss; lower --learning_rate")
    winner = trials[chosen(trials)]
    seconds = winner["seconds"]
    if experiment.train_on_validation:
        seconds = train(task.train.join(task.validation), winner["rate"])
    else:
        tuned.restore(best)
    found = evaluate_classifier(tuned.classifier, task.test, accelerator.device)
    result = describe(tuned, task, experiment, winner, trials) | {
        "test_accuracy": found.accuracy,
        "test_loss": found.loss,
        "seconds": seconds,
        "confusion": found.confusion,
    }
    if folder and accelerator.is_main_process:
        write_files(folder, tuned, task, settings.seed)
        save_image(draw_confusion(found.confusion, task.classes), folder / "confusion.png")
        write_whole(folder / RESULT, (json.dumps(result, indent=1) + "\n").encode())
        (folder / STATE).unlink(missing_ok=True)
    return result


def next_rate(experiment: Experiment, trials: Sequence[Mapping[str, Any]]) -> float | None:
    """The next learning rate to try; None where the choice is made."""
    tried = [trial["rate"] for trial in trials]
    if len(tried) < len(experiment.rates):
        return experiment.rates[len(tried)]
    if len(tried) < 2 or len(tried) >= len(experiment.rates) + experiment.widen:
        return None
    best = tried[chosen(trials)]
    if best not in (min(tried), max(tried)):
        return None
    step = 1 if best == max(tried) else -1
    return shift_rate(best, step)


def rank(trial: Mapping[str, Any]) -> tuple[float, float]:
    loss = trial["loss"]
    return trial["accuracy"], -float("inf") if loss is None else -loss


def chosen(trials: Sequence[Mapping[str, Any]]) -> int:
    """Index of the trial that validates best; the first of equals."""
    return max(range(len(trials)), key=lambda n: (rank(trials[n]), -n))


def describe(
    tuned: Tuned,
    task: Task,
    experiment: Experiment,
    winner: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    head = len(pack_head(tuned.classifier, task.classes))
    beside = len(pack_head(tuned.classifier, task.classes, tuned.extras)) - head
    own = len(tuned.pack(experiment.settings.seed)[1]) if tuned.parameters else 0
    return {
        "name": experiment.name,
        **experiment.facts,
        "task": task.name,
        "classes": list(task.classes),
        "pictures": {
            "train": len(task.train),
            "validation": len(task.validation),
            "test": len(task.test),
        },
        "learning_rate": winner["rate"],
        "validation_accuracy": winner["accuracy"],
        "trials": list(trials),
        "parameters": tuned.num_parameters,
        "head_parameters": tuned.num_head_parameters,
        "bytes": own + beside,
        "head_bytes": head,
        "torch": torch.__version__,
    }


def write_files(folder: Path, tuned: Tuned, task: Task, seed: int) -> None:
    """What was trained: the method's file, if it has one, and the head's."""
    if tuned.parameters:
        name, data = tuned.pack(seed)
        write_whole(folder / name, data)
    head = pack_head(tuned.classifier, task.classes, tuned.extras)
    write_whole(folder / "head.safetensors", head)


def save_state(folder: Path, name: str, state: dict[str, Any]) -> None:
    tensors, places = pack_state(state)
    write_whole(folder / STATE, save_tensors(tensors, {"name": name, "places": places}))


def load_state(folder: Path | None, name: str) -> dict[str, Any]:
    """The state of an interrupted run of the same name; empty where there is none."""
    path = folder / STATE if folder else None
    if path is None or not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError:
        raise AtomError(f"{str(path)!r} is no saved state; remove it to start afresh") from None
    if header.get("name") != name:
        raise AtomError(
            f"{str(folder)!r} holds an interrupted run of other settings; give another --output_dir"
        )
    return unpack_state(tensors, header["places"])
