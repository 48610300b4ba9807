"""The console of a command: of any encoding, closed at any time, and where Ctrl-C comes from.

Only the standard library: this runs before a command imports what it needs.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

from sdatoms.errors import AtomError

__all__ = [
    "lasting_console",
    "stopping_at_signals",
]

CLOSED = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET, errno.ENXIO}
"""What writing to a closed pipe, terminal or file descriptor answers."""
ESCAPING = "sdatoms.escape"
"""Name of the way out for characters that an encoding lacks."""


class LastingFile(io.FileIO):
    """A file descriptor whose reader may go away: what is written after that is dropped, and the
    command does its work to the end."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            drop_output(self.fileno())
            if error.errno in CLOSED or self.fileno() == 2:
                return memoryview(data).nbytes
            raise AtomError(
                f"standard output cannot be written: {error.strerror or error}"
            ) from None


def drop_output(number: int) -> None:
    """Let a file descriptor write to nowhere from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def escape_character(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""A byte of a name that is no text comes out as it was; what the encoding lacks as `\xe9`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    with contextlib.suppress(LookupError, UnicodeError):
        if "a".encode(error.encoding) == b"a":  # not so in UTF-16
            return b"".join(map(escape_byte, text)), error.end
    return text.encode("ascii", "backslashreplace").decode(), error.end


def escape_byte(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00])
    return character.encode("ascii", "backslashreplace")


@contextlib.contextmanager
def lasting_console() -> Iterator[None]:
    """Standard output and error that take every character and outlast their readers."""
    codecs.register_error(ESCAPING, escape_character)
    kept = sys.stdout, sys.stderr
    sys.stdout = wrap_stream(sys.stdout, sys.__stdout__)
    sys.stderr = wrap_stream(sys.stderr, sys.__stderr__)
    try:
        yield
        sys.stdout.flush()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AtomError, OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = kept


def wrap_stream(stream: TextIO | None, console: TextIO | None) -> TextIO:
    """The stream over a `LastingFile`; one that stands in for the console only gets the escapes."""
    if stream is None:  # the command was started with it closed
        return open(os.devnull, "w", encoding="utf-8", errors=ESCAPING)
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream is not console:
        with contextlib.suppress(ValueError, OSError):
            stream.reconfigure(errors=ESCAPING)
        return stream
    raw = LastingFile(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=ESCAPING,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


@contextlib.contextmanager
def stopping_at_signals(*numbers: int) -> Iterator[list[int]]:
    """Signals interrupt the command, whatever goes on; gives the list of those that came.

    A library that is being imported may swallow the interrupt or raise something else for it: the
    command ends as interrupted all the same. A hang-up that is ignored, as by nohup, stays ignored.
    """
    heard: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    kept: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere none can be listened to
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                kept[number] = signal.signal(number, interrupt)
    try:
        yield heard
    except BaseException:
        if heard:
            raise KeyboardInterrupt from None
        raise
    else:
        if heard:
            raise KeyboardInterrupt
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
