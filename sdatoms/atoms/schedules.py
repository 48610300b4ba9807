"""How an adapter's strength goes over the denoising steps.

    0 until 0.2, then 1
    0 to 1 until 0.4, then 1 until 0.8, then 0.5

Numbers are factors on the adapter's own strength; "until" is followed by a fraction of the steps,
where a piece ends; "to" makes a piece a straight line. Step k of n, counted from 0, lies at k/n.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdatoms.atoms.strengths import write_number
from sdatoms.errors import AtomError, clip

__all__ = [
    "Piece",
    "Schedule",
    "parse_schedule",
]

MAX_PIECES = 32
MAX_TEXT = 2000
MAX_FACTOR = 100.0
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
PIECE = re.compile(rf"({NUMBER})(?:\s+to\s+({NUMBER}))?(?:\s+until\s+({NUMBER}))?", re.IGNORECASE)
THEN = re.compile(r"\s*(?:,\s*(?:then\b)?|\bthen\b)\s*", re.IGNORECASE)
EXAMPLE = "0 until 0.2, then 1"


@dataclass(frozen=True)
class Piece:
    """A straight line over part of the steps."""

    first: float
    """Factor where the piece begins."""
    last: float
    """Factor where it ends; most often the same."""
    until: float
    """Fraction of the steps where it ends, above 0 to 1."""


@dataclass(frozen=True)
class Schedule:
    """Factors on a strength over the denoising steps, piece by piece up to 1."""

    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        if not self.pieces or len(self.pieces) > MAX_PIECES:
            raise AtomError(f"a schedule has 1 to {MAX_PIECES} pieces; this has {len(self.pieces)}")
        start = 0.0
        for piece in self.pieces:
            for number in (piece.first, piece.last):
                if not abs(number) <= MAX_FACTOR:  # NaN is refused too
                    raise AtomError(
                        f"a schedule's strength is {number:g}; it goes from {-MAX_FACTOR:g} to "
                        f"{MAX_FACTOR:g}"
                    )
            if not start < piece.until <= 1:
                raise AtomError(
                    f"a schedule's piece ends at {piece.until:g}; ends rise from above {start:g} "
                    "to 1, in fractions of the steps"
                )
            start = piece.until
        if start != 1:
            raise AtomError(f"a schedule ends at {start:g}; say what follows, as in {EXAMPLE!r}")

    @property
    def peak(self) -> float:
        """The factor farthest from 0: what counts where there are no steps, as in reading the
        prompt."""
        return max((n for p in self.pieces for n in (p.first, p.last)), key=abs)

    def at(self, fraction: float) -> float:
        """The factor at a fraction of the steps, from 0 to below 1."""
        start = 0.0
        for piece in self.pieces:
            if fraction < piece.until:
                share = (fraction - start) / (piece.until - start)
                return piece.first + (piece.last - piece.first) * share
            start = piece.until
        return self.pieces[-1].last

    def __str__(self) -> str:
        """The text that `parse_schedule` reads back."""
        texts = []
        for piece in self.pieces:
            ramp = "" if piece.first == piece.last else f" to {write_number(piece.last)}"
            end = "" if piece is self.pieces[-1] else f" until {write_number(piece.until)}"
            texts.append(f"{write_number(piece.first)}{ramp}{end}")
        return ", then ".join(texts)


def parse_schedule(text: str) -> Schedule:
    """Read "0 until 0.2, then 1".

    Raises:
        AtomError: a piece is none, ends do not rise to 1, or a number is out of range.
    """
    if len(text) > MAX_TEXT:
        raise AtomError(f"a schedule has {len(text)} characters; it takes {MAX_TEXT}")
    parts = THEN.split(text.strip())
    pieces = []
    for number, part in enumerate(parts, 1):
        found = PIECE.fullmatch(part)
        if not found:
            raise AtomError(
                f"the schedule {clip(text, 60)!r} holds {clip(part, 40)!r}, which is no piece; "
                f"write it as {EXAMPLE!r} or '0 to 1 until 0.4, then 1'"
            )
        first, last, until = found.groups()
        if until is None and number < len(parts):
            raise AtomError(
                f"the schedule {clip(text, 60)!r} does not say until when {clip(part, 40)!r} "
                f"holds; write it as {EXAMPLE!r}"
            )
        end = 1.0 if until is None else float(until)
        pieces.append(Piece(float(first), float(first if last is None else last), end))
    return Schedule(tuple(pieces))
