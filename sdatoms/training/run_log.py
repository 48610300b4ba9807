"""Lines of one run, for its log file and for whoever looks on."""

from __future__ import annotations

from collections.abc import Callable

from sdatoms.training.processes import is_main
from sdatoms.training.run_folder import RunDirectory

__all__ = [
    "RunLog",
]


class RunLog:
    """Holds lines back until the run may write: a call that is refused says why, and nothing else.

    Args:
        notify: takes the lines that a person should see.
    """

    def __init__(self, directory: RunDirectory, notify: Callable[[str], None]) -> None:
        self.directory, self.notify = directory, notify
        self.begun = False
        """Whether the call was found good; nothing is written before."""
        self.waiting: list[str] = []
        self.unsaid: list[str] = []

    def begin(self) -> None:
        """Write and say what was held back, and from now on everything at once."""
        self.begun = True
        for line in self.waiting:
            self.log(line)
        for note in self.unsaid:
            self.notify(note)

    def log(self, text: str) -> None:
        """Append a line to the log."""
        if not self.begun:
            self.waiting.append(text)
        elif is_main():
            self.directory.log(text)

    def note(self, text: str) -> None:
        """A line for the log and for whoever looks on."""
        self.log(text)
        if is_main() and self.begun:
            self.notify(text)
        elif is_main():
            self.unsaid.append(text)
