"""`AtomError`, and how untrusted text and the errors of other libraries are quoted in one line."""

import math
from typing import Any, TypeGuard

__all__ = [
    "AtomError",
    "check_text",
    "clip",
    "first_line",
    "is_finite",
    "is_full_memory",
    "mark_bytes",
    "name_full_memory",
]


class AtomError(ValueError):
    """Wrong input. Raised before anything is changed; commands print it and exit with code 2."""


def check_text(text: str, what: str) -> str:
    """Text that every file and library takes.

    Raises:
        AtomError: it holds half a character, as do names whose bytes are no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise AtomError(f"{what} is {clip(text)!r}, which holds bytes that are no text") from None
    return text


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number that a float can hold: NaN, infinities, texts, truth values and whole
    numbers of more than 308 digits are none."""
    try:
        return not isinstance(value, bool | str) and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def mark_bytes(text: str) -> str:
    """Text with question marks for the bytes of a name that are no text: what a page can show."""
    return text.encode(errors="replace").decode()


def clip(text: str, length: int = 120) -> str:
    """Untrusted text made fit for one line: control characters blanked, cut to `length`."""
    plain = "".join(c if c.isprintable() else " " for c in str(text)[: length + 1])
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def first_line(error: BaseException, length: int = 200) -> str:
    """The first line of another library's message, made fit for one line of ours.

    The name of the error's class where it has no message: `OSError()` says nothing.
    """
    lines = str(error).strip().splitlines()
    return clip(lines[0].strip() if lines else type(error).__name__, length)


FULL_MEMORY = ("not enough memory", "DefaultCPUAllocator", "MPS backend out of memory")
"""What torch says of a full memory where it has no class for it."""


def is_full_memory(error: BaseException) -> bool:
    """Whether an accelerator's or the machine's memory was full; torch is not imported for this."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in FULL_MEMORY))
    )


def name_full_memory(error: BaseException) -> str:
    """Whose memory was full: the "GPU"'s or the "machine"'s."""
    gpu = type(error).__name__ == "OutOfMemoryError" or FULL_MEMORY[-1] in str(error)
    return "GPU" if gpu else "machine"
