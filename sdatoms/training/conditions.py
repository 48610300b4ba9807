"""Prompts as the UNet reads them: one text encoder (SD 1.x, 2.x) or two (SDXL).

The same numbers as the pipeline's own `encode_prompt`, with gradients where they are wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from sdatoms.fingerprint import hash_tensors
from sdatoms.storage import write_whole
from sdatoms.training.encodings import VERSION, read_tensors

__all__ = [
    "Condition",
    "PromptTable",
    "TextStack",
]


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


class PromptTable:
    """Prompts encoded once, in memory and in the cache."""

    def __init__(self, text: TextStack, cache: Path | None = None) -> None:
        self.text = text
        self.cache = cache
        self.found: dict[str, Condition] = {}
        self.weights = (
            "".join(hash_tensors(encoder.state_dict()) for encoder in text.encoders.values())
            if cache
            else ""
        )

    def add(self, prompts: Iterable[str]) -> None:
        """Encode prompts that are not there yet."""
        for prompt in dict.fromkeys(prompts):
            if prompt in self.found:
                continue
            path = self.place(prompt)
            tensors = read_tensors(path) if path else None
            if tensors is None:
                condition = self.text.encode([prompt])
                tensors = {"context": condition.context.float().cpu().contiguous()}
                if condition.pooled is not None:
                    tensors["pooled"] = condition.pooled.float().cpu().contiguous()
                if path:
                    write_whole(path, save(tensors))
            self.found[prompt] = Condition(tensors["context"], tensors.get("pooled"))

    def place(self, prompt: str) -> Path | None:
        if not self.cache:
            return None
        ids = [tokenizer(prompt).input_ids for tokenizer in self.text.tokenizers]
        key = json.dumps([VERSION, self.weights, ids, prompt])
        return self.cache / "text" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def encode(self, prompts: Iterable[str]) -> Condition:
        """The rows of `prompts`, on the CPU."""
        rows = [self.found[prompt] for prompt in prompts]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return Condition(
            torch.cat([row.context for row in rows]), torch.cat(pooled) if pooled else None
        )
