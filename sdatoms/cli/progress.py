"""What a long command shows on the terminal, which may be gone before the command is done."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

__all__ = [
    "Progress",
]


class Progress:
    """A bar that appears with the first step, and lines above it; a closed terminal is no error.

    Args:
        unit: of a step.
        shown: whether this process shows anything.
    """

    def __init__(self, unit: str = "step", *, shown: bool = True) -> None:
        self.unit, self.shown = unit, shown
        self.bar: Any = None

    def show(self, step: int, total: int, **figures: str) -> None:
        """Move the bar to a step."""
        from tqdm import tqdm

        with contextlib.suppress(OSError, ValueError):
            if self.bar is None:
                self.bar = tqdm(
                    total=total, initial=step - 1, unit=self.unit, disable=not self.shown
                )
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix(figures)

    def note(self, text: str) -> None:
        """A line on standard error."""
        from tqdm import tqdm

        if self.shown:
            with contextlib.suppress(OSError, ValueError):
                tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.close()
