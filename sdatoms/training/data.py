"""What one run learns from: its pictures and prompts, encoded before the training starts.

Encoders are freed when nothing needs them afterwards, or kept off the accelerator between samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdatoms.training.batches import Batch
from sdatoms.training.conditions import Condition, PromptTable, TextStack
from sdatoms.training.encodings import Encoded

__all__ = [
    "TrainingData",
]


class TrainingData:
    """Encoded instances, class pictures and prompts, and the encoders they came from.

    Args:
        pipe: the base.
        instances: encoded instance pictures.
        classes: encoded class pictures, where there are any.
        held: encoded pictures that are measured on and not trained on.
        prompts: further prompts than the pictures' own, such as the class's.
        trains_text: whether prompts must be encoded anew in every step.
        paints: whether samples are painted while training.
        cache: folder that keeps encoded prompts.
        parks: whether encoders leave the accelerator while nothing is painted.
    """

    def __init__(
        self,
        pipe: Any,
        instances: Sequence[Encoded],
        classes: Sequence[Encoded] | None = None,
        *,
        held: Sequence[Encoded] = (),
        prompts: Sequence[str] = (),
        trains_text: bool = False,
        paints: bool = False,
        cache: Path | None = None,
        parks: bool = True,
    ) -> None:
        self.pipe, self.device = pipe, pipe.device
        self.parks = parks and self.device.type != "cpu"
        self.instances, self.classes, self.held = instances, classes, held
        self.trains_text, self.paints = trains_text, paints
        self.text = TextStack(pipe)
        self.prompts = PromptTable(self.text, cache)
        self.prompts.add(prompts)
        self.varied = False
        """Whether captions are more than can be encoded before, so that encoders stay at hand."""
        rows = () if trains_text else (*instances, *(classes or ()))
        for row in {id(row): row for row in rows}.values():
            texts = row.list_prompts()
            if texts is None:
                self.varied = True
            else:
                self.prompts.add(texts)
        self.prompts.add(row.prompt for row in (() if trains_text else held))
        self.prompts.add(row.class_prompt for row in instances if row.class_prompt)
        self.park()

    def park(self) -> None:
        """Free the encoders, or keep them off the accelerator while nothing is painted."""
        at_hand = self.trains_text or self.varied
        parked = ["vae"] + ([] if at_hand else list(self.text.encoders))
        for name in parked:
            if not self.paints:
                setattr(self.pipe, name, None)
            elif self.parks:
                getattr(self.pipe, name).to("cpu")
        if not self.paints and not at_hand:
            self.text.encoders.clear()

    def fetch(self) -> None:
        """Bring parked encoders back for painting."""
        if self.parks:
            self.pipe.vae.to(self.device)
            for encoder in self.text.encoders.values():
                encoder.to(self.device)

    def condition(self, batch: Batch, base: bool = False) -> Condition:
        """The batch's prompts as the UNet reads them; `base` reads them without atoms."""
        if self.trains_text and not base:
            return self.text.encode(batch.prompts, grad=True)
        return self.prompts.encode(batch.prompts).to(self.device)
