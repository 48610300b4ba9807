"""What a prompt says to the denoiser, in training as in painting: weights, windows, embeddings.

Syntax, as in the web UIs people come from: `(word:1.3)` weighs 1.3, `(word)` 1.1, `[word]` 1/1.1;
`\\(` is a plain bracket. A prompt of more tokens than the encoder takes is encoded in windows, and
the embeddings of the windows stand one after another; no token is dropped.

A weight `w` moves a token's embedding along the line from the empty prompt's, at the same place:
`z' = z_empty + w (z - z_empty)`. Weight 1 changes no bit.

`embed_prompt` is the one reader. SDXL's two encoders read the same tokens, each before its last
layer; its pooled embedding is the second encoder's of the first window, whatever weighs.

At the end: prompts written for a trigger, and what a prompt says without words nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdatoms.adapters.words import list_encoders
from sdatoms.errors import AtomError, check_text

__all__ = [
    "MAX_WINDOWS",
    "UNRELATED_PROMPTS",
    "Embedding",
    "TokenCount",
    "clean_prompt",
    "count_tokens",
    "embed_prompt",
    "encode_prompts",
    "parse_prompt",
    "write_prompts",
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
    pipe: Any, prompts: Sequence[str], negative_prompt: str | None = None
) -> dict[str, Any]:
    """Arguments for the pipeline that stand for these prompts.

    Prompts without weights that fit one window are handed on as they are, so that their pictures
    are the pipeline's own; others come as embeddings `(B, windows·length, d)`.

    Raises:
        AtomError: a weight is out of range, or the prompt fills more than eight windows.
    """
    texts = [*prompts, negative_prompt or ""]
    counts = [count_tokens(pipe, text) for text in texts]
    windows = max(count.windows for count in counts)
    if windows == 1 and all(parse_prompt(text) in ([], [(text, 1.0)]) for text in texts):
        negative = [negative_prompt] * len(prompts) if negative_prompt else None
        return {"prompt": list(prompts), "negative_prompt": negative}
    if windows > MAX_WINDOWS:
        longest = max(count.tokens for count in counts)
        raise AtomError(
            f"the prompt has {longest} tokens; at most {MAX_WINDOWS * counts[0].window} are taken"
        )
    with torch.no_grad():
        *rows, against = [embed_prompt(pipe, text, windows) for text in texts]
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


def embed_prompt(pipe: Any, text: str, windows: int | None = None) -> Embedding:
    """A prompt as the pipeline's denoiser reads it; gradients flow where they are wanted.

    Args:
        windows: how many the embedding has, empty ones at its end; as many as the prompt needs when
            not given, at most eight. What does not fit is cut off.

    Raises:
        AtomError: a weight is out of range.
    """
    encoders = list_encoders(pipe)
    count = windows or min(count_tokens(pipe, text).windows, MAX_WINDOWS)
    contexts, pooled = [], None
    for encoder, tokenizer in encoders.values():
        window = find_window(encoder, tokenizer)
        ids, weights = tokenize(pipe, tokenizer, text)
        parts = [slice(k * window, (k + 1) * window) for k in range(count)]
        rows = [ids[part] for part in parts]
        plain = all(weight == 1 for weight in weights[: count * window])
        embeds, pool = run_encoder(encoder, tokenizer, rows, deep=len(encoders) > 1)
        if not plain:
            empty, _ = run_encoder(encoder, tokenizer, [[]], deep=len(encoders) > 1)
            factors = torch.ones(embeds.shape[:2], dtype=embeds.dtype, device=embeds.device)
            for k, part in enumerate(parts):
                own = torch.tensor(weights[part], dtype=embeds.dtype)
                factors[k, 1 : 1 + len(own)] = own.to(embeds.device)
            moved = empty + factors[..., None] * (embeds - empty)
            embeds = torch.where((factors == 1)[..., None], embeds, moved)
        contexts.append(embeds.flatten(0, 1)[None])
        pooled = None if pool is None else pool[:1]
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


def run_encoder(
    encoder: Any, tokenizer: Any, rows: Sequence[Sequence[int]], *, deep: bool
) -> tuple[Tensor, Tensor | None]:
    """Embeddings `(n, length, d)` of windows, padded as the pipeline pads, and pooled ones.

    Args:
        deep: read the layer before the last, as SDXL does.
    """
    length = find_window(encoder, tokenizer) + 2
    marked = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows]
    padding = [length - len(row) for row in marked]
    ids = [r + [tokenizer.pad_token_id] * n for r, n in zip(marked, padding, strict=True)]
    device = find_device(encoder)
    tokens = torch.tensor(ids, device=device)
    mask = [[1] * len(r) + [0] * n for r, n in zip(marked, padding, strict=True)]
    masked = getattr(encoder.config, "use_attention_mask", False)
    attention = torch.tensor(mask, device=device) if masked else None
    output = encoder(tokens, attention_mask=attention, output_hidden_states=deep)
    return (output.hidden_states[-2], output[0]) if deep else (output[0], None)


STYLE_CONCEPTS = ("cat face", "red apple", "frog face", "lemon", "ghost")
SUBJECT_ADDITIONS = ("winking face", "angry face", "party hat", "red heart", "sleeping face")
UNRELATED_PROMPTS = (
    "birthday cake",
    "earth globe americas",
    "alarm clock",
    "banana",
    "airplane",
    "open book",
    "wrapped present",
    "mushroom",
    "butterfly",
    "violin",
)
RARE_WORD = r"(?:\b(?:sks|zwx|ohwx|qvx|vbn|xjy|tkz|wqp)\b|<[^<>\s]+>)"
"""Words that mean nothing, or that were learned: no evaluator can read them."""


def write_prompts(trigger: str) -> list[str]:
    """Five prompts that no training saw: `an emoji in sks style` → `cat face in sks style`, …;
    `a sks cat` → `a sks cat, winking face`, …"""
    style = re.search(r"\bin \S+ style\b|\bin the style of .+", trigger)
    if style:
        return [f"{concept} {style.group()}" for concept in STYLE_CONCEPTS]
    return [f"{trigger}, {addition}" for addition in SUBJECT_ADDITIONS]


def clean_prompt(prompt: str) -> str:
    """The prompt as an evaluator reads it: without rare words, and without their `in … style`."""
    word = RARE_WORD
    text = re.sub(rf"\bin (?:{word} style\b|the style of {word})|{word}", "", prompt)
    return re.sub(r"\s+", " ", text).strip(" ,")
