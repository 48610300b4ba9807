"""One process owns a run directory: a file that is locked while its process lives."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from sdatoms.errors import AtomError, clip
from sdatoms.storage import read_table

__all__ = [
    "LOCK",
    "RunLock",
]

LOCK = ".lock"
ALIVE_SECONDS = 600.0
"""A run of another machine counts as alive for so long after its last heartbeat."""


class RunLock:
    """The right to write into a run directory.

    The system drops the lock with its process, however that ends. The file names process and
    machine; where a lock does not reach other machines, the run's heartbeat tells.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self.handle: int | None = None

    def acquire(self) -> None:
        """Take the lock, unless it is held already.

        Raises:
            AtomError: another training owns the folder.
        """
        while self.handle is None:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = read_table(self.path, {})
                os.close(handle)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise AtomError(self.describe(owner)) from None
            if is_same_file(handle, self.path):
                self.handle = handle
            else:  # its owner took the file away after it was opened here
                os.close(handle)
        owner = read_table(self.path, {})
        host = socket.gethostname()
        if owner.get("host", host) != host and self.is_alive():
            os.close(self.handle)  # not ours: the file stays
            self.handle = None
            raise AtomError(self.describe(owner))
        os.ftruncate(self.handle, 0)
        os.write(self.handle, json.dumps({"pid": os.getpid(), "host": host}).encode())

    def release(self) -> None:
        """Take the file away and drop the lock, where it is held."""
        if self.handle is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self.handle)
            self.handle = None

    def is_alive(self) -> bool:
        """Whether the run's last sign of life is fresh."""
        try:
            status = json.loads((self.path.parent / "status.json").read_text(encoding="utf-8"))
            fresh = time.time() - float(status["heartbeat"]) < ALIVE_SECONDS
            return fresh and status["phase"] not in ("done", "failed", "stopped", "interrupted")
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def describe(self, owner: dict[str, Any]) -> str:
        who = f"process {owner.get('pid')} on {clip(str(owner.get('host')), 60)}"
        return (
            f"the run directory {str(self.path.parent)!r} belongs to another training"
            f"{f', {who}' if owner else ''}; stop it first, or name another --output_dir"
        )


def is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
