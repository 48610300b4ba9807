"""Whether what a command is to write can be written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdatoms.errors import AtomError

__all__ = ["check_file", "check_folder", "check_output", "writing"]


def check_output(output: str, sources: Sequence[str]) -> None:
    """Refuse, before any work, an output that cannot be written, or that one of its sources is.

    Raises:
        AtomError: names it.
    """
    for source in sources:
        if os.path.exists(output) and os.path.exists(source) and os.path.samefile(output, source):
            raise AtomError(f"--output is {output!r}, which is read here too; name another file")
    check_file(Path(output))


def check_file(path: Path) -> None:
    """Refuse, before any work, a file that cannot be written; it need not be there yet.

    Raises:
        AtomError: it is a folder, a device, a pipe or a socket, or its folder cannot be written to.
    """
    if path.name in ("", "..") or (path.exists() and not path.is_file()):
        raise AtomError(f"{str(path)!r} cannot be written: it is there, and is no file")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be written to; it need not be there yet.

    Raises:
        AtomError: it is a file, lies below one, or is closed to the user.
    """
    places = (folder, *folder.absolute().parents)
    place = next((path for path in places if os.path.lexists(path)), folder)
    try:
        folder.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise AtomError(f"{str(folder)!r} cannot be written: {error.strerror}") from None
    if not place.is_dir():
        raise AtomError(f"{str(folder)!r} cannot be written: {str(place)!r} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise AtomError(f"{str(folder)!r} cannot be written: {str(place)!r} is closed to you")


@contextmanager
def writing(path: str) -> Iterator[None]:
    """One sentence for a disk that is full, or a folder that cannot be written to."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise AtomError(f"{path!r} cannot be written: {reason}") from None
