"""Prompts longer than the text encoder's window, and words that weigh more or less than others.

Syntax, as in the web UIs people come from: `(word:1.3)` weighs 1.3, `(word)` 1.1, `[word]` 1/1.1;
`\\(` is a plain bracket. A prompt of more tokens than the encoder takes is encoded in windows, and
the embeddings of the windows stand one after another; no token is dropped.

A weight `w` moves a token's embedding along the line from the empty prompt's, at the same place:
`z' = z_empty + w (z - z_empty)`. Weight 1 changes no bit.

Prompts that are written for a trigger, and what a prompt says without the words nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdatoms.errors import AtomError

__all__ = [
    "UNRELATED_PROMPTS",
    "TokenCount",
    "clean_prompt",
    "count_tokens",
    "encode_prompts",
    "parse_prompt",
    "write_prompts",
]

EMPHASIS = 1.1
MAX_WEIGHT = 10.0
MAX_WINDOWS = 8
TOKEN = re.compile(
    r"\\[\\()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.S
)


class TokenCount(NamedTuple):
    """How a prompt fills the text encoder."""

    tokens: int
    window: int
    """Tokens one window takes, without its start and end marks."""
    windows: int


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
    """Tokens of a prompt, and how many windows of the pipeline's text encoder hold them."""
    window = find_window(pipe)
    tokens = len(tokenize(pipe, text)[0])
    return TokenCount(tokens, window, max(1, -(-tokens // window)))


def encode_prompts(
    pipe: Any, prompts: Sequence[str], negative_prompt: str | None = None
) -> dict[str, Any]:
    """Arguments for the pipeline that stand for these prompts.

    Prompts without weights that fit one window are handed on as they are, so that their pictures
    are the pipeline's own; others come as `prompt_embeds` and `negative_prompt_embeds`
    `(B, windows·length, d)`.

    Raises:
        AtomError: a weight is out of range, the prompt fills more than eight windows, or it needs
            windows or weights and the pipeline has two text encoders.
    """
    texts = [*prompts, negative_prompt or ""]
    counts = [count_tokens(pipe, text) for text in texts]
    windows = max(count.windows for count in counts)
    if windows == 1 and all(parse_prompt(text) in ([], [(text, 1.0)]) for text in texts):
        negative = [negative_prompt] * len(prompts) if negative_prompt else None
        return {"prompt": list(prompts), "negative_prompt": negative}
    if getattr(pipe, "text_encoder_2", None) is not None:
        longest = max(count.tokens for count in counts)
        raise AtomError(
            f"weights, and prompts of {longest} tokens, need a base with one text encoder; this "
            f"one has two and takes plain prompts of up to {counts[0].window} tokens"
        )
    if windows > MAX_WINDOWS:
        longest = max(count.tokens for count in counts)
        raise AtomError(
            f"the prompt has {longest} tokens; at most {MAX_WINDOWS * counts[0].window} are taken"
        )
    rows = [encode_text(pipe, text, windows) for text in texts]
    return {
        "prompt_embeds": torch.cat(rows[:-1]),
        "negative_prompt_embeds": torch.cat([rows[-1]] * len(prompts)),
    }


def find_window(pipe: Any) -> int:
    """Tokens of one prompt that the text encoder sees, without start and end marks."""
    length = min(pipe.tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings)
    return length - 2


def tokenize(pipe: Any, text: str) -> tuple[list[int], list[float]]:
    """Token ids without marks, and the weight of each."""
    ids: list[int] = []
    weights: list[float] = []
    for part, weight in parse_prompt(text):
        found = pipe.tokenizer(part, add_special_tokens=False, verbose=False).input_ids
        ids += found
        weights += [weight] * len(found)
    return ids, weights


@torch.no_grad()
def encode_text(pipe: Any, text: str, windows: int) -> Tensor:
    """Embeddings `(1, windows·length, d)` of one prompt, with empty windows at its end."""
    ids, weights = tokenize(pipe, text)
    window = find_window(pipe)
    empty = run_encoder(pipe, [])
    parts = []
    for k in range(windows):
        part = slice(k * window, (k + 1) * window)
        embeds = run_encoder(pipe, ids[part]) if ids[part] else empty
        factors = torch.ones(embeds.shape[1], dtype=embeds.dtype, device=embeds.device)
        factors[1 : 1 + len(weights[part])] = torch.tensor(weights[part], dtype=embeds.dtype)
        moved = empty + factors[:, None] * (embeds - empty)
        parts.append(torch.where((factors == 1)[:, None], embeds, moved))
    return torch.cat(parts, dim=1)


def find_device(encoder: Any) -> torch.device:
    """Where the encoder computes, also while its weights are offloaded."""
    hook = getattr(encoder, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return encoder.device if device is None else torch.device(device)


def run_encoder(pipe: Any, ids: list[int]) -> Tensor:
    """Embeddings `(1, length, d)` of one window, padded as the pipeline pads."""
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    mask = [1] * len(row)
    padding = find_window(pipe) + 2 - len(row)
    tokens = torch.tensor([row + [tokenizer.pad_token_id] * padding], device=find_device(encoder))
    attention = torch.tensor([mask + [0] * padding], device=find_device(encoder))
    masked = getattr(encoder.config, "use_attention_mask", False)
    return encoder(tokens, attention_mask=attention if masked else None)[0]


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
