"""New words of a pipeline's text encoders, with embeddings of their own ("pivotal tokens").

A word of n vectors is n tokens, `word`, `word_1`, …, which diffusers' pipelines put by themselves
where the word stands in a prompt. In an atom file the embeddings are
`<component>.tokens.embeddings` `(n, width)`, and the header's `tokens` names the word.

Reference: Gal et al., "An image is worth one word", ICLR 2023, https://arxiv.org/abs/2208.01618;
"pivotal tuning" in cloneofsimo/lora and diffusers' advanced training scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.errors import AtomError

__all__ = [
    "TrainedTokens",
    "add_word",
    "check_word",
    "list_encoders",
    "list_words",
    "remove_word",
    "start_embeddings",
]


def list_encoders(pipe: Any) -> dict[str, tuple[Any, Any]]:
    """Component → text encoder and tokenizer."""
    names = [n for n in ("text_encoder", "text_encoder_2") if getattr(pipe, n, None) is not None]
    return {
        name: (getattr(pipe, name), getattr(pipe, name.replace("text_encoder", "tokenizer")))
        for name in names
    }


def read_words(encoder: Any) -> dict[str, str]:
    """Adapter name → the word it added to this encoder; a copy of the table kept with it."""
    return dict(encoder.__dict__.get("_sdatoms_words", {}))


def keep_words(encoder: Any, words: Mapping[str, str]) -> None:
    """The inverse of `read_words`."""
    encoder.__dict__["_sdatoms_words"] = dict(words)


def list_words(pipe: Any) -> dict[str, str]:
    """Adapter name → the word it added."""
    for encoder, _ in list_encoders(pipe).values():
        return read_words(encoder)
    return {}


def check_word(pipe: Any, word: str, embeddings: Mapping[str, Tensor]) -> None:
    """Refuse a word that cannot be added; changes nothing.

    Raises:
        AtomError: the pipeline takes no words, knows the word already, or has other encoders.
    """
    encoders = list_encoders(pipe)
    if not hasattr(pipe, "load_textual_inversion") or set(embeddings) - set(encoders):
        raise AtomError(
            f"the word {word!r} needs a pipeline with {', '.join(embeddings)}, not "
            f"{type(pipe).__name__}"
        )
    for component, rows in embeddings.items():
        encoder, tokenizer = encoders[component]
        width = encoder.get_input_embeddings().weight.shape[1]
        if rows.shape[1] != width:
            raise AtomError(
                f"the word {word!r} has embeddings of width {rows.shape[1]} where {component} has "
                f"{width}"
            )
        taken = set(tokenizer.get_vocab()) & set(name_tokens(word, len(rows)))
        if taken:
            raise AtomError(
                f"the word {word!r} is already known to the base's {component}; choose a new word, "
                "such as <dog>"
            )


def name_tokens(word: str, count: int) -> list[str]:
    return [word, *(f"{word}_{k}" for k in range(1, count))]


def add_word(pipe: Any, name: str, word: str, embeddings: Mapping[str, Tensor]) -> None:
    """Give the pipeline a word, for the adapter `name`; call `check_word` first.

    Args:
        embeddings: component → `(n, width)`.
    """
    for component, rows in embeddings.items():
        encoder, tokenizer = list_encoders(pipe)[component]
        known = read_words(encoder)
        with torch.random.fork_rng():  # growing an embedding draws numbers, which are overwritten
            pipe.load_textual_inversion(
                rows.detach().float().cpu(), token=word, text_encoder=encoder, tokenizer=tokenizer
            )
        keep_words(encoder, {**known, name: word})


def remove_word(pipe: Any, name: str) -> None:
    """Take an adapter's word out again; the embeddings are what they were, bit for bit."""
    for encoder, tokenizer in list_encoders(pipe).values():
        words = read_words(encoder)
        word = words.pop(name, None)
        if word is None:
            continue
        count = sum(
            token == word or token.rpartition("_")[0] == word
            for token in tokenizer.get_added_vocab()
        )
        pipe.unload_textual_inversion(
            name_tokens(word, count), text_encoder=encoder, tokenizer=tokenizer
        )
        keep_words(encoder, words)


class TrainedTokens(nn.Module):
    """The embeddings of one word in one text encoder, while they are trained.

    Args:
        word: already added to the tokenizer, with its first embeddings.
    """

    ids: Tensor
    """The word's tokens."""

    def __init__(self, encoder: Any, tokenizer: Any, word: str, count: int) -> None:
        super().__init__()
        self.table: nn.Embedding = encoder.get_input_embeddings()
        ids = tokenizer.convert_tokens_to_ids(name_tokens(word, count))
        self.register_buffer("ids", torch.tensor(ids, device=self.table.weight.device))
        start = self.table.weight.detach()[self.ids].float()
        self.embeddings = nn.Parameter(start.clone())
        self.table.weight.requires_grad_(False)
        self.table.register_forward_hook(self.replace)

    def replace(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The table's rows for all tokens but ours."""
        hits = inputs[0][..., None] == self.ids
        rows = self.embeddings[hits.int().argmax(-1)].to(output.dtype)
        return torch.where(hits.any(-1, keepdim=True), rows, output)

    @contextmanager
    def hold(self, rows: Tensor) -> Iterator[None]:
        """Use other embeddings for the time of a `with` block."""
        kept = self.embeddings.detach().clone()
        with torch.no_grad():
            self.embeddings.copy_(rows)
        try:
            yield
        finally:
            with torch.no_grad():
                self.embeddings.copy_(kept)


def start_embeddings(encoder: Any, tokenizer: Any, count: int, concept: str | None) -> Tensor:
    """First embeddings `(count, width)`: those of a concept's tokens in turn.

    Without a concept they are seeded normal numbers of the table's own spread.

    Raises:
        AtomError: the concept holds no token.
    """
    weight = encoder.get_input_embeddings().weight.detach().float().cpu()
    if concept:
        ids = tokenizer(concept, add_special_tokens=False).input_ids
        if not ids:
            raise AtomError(f"--initializer_concept {concept!r} holds no token")
        return torch.stack([weight[ids[k % len(ids)]] for k in range(count)])
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, weight.shape[1], generator=generator) * weight.std()
