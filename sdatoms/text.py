"""Prompts as the UNet reads them: one text encoder (SD 1.x, 2.x) or two (SDXL).

The same numbers as the pipeline's own `encode_prompt`, with gradients where they are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Condition", "TextStack"]


class Condition(NamedTuple):
    """What the UNet is told of the prompts."""

    context: Tensor
    """`(B, tokens, width)`."""
    pooled: Tensor | None
    """`(B, width)` for SDXL, else None."""

    def pick(self, rows: Sequence[int] | Tensor) -> Condition:
        index = torch.as_tensor(rows, device=self.context.device)
        pooled = None if self.pooled is None else self.pooled[index]
        return Condition(self.context[index], pooled)


class TextStack:
    """A pipeline's tokenizers and text encoders."""

    def __init__(self, pipe: Any) -> None:
        self.expand: Any = getattr(pipe, "maybe_convert_prompt", lambda prompt, _: prompt)
        """Replaces new words of several vectors by their tokens, as the pipeline does."""
        names = [n for n in ("text_encoder", "text_encoder_2") if getattr(pipe, n, None)]
        self.encoders: dict[str, Any] = {name: getattr(pipe, name) for name in names}
        self.tokenizers = [
            getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in names
        ]

    def encode(self, prompts: Sequence[str], *, grad: bool = False) -> Condition:
        """Encode prompts, each distinct one once."""
        distinct = list(dict.fromkeys(prompts))
        with nullcontext() if grad else torch.no_grad():
            condition = self.run(distinct)
        return condition.pick([distinct.index(prompt) for prompt in prompts])

    def run(self, prompts: list[str]) -> Condition:
        contexts, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.encoders.values(), strict=True):
            ids = tokenizer(
                [self.expand(prompt, tokenizer) for prompt in prompts],
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids.to(encoder.device)
            if len(self.encoders) == 1:
                return Condition(encoder(ids)[0], None)
            # SDXL reads the layer before the last, and the second encoder's projection.
            output = encoder(ids, output_hidden_states=True)
            pooled = output[0]
            contexts.append(output.hidden_states[-2])
        return Condition(torch.cat(contexts, -1), pooled)
