"""Prompts as the UNet reads them while it trains, encoded once or, with gradients, in every step.

They are read by the function that painting reads them by. Where prompts of a batch fill different
numbers of windows, the shorter ones are padded and the padding is masked.
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
from torch.nn.functional import pad

from sdatoms.adapters.words import list_encoders
from sdatoms.diffusion.prompts import Embedding, embed_prompt
from sdatoms.fingerprint import hash_tensors
from sdatoms.storage import write_whole
from sdatoms.training.encodings import read_tensors

__all__ = [
    "Condition",
    "PromptTable",
    "TextStack",
    "stack_embeddings",
]

VERSION = 4
"""Rises when the same prompt would be encoded otherwise."""


class Condition(NamedTuple):
    """What the UNet is told of the prompts."""

    context: Tensor
    """`(B, tokens, width)`."""
    pooled: Tensor | None
    """`(B, width)` for SDXL, else None."""
    mask: Tensor | None = None
    """`(B, tokens)`, true where tokens count; None where all do."""

    def to(self, device: torch.device) -> Condition:
        """The same on a device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        mask = None if self.mask is None else self.mask.to(device)
        return Condition(self.context.to(device), pooled, mask)


def stack_embeddings(rows: Sequence[Embedding]) -> Condition:
    """Prompts of any number of windows as one batch."""
    lengths = [row.context.shape[1] for row in rows]
    most = max(lengths)
    context = torch.cat([pad(row.context, (0, 0, 0, most - row.context.shape[1])) for row in rows])
    pooled = [row.pooled for row in rows if row.pooled is not None]
    mask = None
    if min(lengths) < most:
        mask = torch.arange(most) < torch.tensor(lengths)[:, None]
        mask = mask.to(context.device)
    return Condition(context, torch.cat(pooled) if pooled else None, mask)


class TextStack:
    """A pipeline's tokenizers and text encoders."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        pairs = list_encoders(pipe)
        self.encoders: dict[str, Any] = {name: encoder for name, (encoder, _) in pairs.items()}
        self.tokenizers = [tokenizer for _, tokenizer in pairs.values()]

    def encode(self, prompts: Sequence[str], *, grad: bool = False) -> Condition:
        """Encode prompts, each distinct one once."""
        with nullcontext() if grad else torch.no_grad():
            found = {text: embed_prompt(self.pipe, text) for text in dict.fromkeys(prompts)}
        return stack_embeddings([found[text] for text in prompts])


class PromptTable:
    """Prompts encoded once, in memory and in the cache."""

    def __init__(self, text: TextStack, cache: Path | None = None) -> None:
        self.text = text
        self.cache = cache
        self.found: dict[str, Embedding] = {}
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
                made = self.read(prompt)
                tensors = {"context": made.context.contiguous()}
                if made.pooled is not None:
                    tensors["pooled"] = made.pooled.contiguous()
                if path:
                    write_whole(path, save(tensors))
            self.found[prompt] = Embedding(tensors["context"], tensors.get("pooled"))

    def read(self, prompt: str) -> Embedding:
        """A prompt encoded now, on the CPU in float32."""
        condition = self.text.encode([prompt])
        pooled = None if condition.pooled is None else condition.pooled.float().cpu()
        return Embedding(condition.context.float().cpu(), pooled)

    def place(self, prompt: str) -> Path | None:
        if not self.cache:
            return None
        ids = [tokenizer(prompt).input_ids for tokenizer in self.text.tokenizers]
        key = json.dumps([VERSION, self.weights, ids, prompt])
        return self.cache / "text" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def encode(self, prompts: Iterable[str]) -> Condition:
        """The rows of `prompts`, on the CPU; what was not added is encoded and not kept."""
        return stack_embeddings([self.found.get(prompt) or self.read(prompt) for prompt in prompts])
