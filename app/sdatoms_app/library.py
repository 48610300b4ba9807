"""The atom files the app offers: those found in a folder, and those dropped in by visitors.

Visitors name files by an id from the list, never by a path; an upload is read and checked before it
is listed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sdatoms import AtomError, read_atoms
from sdatoms.checkpoint import clip, write_whole

__all__ = ["Entry", "Library"]

MAX_UPLOAD_BYTES = 256 << 20
MAX_LISTED = 200


@dataclass(frozen=True)
class Entry:
    """One listed atom file."""

    id: str
    path: Path
    trigger: str
    parameters: int
    bytes: int

    @property
    def label(self) -> str:
        """What the list shows: name, size, trigger."""
        return f"{self.id} · {self.bytes / 1000:.0f} kB · {self.trigger}"


class Library:
    """Lists `*.safetensors` below `folder` that are atom files; uploads go to `folder/uploads`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[Path, int, int], Entry | None] = {}

    def list(self) -> list[Entry]:
        """All atom files, newest first; checkpoints of running trainings are passed over."""
        entries = []
        if not self.folder.is_dir():
            return []
        for path in self.folder.rglob("*.safetensors"):
            inner = path.relative_to(self.folder)
            if "checkpoints" in inner.parts or any(part.startswith(".") for part in inner.parts):
                continue
            if path.is_symlink() or not path.is_file():
                continue
            entry = self._read(path)
            if entry:
                entries.append((path.stat().st_mtime, entry))
        entries.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [entry for _, entry in entries[:MAX_LISTED]]

    def find(self, id: str) -> Entry:
        """The listed entry of that id.

        Raises:
            AtomError: nothing of that id is listed.
        """
        for entry in self.list():
            if entry.id == id:
                return entry
        raise AtomError(f"no atom file {clip(id)!r} is listed; refresh the list")

    def add(self, upload: Path) -> Entry:
        """Check an uploaded file and keep a copy under a safe name.

        Raises:
            AtomError: the file is too large, or no atom file.
        """
        size = upload.stat().st_size
        if size > MAX_UPLOAD_BYTES:
            raise AtomError(
                f"the upload has {size / 1e6:.0f} MB; at most {MAX_UPLOAD_BYTES >> 20} MB are taken"
            )
        file = read_atoms(upload)
        slug = re.sub(r"[^a-z0-9]+", "-", upload.stem.lower()).strip("-")[:40] or "atoms"
        target = self.folder / "uploads" / f"{slug}-{file.sha256[:8]}.safetensors"
        write_whole(target, upload.read_bytes())
        entry = self._read(target)
        assert entry is not None
        return entry

    def _read(self, path: Path) -> Entry | None:
        """The entry of a file, or None where it is no atom file; remembered while the file stays
        the same."""
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size)
        if key not in self._known:
            try:
                file = read_atoms(path)
            except AtomError:
                self._known[key] = None
            else:
                inner = path.relative_to(self.folder)
                run = inner.name == "atoms.safetensors" and len(inner.parts) > 1
                name = (inner.parent if run else inner.with_suffix("")).as_posix()
                shown = clip(file.trigger or "no trigger", 60)
                self._known[key] = Entry(name, path, shown, file.num_parameters, stat.st_size)
        return self._known[key]
