"""What a prompt says to the denoiser, in training as in painting: weights, windows, embeddings.

Brackets mean what they mean in A1111 and the programs around it: `(word:1.3)` weighs 1.3, `(word)`
1.1, `[word]` 1/1.1, nested ones multiply, and `\\(` is a plain bracket. `parse_prompt` reads them;
compel, whose own brackets and `++` mean other things, makes the embeddings of what was read.

A prompt of more tokens than the encoder takes is encoded in windows, and the embeddings of the
windows stand one after another; no token is dropped. A weight `w` moves a token's embedding along
the line from the empty prompt's, at the same place: `z' = z_empty + w (z - z_empty)`. Weight 1
changes no bit.

`embed_prompt` is the one reader, in training as in painting. SDXL's two encoders read the same
tokens, each before its last layer; its pooled embedding is the second encoder's of the first
window, whatever weighs (compel's own would read the brackets as words).

`clip_skip` counts layers from the end as A1111 does: 1 reads the last layer, 2 the one before,
diffusers' `clip_skip=1`; the negative prompt is read the same way. SDXL reads the one before the
last anyway, so that 1 and 2 are the same there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from compel import EmbeddingsProvider
from torch import Tensor

from sdatoms.adapters.words import list_encoders
from sdatoms.errors import AtomError, check_text

__all__ = [
    "MAX_WINDOWS",
    "Embedding",
    "TokenCount",
    "count_tokens",
    "embed_prompt",
    "encode_prompts",
    "parse_prompt",
]

EMPHASIS = 1.1
MAX_WEIGHT = 10.0
MAX_WINDOWS = 8
"""How many times the text encoder is asked for one prompt."""
TOKEN = re.compile(
    r"\\[\\()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.S
)


class TokenCount(NamedTuple):
    """How a prompt fills the text encoder."""

    tokens: int
    window: int
    """Tokens one window takes, without its start and end marks."""
    windows: int


class Embedding(NamedTuple):
    """One prompt as the denoiser reads it."""

    context: Tensor
    """`(1, windows·length, width)`."""
    pooled: Tensor | None
    """`(1, width)` for SDXL, else None."""


def parse_prompt(text: str) -> list[tuple[str, float]]:
    """Split a prompt into pieces of one weight each; brackets left open count to the end.

    Raises:
        AtomError: a weight is outside -10 to 10.
    """
    pieces: list[tuple[str, float]] = []
    round_open: list[int] = []
    square_open: list[int] = []

    def scale(start: int, weight: float) -> None:
        for k in range(start, len(pieces)):
            pieces[k] = (pieces[k][0], pieces[k][1] * weight)

    for match in TOKEN.finditer(text):
        part, number = match[0], match[1]
        if part.startswith("\\") and len(part) == 2:
            pieces.append((part[1], 1.0))
        elif part == "(":
            round_open.append(len(pieces))
        elif part == "[":
            square_open.append(len(pieces))
        elif number is not None and round_open:
            scale(round_open.pop(), float(number))
        elif part == ")" and round_open:
            scale(round_open.pop(), EMPHASIS)
        elif part == "]" and square_open:
            scale(square_open.pop(), 1 / EMPHASIS)
        else:
            pieces.append((part, 1.0))
    for start in round_open:
        scale(start, EMPHASIS)
    for start in square_open:
        scale(start, 1 / EMPHASIS)
    joined: list[tuple[str, float]] = []
    for part, weight in pieces:
        if abs(weight) > MAX_WEIGHT:
            raise AtomError(f"a weight in the prompt is {weight:g}; weights go from -10 to 10")
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + part, weight)
        else:
            joined.append((part, weight))
    return joined


def count_tokens(pipe: Any, text: str) -> TokenCount:
    """Tokens of a prompt, and how many windows of the pipeline's text encoders hold them.

    Raises:
        AtomError: a weight is out of range.
    """
    pairs = list_encoders(pipe).values()
    window = min(find_window(*pair) for pair in pairs)
    tokens = max(len(tokenize(pipe, tokenizer, text)[0]) for _, tokenizer in pairs)
    return TokenCount(tokens, window, max(1, -(-tokens // window)))


def encode_prompts(
    pipe: Any, prompts: Sequence[str], negative_prompt: str | None = None, clip_skip: int = 1
) -> dict[str, Any]:
    """Arguments for the pipeline that stand for these prompts.

    Prompts without weights that fit one window are handed on as they are, so that their pictures
    are the pipeline's own; others come as embeddings `(B, windows·length, d)`.

    Args:
        clip_skip: the layer of the text encoders that is read, from the end.

    Raises:
        AtomError: a weight is out of range, the prompt fills more than eight windows, or the text
            encoders have no such layer.
    """
    check_clip_skip(pipe, clip_skip)
    texts = [*prompts, negative_prompt or ""]
    counts = [count_tokens(pipe, text) for text in texts]
    windows = max(count.windows for count in counts)
    plain = all(parse_prompt(text) in ([], [(text, 1.0)]) for text in texts)
    if windows == 1 and clip_skip == 1 and plain:
        negative = [negative_prompt] * len(prompts) if negative_prompt else None
        return {"prompt": list(prompts), "negative_prompt": negative}
    if windows > MAX_WINDOWS:
        longest = max(count.tokens for count in counts)
        raise AtomError(
            f"the prompt has {longest} tokens; at most {MAX_WINDOWS * counts[0].window} are taken"
        )
    with torch.no_grad():
        *rows, against = [embed_prompt(pipe, text, windows, clip_skip) for text in texts]
    if not negative_prompt and pipe.config.get("force_zeros_for_empty_prompt"):
        pooled = None if against.pooled is None else torch.zeros_like(against.pooled)
        against = Embedding(torch.zeros_like(against.context), pooled)
    given = {
        "prompt_embeds": torch.cat([row.context for row in rows]),
        "negative_prompt_embeds": torch.cat([against.context] * len(rows)),
    }
    pooled = [row.pooled for row in rows if row.pooled is not None]
    if pooled and against.pooled is not None:
        given["pooled_prompt_embeds"] = torch.cat(pooled)
        given["negative_pooled_prompt_embeds"] = torch.cat([against.pooled] * len(rows))
    return given


def check_clip_skip(pipe: Any, clip_skip: int) -> None:
    """See that a pipeline's text encoders have a layer.

    Raises:
        AtomError: they do not.
    """
    layers = [encoder.config.num_hidden_layers for encoder, _ in list_encoders(pipe).values()]
    if not 1 <= clip_skip <= min(layers):
        raise AtomError(
            f"clip_skip is {clip_skip}; this base's text encoder has the layers 1, its last, to "
            f"{min(layers)}"
        )


def embed_prompt(pipe: Any, text: str, windows: int | None = None, clip_skip: int = 1) -> Embedding:
    """A prompt as the pipeline's denoiser reads it; gradients flow where they are wanted.

    Args:
        windows: how many the embedding has, empty ones at its end; as many as the prompt needs when
            not given, at most eight. What does not fit is cut off.
        clip_skip: the layer that is read, from the end.

    Raises:
        AtomError: a weight is out of range.
    """
    encoders = list_encoders(pipe)
    count = windows or min(count_tokens(pipe, text).windows, MAX_WINDOWS)
    contexts, pooled = [], None
    for encoder, tokenizer in encoders.values():
        reader = LayerReader(encoder, tokenizer, clip_skip, deep=len(encoders) > 1)
        ids, weights = tokenize(pipe, tokenizer, text)
        contexts.append(reader.embed(ids, weights, count))
        pooled = reader.pooled
    return Embedding(torch.cat(contexts, -1), pooled)


def find_window(encoder: Any, tokenizer: Any) -> int:
    """Tokens of one prompt that the text encoder sees, without start and end marks."""
    return min(tokenizer.model_max_length, encoder.config.max_position_embeddings) - 2


def tokenize(pipe: Any, tokenizer: Any, text: str) -> tuple[list[int], list[float]]:
    """Token ids without marks, and the weight of each.

    New words of several vectors are replaced by their tokens, as the pipeline does.

    Raises:
        AtomError: it holds half a character.
    """
    check_text(text, "the prompt")
    expand = getattr(pipe, "maybe_convert_prompt", lambda prompt, _: prompt)
    ids: list[int] = []
    weights: list[float] = []
    for part, weight in parse_prompt(text):
        words = expand(part, tokenizer)
        found = tokenizer(words, add_special_tokens=False, verbose=False).input_ids
        ids += found
        weights += [weight] * len(found)
    return ids, weights


def find_device(encoder: Any) -> torch.device:
    """Where the encoder computes, also while its weights are offloaded."""
    hook = getattr(encoder, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return encoder.device if device is None else torch.device(device)


class LayerReader(EmbeddingsProvider):
    """compel's windows and weights over one text encoder, read at the layer diffusers reads.

    compel knows the last layer and the one before; the marks, the padding and its mask are the
    pipeline's own.

    Args:
        clip_skip: the layer that is read, from the end.
        deep: read the layer before the last, or a deeper one, as it is, and pool, as SDXL does.
    """

    def __init__(self, encoder: Any, tokenizer: Any, clip_skip: int, *, deep: bool) -> None:
        device: Any = find_device(encoder)
        self.window = find_window(encoder, tokenizer)
        super().__init__(tokenizer, encoder, device=device, model_max_length=self.window + 2)
        self.deep, self.layer = deep, max(clip_skip, 2) if deep else clip_skip
        self.pooled: Tensor | None = None
        """Of the first window, where the encoder has such a row."""

    def embed(self, ids: Sequence[int], weights: Sequence[float], windows: int) -> Tensor:
        """Embeddings `(1, windows·length, d)` of that many windows."""
        tokenizer, tokens, factors = self.tokenizer, [], []
        for k in range(windows):
            part = slice(k * self.window, (k + 1) * self.window)
            own, padding = ids[part], self.window - len(ids[part])
            tokens += [tokenizer.bos_token_id, *own, tokenizer.eos_token_id]
            tokens += [tokenizer.pad_token_id] * padding
            factors += [1.0, *weights[part], *[1.0] * (1 + padding)]
        dtype = self.text_encoder.dtype
        return self.build_weighted_embedding_tensor(
            torch.tensor(tokens, device=self.device),
            torch.tensor(factors, dtype=dtype, device=self.device),
        )

    def _encode_token_ids_to_embeddings(
        self, token_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        encoder: Any = self.text_encoder
        if getattr(encoder.config, "use_attention_mask", False):
            end: Any = self.tokenizer.eos_token_id
            ends = token_ids.eq(end).long()
            attention_mask = (ends.cumsum(-1) - ends).eq(0).long()
        output = encoder(
            token_ids, attention_mask=attention_mask, output_hidden_states=self.layer > 1
        )
        if self.deep:
            self.pooled = output[0] if self.pooled is None else self.pooled
            return output.hidden_states[-self.layer]
        if self.layer == 1:
            return output[0]
        normalize = getattr(encoder, "text_model", encoder).final_layer_norm
        return normalize(output.hidden_states[-self.layer])
