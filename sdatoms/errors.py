"""The one error users meet: a sentence that says what came, what fits, and where."""

__all__ = ["AtomError"]


class AtomError(ValueError):
    """Wrong input. Raised before anything is changed; commands print it and exit with code 2."""
