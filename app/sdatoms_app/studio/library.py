"""The atom files and LoRAs the app offers: those found in folders, those dropped in, and examples.

Visitors name files by an id from the list, never by a path; an upload is read and checked before it
is listed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms import AtomError, AtomFile, read_atoms
from sdatoms.atoms.strengths import is_name, list_blocks
from sdatoms.errors import clip, mark_bytes
from sdatoms.files.lora_file import LoraFile, read_lora, read_lora_header
from sdatoms.files.sources import read_adapter
from sdatoms.pictures import read_picture
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
MAX_HINT = 300
"""Characters of a prompt that a file brings."""
CHECKPOINT = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Entry:
    """One listed atom file or LoRA."""

    id: str
    path: Path
    trigger: str
    """What calls the subject; empty where the file names nothing."""
    parameters: int
    bytes: int
    known_sha256: str
    """Of the tensors; empty where they have not been read yet."""
    base_model: str
    """As the file tells it, untrusted like the other texts."""
    thumbnail: str
    """A data URI as stored, untrusted; empty where there is none."""
    step: int | None = None
    """Set for a checkpoint of a run."""
    blocks: tuple[tuple[str, int], ...] = ()
    """Names of the blocks that the file changes, and in how many layers each."""
    rank: str = ""
    """Of a LoRA, such as `8` or `4 to 16`; empty for atoms."""
    prompt: str = ""
    """What to try it with, as the file tells it; empty where it names none."""
    example: bool = False
    """Whether it came with the program; such files are never written to or deleted."""

    @cached_property
    def sha256(self) -> str:
        """Of names, shapes and bytes of all tensors; a LoRA is read for it when first asked."""
        return self.known_sha256 or read_lora(self.path).sha256

    @property
    def kind(self) -> str:
        """`atoms` or `LoRA`."""
        return "LoRA" if self.rank else "atoms"

    @property
    def size(self) -> str:
        return f"{self.bytes / 1000:.0f} kB" if self.bytes < 1e6 else f"{self.bytes / 1e6:.1f} MB"

    @property
    def label(self) -> str:
        """What the list shows: name, size, trigger word."""
        kind = f"LoRA of rank {self.rank} · " if self.rank else ""
        return f"{self.id} · {kind}{self.size} · {self.trigger or 'no trigger word'}"

    def read_pair(self) -> list[Image.Image]:
        """The pictures of an example's prompt without and with it; empty where there are none.

        Raises:
            AtomError: the file beside the example is damaged.
        """
        path = self.path.with_suffix(".webp")
        if not self.example or not path.is_file():
            return []
        sheet = read_picture(path)
        half = sheet.width // 2
        return [sheet.crop((x, 0, x + half, sheet.height)) for x in (0, half)]


class Library:
    """Lists `*.safetensors` below `folder` that are atom files or LoRAs, LoRAs below `models`, and
    the atom files of `examples`; uploads go to `folder/uploads`."""

    def __init__(
        self, folder: Path, models: Path | None = None, examples: Path | None = None
    ) -> None:
        self.folder = folder
        self.models = models
        self.examples = examples
        self._known: dict[tuple[Path, int, int], Entry | None] = {}

    def list(self) -> list[Entry]:
        """All atom files, newest first and examples last; checkpoints of runs are passed over."""
        found = [entry for entry in self._scan() if entry.step is None and not entry.rank]
        return found[:MAX_LISTED]

    def list_examples(self) -> list[Entry]:
        """The atom files that came with the program, by name."""
        return [entry for entry in self._scan() if entry.example]

    def list_adapters(self) -> list[Entry]:
        """The atom files, and behind them the LoRAs, each newest first."""
        loras = [entry for entry in self._scan() if entry.rank]
        return [*self.list(), *loras[:MAX_LISTED]]

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
        """An entry with these tensors; finished files before checkpoints, LoRAs last, since they
        have to be read for it."""
        entries = sorted(self._scan(), key=lambda e: (bool(e.rank), e.step is not None))
        return next((entry for entry in entries if entry.sha256 == sha256), None)

    def add(self, upload: Path) -> Entry:
        """Check an uploaded file and keep a copy under a safe name.

        Raises:
            AtomError: the file is too large, or neither an atom file nor a LoRA.
        """
        size = upload.stat().st_size
        if size > MAX_UPLOAD_BYTES:
            raise AtomError(
                f"the upload has {size / 1e6:.0f} MB; at most {MAX_UPLOAD_BYTES >> 20} MB are taken"
            )
        file = read_adapter(upload)
        write_whole(target := self._name(upload.stem, file), upload.read_bytes())
        return self._list_new(target)

    def add_file(self, file: AtomFile, name: str) -> Entry:
        """Keep an atom file from memory, such as one that rode inside a picture."""
        known = self.find_hash(file.sha256)
        return known or self._list_new(file.save(self._name(name, file)))

    def _name(self, stem: str, file: AtomFile | LoraFile) -> Path:
        name = f"{slugify(stem, 'atoms')}-{file.sha256[:8]}.safetensors"
        return self.folder / "uploads" / name

    def _list_new(self, path: Path) -> Entry:
        entry = self._read(path)
        assert entry is not None
        return entry

    def _scan(self) -> list[Entry]:
        """Every atom file and LoRA below the folders, newest first; then the examples, but those
        whose id a file of a folder has."""
        entries = []
        for folder in filter(None, (self.folder, self.models)):
            for path in find_files(folder):
                with contextlib.suppress(OSError):  # deleted meanwhile, or not for us to read
                    if path.is_symlink() or not path.is_file():
                        continue
                    entry = self._read(path)
                    if entry and (entry.rank or folder == self.folder):
                        entries.append((path.stat().st_mtime, entry))
        entries.sort(key=lambda pair: (-pair[0], pair[1].id))
        found = list({entry.path: entry for _, entry in entries}.values())
        taken = {entry.id for entry in found}
        return found + [entry for entry in self._scan_examples() if entry.id not in taken]

    def _scan_examples(self) -> Iterator[Entry]:
        paths = self.examples.glob("*.safetensors") if self.examples else ()
        for path in sorted(paths):
            entry = self._read(path)
            if entry and not entry.rank:
                yield entry

    def _read(self, path: Path) -> Entry | None:
        """The entry of a file, or None where it is neither an atom file nor a LoRA; remembered
        while the file stays the same."""
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size)
        if key not in self._known:
            self._known[key] = self._read_atoms(path) or self._read_lora(path)
        return self._known[key]

    def _read_atoms(self, path: Path) -> Entry | None:
        try:
            file = read_atoms(path)
        except AtomError:
            return None
        return Entry(
            **self._describe(path, file),
            known_sha256=file.sha256,
            base_model=clip(file.metadata.get("base_model", ""), 60),
        )

    def _describe(self, path: Path, file: AtomFile | LoraFile) -> dict[str, Any]:
        """What an entry says of either kind of file."""
        id, step = self._name_entry(path)
        return {
            "id": id,
            "path": path,
            "trigger": clip(file.trigger or "", 60),
            "parameters": file.num_parameters,
            "bytes": path.stat().st_size,
            "thumbnail": file.metadata.get("modelspec.thumbnail", ""),
            "step": step,
            "blocks": list_parts(file.layers),
            "prompt": clip(file.metadata.get("modelspec.usage_hint", ""), MAX_HINT),
            "example": self._is_example(path),
        }

    def _is_example(self, path: Path) -> bool:
        return self.examples is not None and path.parent == self.examples

    def _read_lora(self, path: Path) -> Entry | None:
        """From the header alone: LoRAs may be large."""
        file = read_lora_header(path)
        if file is None:
            return None
        least, most = file.ranks
        return Entry(
            **self._describe(path, file),
            known_sha256="",
            base_model=clip(file.base, 60),
            rank=str(most) if least == most else f"{least} to {most}",
        )

    def _name_entry(self, path: Path) -> tuple[str, int | None]:
        if path.is_relative_to(self.folder):
            return name_entry(path.relative_to(self.folder))
        if self._is_example(path):
            return f"examples/{path.stem}", None
        assert self.models is not None
        return f"models/{path.relative_to(self.models).with_suffix('').as_posix()}", None


def find_files(folder: Path) -> Iterator[Path]:
    """The safetensors files below a folder, but trainers' states and what is hidden."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            known = name.endswith(".safetensors") and name != "state.safetensors"
            if known and not name.startswith("."):
                yield Path(place, name)


def list_parts(layers: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Blocks and their numbers of layers, of layers named `<component>.<module path>`."""
    paths: dict[str, list[str]] = {}
    for layer in layers:
        component, _, path = layer.partition(".")
        paths.setdefault(component, []).append(path)
    return tuple((name, n) for name, n in list_blocks(paths).items() if is_name(name))


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
