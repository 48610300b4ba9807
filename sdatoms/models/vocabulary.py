"""CLIP's tokenizer, made from its list of merges.

`configs/clip_merges.txt.gz` lists merges of byte pairs, the most frequent first. The vocabulary
follows from it: 256 bytes, the same at a word's end, one token a merge, and two marks. The list is
the part that CLIP reads of `bpe_simple_vocab_16e6.txt.gz` in the package open-clip-torch; its
licence stands in `configs/LICENSES.md`.

Reference: https://github.com/openai/CLIP, `clip/simple_tokenizer.py`.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "build_tokenizer",
    "read_merges",
]

MERGES = Path(__file__).parent / "configs" / "clip_merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"


@cache
def read_merges() -> tuple[tuple[str, str], ...]:
    """The 48,894 merges, the most frequent first."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    return tuple((pair[0], pair[1]) for pair in map(str.split, lines))


def list_bytes() -> list[str]:
    """The sign of each byte: itself where it can be seen, else one from 256 on; seen ones first."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    seen += range(ord("®"), ord("ÿ") + 1)
    return [chr(c) for c in seen] + [chr(256 + n) for n in range(256 - len(seen))]


def build_tokenizer(pad_token: str = END) -> Any:
    """CLIP's tokenizer: 77 tokens a window.

    Args:
        pad_token: what fills the window, "<|endoftext|>" in CLIP ViT-L and "!" in OpenCLIP's.
    """
    import transformers

    merges, signs = read_merges(), list_bytes()
    words = [*signs, *(sign + "</w>" for sign in signs), *("".join(pair) for pair in merges)]
    words += [START, END]
    kind: Any = transformers.CLIPTokenizer  # its annotations know merges as text alone
    return kind(
        vocab={word: number for number, word in enumerate(words)},
        merges=list(merges),
        model_max_length=77,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad_token,
    )
