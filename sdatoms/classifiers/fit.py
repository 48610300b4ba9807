"""Training and testing classifiers: AdamW, cosine with warm-up, resumable to the bit.

Every random number is drawn from the seed and the step alone, so that a run that was interrupted
continues as if it had not been. A batch is shared out over processes; gradients are averaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sdatoms.classifiers.methods import Tuned
from sdatoms.classifiers.model import Classifier, classify
from sdatoms.classifiers.pictures import Split
from sdatoms.errors import AtomError
from sdatoms.training.processes import agree, average

__all__ = [
    "Evaluation",
    "TrainSettings",
    "augment",
    "evaluate_classifier",
    "fit",
]


@dataclass(frozen=True)
class TrainSettings:
    """How a classifier is trained, whatever the method."""

    epochs: int = 20
    """Passes over the training pictures."""
    train_batch_size: int = 32
    """Pictures a step, over all processes."""
    head_learning_rate: float = 2e-2
    """Of the new head; --learning_rate is the method's."""
    weight_decay: float = 1e-4
    """AdamW's, of the head and of full fine-tuning; adapters take none."""
    warmup: float = 0.1
    """Share of the steps in which rates rise; a cosine takes them to zero afterwards."""
    label_smoothing: float = 0.1
    """Share of a label spread over all classes, in [0, 1)."""
    random_shift: float = 0.125
    """Largest shift of a training picture, as a share of its side; 0 for none."""
    random_flip: bool = True
    """Mirror half the training pictures, where the task allows it."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Of the forward pass while training; tests are in float32."""
    checkpointing_epochs: int = 1
    """Epochs between saved states."""
    seed: int = 0
    """Of the head, the inner coefficients, the order of pictures and the augmentation."""

    def __post_init__(self) -> None:
        for name in ("epochs", "train_batch_size", "checkpointing_epochs"):
            if getattr(self, name) < 1:
                raise AtomError(f"--{name} is {getattr(self, name)}; it takes at least 1")
        for name in ("warmup", "label_smoothing", "random_shift"):
            if not 0 <= getattr(self, name) < 1:
                raise AtomError(f"--{name} is {getattr(self, name)}; it takes at least 0, below 1")
        for name in ("head_learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise AtomError(f"--{name} is {getattr(self, name)}; it takes a number above 0")


@dataclass(frozen=True)
class Evaluation:
    """What a classifier makes of a split."""

    accuracy: float
    loss: float
    """Cross-entropy without label smoothing."""
    confusion: list[list[int]] = field(repr=False)
    """Row: true class; column: predicted class."""


def fit(
    tuned: Tuned,
    train: Split,
    rate: float,
    settings: TrainSettings,
    accelerator: Accelerator,
    *,
    flips: bool = True,
    ratios: Mapping[str, float] | None = None,
    state: Mapping[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> float:
    """Train in place; returns the seconds it took, from where it continued.

    Args:
        rate: learning rate of the method's parameters; of the head where that is all there is.
        ratios: kind of parameter → multiple of `rate`, in place of the method's own.
        state: what `save` was given last, to continue from there.
        save: called with all that continuing needs, at the end of every `checkpointing_epochs`.

    Raises:
        AtomError: the loss is no longer finite.
    """
    began, device = time.perf_counter(), accelerator.device
    optimizer = make_optimizer(tuned, rate, settings, ratios or {})
    per_epoch = math.ceil(len(train) / settings.train_batch_size)
    total = per_epoch * settings.epochs
    start, earlier = 0, 0.0
    accelerator.free_memory()  # of an earlier optimizer
    prepared: Any = accelerator.prepare_optimizer(optimizer, device_placement=True)
    if state is not None:
        tuned.restore(state["tensors"])
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        start, earlier = state["step"], state["seconds"]
    rates = [group["full_rate"] for group in optimizer.param_groups]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    tuned.set_training(total)
    for step in range(start, total):
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * schedule(step, total, settings.warmup)
        pictures, labels, size = draw_batch(train, step, per_epoch, settings, accelerator, flips)
        # Dropout draws from here: from the step alone, differently in each process.
        torch.manual_seed(mix(settings.seed, step, 3 + accelerator.process_index))
        x = tuned.classifier.normalize(pictures.to(device))
        x = x.contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            logits = classify(tuned.classifier.model, x)
        loss = nn.functional.cross_entropy(
            logits.float(),
            labels.to(device),
            label_smoothing=settings.label_smoothing,
            reduction="sum",
        )
        # Shares of the last batch may differ in size; the mean over processes is the batch's mean.
        loss = loss * accelerator.num_processes / size
        if agree(not bool(torch.isfinite(loss))):
            raise AtomError(
                f"the loss became {float(loss)} at step {step + 1}; lower --learning_rate {rate:g}"
            )
        accelerator.backward(loss)
        average([p.grad for p in trained if p.grad is not None])
        accelerator.clip_grad_norm_(trained, settings.max_grad_norm)
        prepared.step()
        prepared.zero_grad()
        done = step + 1
        if save and done % (per_epoch * settings.checkpointing_epochs) == 0:
            seconds = earlier + time.perf_counter() - began
            save(pack(tuned, optimizer, accelerator, done, seconds))
    if tuned.statistics:
        average([t for t in tuned.moving() if not isinstance(t, nn.Parameter)])
    return earlier + time.perf_counter() - began


def make_optimizer(
    tuned: Tuned, rate: float, settings: TrainSettings, ratios: Mapping[str, float]
) -> torch.optim.AdamW:
    """AdamW with a group a kind and one for the head; decay for whole weights alone."""
    for kind in ratios:
        if kind not in tuned.groups:
            known = ", ".join(tuned.groups) or "none"
            raise AtomError(f"--rate_ratios names {kind!r:.60}; this method trains {known}")
    whole = tuned.method == "full_finetune"
    groups: list[dict[str, Any]] = []
    for kind, named in tuned.groups.items():
        decay = settings.weight_decay if whole else 0.0
        full = rate * ratios.get(kind, tuned.ratios[kind])
        groups.append({"params": list(named.values()), "full_rate": full, "weight_decay": decay})
    full = settings.head_learning_rate if tuned.groups else rate
    head = {"params": list(tuned.head.values()), "full_rate": full}
    groups.append({**head, "weight_decay": settings.weight_decay})
    return torch.optim.AdamW(groups, lr=rate)


def schedule(step: int, total: int, warmup: float) -> float:
    """Multiple of the full rate: up in a line, then down a cosine to zero."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def draw_batch(
    train: Split,
    step: int,
    per_epoch: int,
    settings: TrainSettings,
    accelerator: Accelerator,
    flips: bool,
) -> tuple[Tensor, Tensor, int]:
    """This process's share of a step's pictures, augmented, their labels, and the whole batch's
    size."""
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(len(train), generator=seeded(settings.seed, epoch, 1))
    chosen = order[place * settings.train_batch_size : (place + 1) * settings.train_batch_size]
    numbers = torch.rand(len(chosen), 3, generator=seeded(settings.seed, step, 2))
    pictures = augment(
        train.pictures[chosen], numbers, settings.random_shift, flips and settings.random_flip
    )
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    return pictures[share], train.labels[chosen][share], len(chosen)


def seeded(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*numbers))


def mix(*numbers: int) -> int:
    """One seed from several."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return seed


def augment(pictures: Tensor, numbers: Tensor, shift: float, flip: bool) -> Tensor:
    """Shift pictures `(B, 3, s, s)` by up to `shift` of their side, edges repeated, and mirror
    half of them.

    Args:
        numbers: `(B, 3)` in [0, 1): shift down, shift right, whether to mirror.
    """
    side = pictures.shape[-1]
    reach = round(shift * side)
    offsets = (numbers[:, :2] * (2 * reach + 1)).long() - reach
    line = torch.arange(side)
    rows = (line + offsets[:, :1]).clamp(0, side - 1)
    columns = (line + offsets[:, 1:]).clamp(0, side - 1)
    if flip:
        columns = torch.where(numbers[:, 2:] < 0.5, columns.flip(1), columns)
    every = torch.arange(len(pictures))[:, None, None, None]
    channels = torch.arange(3)[None, :, None, None]
    return pictures[every, channels, rows[:, None, :, None], columns[:, None, None, :]]


def pack(
    tuned: Tuned, optimizer: torch.optim.Optimizer, accelerator: Accelerator, step: int, s: float
) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": s,
        "tensors": tuned.copy(),
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
    }


@torch.inference_mode()
def evaluate_classifier(
    classifier: Classifier, split: Split, device: torch.device | str = "cpu", batch: int = 100
) -> Evaluation:
    """Accuracy, loss and confusion over a split, in float32."""
    classifier.model.eval()
    rows = []
    for pictures in split.pictures.split(batch):
        x = classifier.normalize(pictures.to(device)).contiguous(memory_format=torch.channels_last)
        rows.append(classify(classifier.model, x).float().cpu())
    logits = torch.cat(rows)
    predicted, count = logits.argmax(1), logits.shape[1]
    pairs = torch.bincount(split.labels * count + predicted, minlength=count * count)
    return Evaluation(
        accuracy=float((predicted == split.labels).float().mean()),
        loss=float(nn.functional.cross_entropy(logits, split.labels)),
        confusion=pairs.view(count, count).tolist(),
    )
