r"""Shared atoms that read what the captions say and other words do not.

The layers that read the prompt see a text encoder's output `x (p,)` at every token, and a shared
atom `d (p,)` is what they read in it, `d·x`. Drawn and trained atoms come to read whatever the
pictures have in common, which other prompts say too: a colour learnt for a cupcake then comes out
in a clock. Here the atoms are set before training, to the r directions in which the captions are
loudest beside other words,

    maximize  dᵀ S d / dᵀ (C + ε I) d,   S = mean of x xᵀ over the captions, C over other words,

a generalized eigenproblem, each of unit norm; and only coefficients are trained. `ε` is `RIDGE`
times the mean eigenvalue of C, so that no direction is chosen for being silent. Other words are
drawn from the tokenizer's vocabulary: no further text is needed. Some of them stand in the captions
too: what a subject's name becomes depends on its place and on what was said before it, and atoms
that had seen "a sks cup" alone would be deaf to "two sks cups".

The criterion is Fisher's quotient without the means, as in "common spatial patterns" (Koles, Lazar,
Zhou, Brain Topography 1990). Zhang et al., "LoRA-FA", https://arxiv.org/abs/2308.03303, keep
LoRA's first factor as it was drawn; Paischer et al., "EVA", https://arxiv.org/abs/2410.07170, start
it from the main directions of the inputs, which other prompts share.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.atoms.block_deltas import RowDelta
from sdatoms.diffusion.prompts import embed_prompt
from sdatoms.diffusion.triggers import has_trigger
from sdatoms.errors import AtomError
from sdatoms.layers.inject import Injection
from sdatoms.training.caption_rules import draw_caption
from sdatoms.training.config import ATOM_LAYERS
from sdatoms.training.folder import Source

__all__ = [
    "draw_captions",
    "draw_prompt",
    "fix_reading_atoms",
    "list_other_words",
    "list_word_atoms",
    "measure_other_words",
    "solve_reading",
    "vary_caption",
]

RIDGE = 0.25
"""ε, in units of the mean square of what other words say."""
PROMPTS = 160
"""How many prompts of other words are read."""
MOST_WORDS = 8
"""Of such a prompt."""
MOST_INSERTED = 3
"""Other words in a caption."""
RENUMBERED = 0.5
"""Share of a caption's words that are put into the plural, or out of it."""
LONG = 3
"""Letters of a word that says something, at least."""
DRAWS = 16
"""How often each picture's caption is drawn."""


def draw_captions(sources: Iterable[Source]) -> list[str]:
    """What pictures are trained under, as their rules put it together; `DRAWS` times each."""
    drawn = {
        draw_caption(source.captions or (source.prompt,), source.rules, random.Random(k))
        for source in sources
        for k in range(DRAWS)
    }
    return sorted(drawn - {""})


def fix_reading_atoms(pipe: Any, injection: Injection, captions: Iterable[str]) -> None:
    """Set the shared atoms of layers that read the prompt, and train them no more.

    Args:
        injection: of the denoiser, with shared atoms in those layers alone.
        captions: what the pictures are trained under.

    Raises:
        AtomError: there are no captions, or the tokenizer's vocabulary holds hardly any words.
    """
    if not (captions := sorted(set(captions))):
        raise AtomError("--shared_atoms captions needs captions; no picture has one")
    words, draw = list_other_words(pipe, captions), random.Random(0)
    said = measure_tokens(pipe, [vary_caption(draw, captions, words) for _ in range(PROMPTS)])
    others = measure_other_words(pipe, words, draw)
    injection.fix_shared_atoms(solve_reading(said, others, injection.count_shared_atoms()))


def list_word_atoms(injection: Injection) -> list[nn.Parameter]:
    """The shared atoms of the layers that read the prompt, which no other layers share.

    Raises:
        AtomError: no layer that reads the prompt has shared atoms, or shares them with none else.
    """
    sharers: dict[str, list[str]] = {}
    for path, weight in injection.weights.items():
        for delta in weight.views.values():
            if isinstance(delta, RowDelta):
                sharers.setdefault(delta.owner, []).append(path)
    read = lambda path: any(fnmatchcase(path, pattern) for pattern in ATOM_LAYERS["text"] or ())
    found = [d for d in injection.find_shared() if all(map(read, sharers[d.owner]))]
    if not any(map(read, chain.from_iterable(sharers.values()))):
        raise AtomError("--word_decay: no layer that reads words has shared atoms here")
    if not found:
        raise AtomError(
            "--word_decay: the layers that read words share their atoms with others here; "
            "--atom_layers text gives them their own"
        )
    return [delta.shared_atoms for delta in found]


def measure_other_words(pipe: Any, words: Sequence[str], draw: random.Random) -> Tensor:
    """C over prompts of other words: `(p, p)` in float64 on the CPU."""
    return measure_tokens(pipe, [draw_prompt(draw, words) for _ in range(PROMPTS)])


def list_other_words(pipe: Any, captions: Iterable[str]) -> list[str]:
    """The whole words of the tokenizer's vocabulary that stand in no caption.

    Raises:
        AtomError: there are fewer than eight.
    """
    taken = {word for caption in captions for word in re.findall(r"[^\W\d_]+", caption.lower())}
    ends = "</w>"
    found = (t.removesuffix(ends) for t in pipe.tokenizer.get_vocab() if t.endswith(ends))
    letters = sorted({word for word in found if word.isalpha() and word.islower()} - taken)
    words = [word for word in letters if len(word) >= LONG]
    words = words if len(words) >= MOST_WORDS else letters
    if len(words) < MOST_WORDS:
        raise AtomError(
            f"shared atoms that compare captions with other words need {MOST_WORDS} of them, and "
            f"the tokenizer knows {len(words)}; --shared_atoms trained without --word_decay needs "
            "none"
        )
    return words


def draw_prompt(draw: random.Random, words: Sequence[str]) -> str:
    """One to eight words."""
    return " ".join(draw.sample(words, draw.randint(1, MOST_WORDS)))


def vary_caption(draw: random.Random, captions: Sequence[str], words: Sequence[str]) -> str:
    """A caption with up to three other words anywhere in it, and half of its longer words in the
    other number, so that its subject is read wherever it stands in a prompt, whatever else is
    said, and as one or many."""
    said = [
        change_number(word) if has_number(word) and draw.random() < RENUMBERED else word
        for word in draw.choice(captions).split()
    ]
    for word in draw.sample(words, draw.randint(0, MOST_INSERTED)):
        said.insert(draw.randint(0, len(said)), word)
    return " ".join(said)


def has_number(word: str) -> bool:
    return len(word) >= LONG and word.isalpha() and not has_trigger(word)


def change_number(word: str) -> str:
    """An English noun's other number, as far as an s makes it."""
    return word.removesuffix("s") if word.endswith("s") else f"{word}s"


@torch.no_grad()
def measure_tokens(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Mean of `x xᵀ` over the tokens of prompts, padding included, as the layers see it: `(p, p)`
    in float64 on the CPU. The start mark, which is the same everywhere, is left out."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for prompt in prompts:
        x = embed_prompt(pipe, prompt).context[0, 1:].to("cpu", torch.float64)
        total, count = total + x.mT @ x, count + len(x)
    return total / count


def solve_reading(said: Tensor, others: Tensor, count: int) -> Tensor:
    """The `count` directions, `(count, p)`, float32, of unit norm, the most telling first.

    Args:
        said, others: S and C, `(p, p)`.
    """
    width = len(others)
    values, vectors = torch.linalg.eigh(others)
    ridge = RIDGE * values.clamp(min=0).mean()
    whiten = vectors / (values.clamp(min=0) + ridge).sqrt() @ vectors.mT
    main = torch.linalg.eigh(whiten @ said.to(others) @ whiten)[1].flip(1)[:, : min(count, width)]
    atoms = (whiten @ main).mT
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    # Either sign reads the same; the larger entry is positive, so that machines agree.
    largest = atoms.gather(1, atoms.abs().argmax(1, keepdim=True))
    return (atoms * largest.sign()).float()
