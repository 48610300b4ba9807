"""The one error users meet, and what is said of untrusted text and of other libraries' errors."""

__all__ = [
    "AtomError",
    "clip",
]


class AtomError(ValueError):
    """Wrong input. Raised before anything is changed; commands print it and exit with code 2."""


def clip(text: str, length: int = 120) -> str:
    """Untrusted text made fit for one line: control characters blanked, cut to `length`."""
    plain = "".join(c if c.isprintable() else " " for c in str(text)[: length + 1])
    return plain if len(plain) <= length else plain[: length - 1] + "…"
