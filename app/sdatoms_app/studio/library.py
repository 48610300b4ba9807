"""The atom files the app offers: those found in a folder, and those dropped in by visitors.

Visitors name files by an id from the list, never by a path; an upload is read and checked before it
is listed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sdatoms import AtomError, AtomFile, read_atoms
from sdatoms.errors import clip, mark_bytes
from sdatoms.storage import write_whole

__all__ = [
    "MAX_UPLOAD_BYTES",
    "Entry",
    "Library",
    "name_entry",
    "slugify",
]

MAX_UPLOAD_BYTES = 256 << 20
MAX_LISTED = 200
CHECKPOINT = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Entry:
    """One listed atom file."""

    id: str
    path: Path
    trigger: str
    """What calls the subject; empty where the file names nothing."""
    parameters: int
    bytes: int
    sha256: str
    base_model: str
    """As the file tells it, untrusted like the other texts."""
    thumbnail: str
    """A data URI as stored, untrusted; empty where there is none."""
    step: int | None = None
    """Set for a checkpoint of a run."""

    @property
    def size(self) -> str:
        return f"{self.bytes / 1000:.0f} kB" if self.bytes < 1e6 else f"{self.bytes / 1e6:.1f} MB"

    @property
    def label(self) -> str:
        """What the list shows: name, size, trigger."""
        return f"{self.id} · {self.size} · {self.trigger or 'no trigger'}"


class Library:
    """Lists `*.safetensors` below `folder` that are atom files; uploads go to `folder/uploads`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[Path, int, int], Entry | None] = {}

    def list(self) -> list[Entry]:
        """All atom files, newest first; checkpoints of runs are passed over."""
        return [entry for entry in self._scan() if entry.step is None][:MAX_LISTED]

    def list_checkpoints(self) -> list[Entry]:
        """The checkpoints of all runs, by run and step; ids are `<run>@<step>`."""
        found = [entry for entry in self._scan() if entry.step is not None]
        return sorted(found, key=lambda e: (e.id.rpartition("@")[0], e.step or 0))[:MAX_LISTED]

    def find(self, id: str) -> Entry:
        """The listed entry of that id, a checkpoint's included.

        Raises:
            AtomError: nothing of that id is listed.
        """
        for entry in self._scan():
            if entry.id == id:
                return entry
        raise AtomError(f"no atom file {clip(id)!r} is listed; refresh the list")

    def find_hash(self, sha256: str) -> Entry | None:
        """An entry with these tensors; finished files before checkpoints."""
        found = [entry for entry in self._scan() if entry.sha256 == sha256]
        return min(found, key=lambda e: e.step is not None, default=None)

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
        write_whole(target := self._name(upload.stem, file), upload.read_bytes())
        return self._list_new(target)

    def add_file(self, file: AtomFile, name: str) -> Entry:
        """Keep an atom file from memory, such as one that rode inside a picture."""
        known = self.find_hash(file.sha256)
        return known or self._list_new(file.save(self._name(name, file)))

    def _name(self, stem: str, file: AtomFile) -> Path:
        name = f"{slugify(stem, 'atoms')}-{file.sha256[:8]}.safetensors"
        return self.folder / "uploads" / name

    def _list_new(self, path: Path) -> Entry:
        entry = self._read(path)
        assert entry is not None
        return entry

    def _scan(self) -> list[Entry]:
        """Every atom file below the folder, newest first."""
        if not self.folder.is_dir():
            return []
        entries = []
        for path in self.folder.rglob("*.safetensors"):
            inner = path.relative_to(self.folder)
            if (
                any(part.startswith(".") for part in inner.parts)
                or path.name == "state.safetensors"
            ):
                continue
            if path.is_symlink() or not path.is_file():
                continue
            entry = self._read(path)
            if entry:
                entries.append((path.stat().st_mtime, entry))
        entries.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [entry for _, entry in entries]

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
                id, step = name_entry(path.relative_to(self.folder))
                self._known[key] = Entry(
                    id=id,
                    path=path,
                    trigger=clip(file.trigger or "", 60),
                    parameters=file.num_parameters,
                    bytes=stat.st_size,
                    sha256=file.sha256,
                    base_model=clip(file.metadata.get("base_model", ""), 60),
                    thumbnail=file.metadata.get("modelspec.thumbnail", ""),
                    step=step,
                )
        return self._known[key]


def name_entry(inner: Path) -> tuple[str, int | None]:
    """Id and step of a file: a run goes by its folder, a checkpoint by run and step."""
    folder = inner.parent
    step = CHECKPOINT.fullmatch(folder.name)
    if step and folder.parent.name == "checkpoints":
        run = mark_bytes(folder.parent.parent.as_posix())
        return f"{'run' if run == '.' else run}@{int(step[1])}", int(step[1])
    if inner.name == "atoms.safetensors" and len(inner.parts) > 1:
        return mark_bytes(folder.as_posix()), None
    return mark_bytes(inner.with_suffix("").as_posix()), None


def slugify(text: str, otherwise: str = "run") -> str:
    """Words as a plain, short, lower-case name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or otherwise
