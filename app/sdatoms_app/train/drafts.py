"""Pictures and captions somebody is putting together for a training, kept on disk at every change.

A draft is a folder named by a random token that its visitor's browser holds. Pictures are stored
under their hash, whatever they were called; captions belong to the hash, so they survive removing
a picture, adding it again, and reloading the page.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms import AtomError
from sdatoms.errors import clip
from sdatoms.pictures import find_sidecars, read_picture
from sdatoms.storage import decode_text, write_whole
from sdatoms.training.masks import match_masks
from sdatoms.training.picture_checks import PictureCheck, check_picture, check_pictures
from sdatoms_app.queue.worker import read_json, write_json
from sdatoms_app.studio.library import slugify

__all__ = [
    "MAX_DRAFTS",
    "Draft",
    "Picture",
    "list_files",
    "list_folders",
]

TOKEN = re.compile(r"[0-9a-f]{32}")
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
"""Formats kept byte for byte; others are kept as the PNG of what the trainer would see."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ALONGSIDE = (".json", ".jsonl", ".md", "")
"""Suffixes of files that lie beside pictures and are none."""
MAX_PICTURES = 200
MAX_PICTURE_BYTES = 64 << 20
MAX_DRAFT_BYTES = 1 << 30
MAX_CAPTION = 2000
MAX_DRAFTS = 100
LOCK = threading.RLock()


@dataclass(frozen=True)
class Picture:
    """One picture of a draft."""

    id: str
    name: str
    """What its file was called; text, never a path."""
    path: Path
    caption: str
    """Its own prompt; empty: the prompt all share."""
    mask: Path | None = None


class Draft:
    """One visitor's pictures below `root`; an unknown or malformed token starts a new draft."""

    def __init__(self, root: Path, token: str | None = None) -> None:
        known = isinstance(token, str) and TOKEN.fullmatch(token)
        self.token = token if known and token else secrets.token_hex(16)
        self.folder = root / self.token
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            drafts = sorted(root.iterdir(), key=lambda p: p.stat().st_mtime)
            for old in drafts[:-MAX_DRAFTS]:
                shutil.rmtree(old, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"pictures": [], "captions": {}, "form": {}}
        return empty | read_json(self.folder / "draft.json")

    def _write(self, state: dict[str, Any]) -> None:
        write_json(self.folder / "draft.json", state)

    @property
    def form(self) -> dict[str, Any]:
        """The settings last filled in."""
        return self._read()["form"]

    def keep_form(self, values: dict[str, Any]) -> None:
        with LOCK:
            self._write(self._read() | {"form": values})

    def list(self) -> list[Picture]:
        """Pictures in the order they came."""
        state = self._read()
        return [
            Picture(
                p["id"],
                p["name"],
                self.folder / p["file"],
                state["captions"].get(p["id"], ""),
                self.folder / p["mask"] if p.get("mask") else None,
            )
            for p in state["pictures"]
        ]

    def add(self, paths: Sequence[Path]) -> list[str]:
        """Keep copies of pictures, with the captions and masks that the trainer would read.

        Returns:
            One line for every file that was not taken.
        """
        captions = {file for path in paths for file in find_sidecars(path, paths)}
        refused = []
        with LOCK:
            state = self._read()
            held = {picture["id"] for picture in state["pictures"]}
            earlier = {Path(p["name"]): p for p in state["pictures"]}
            plain, masks, strays = match_masks([*earlier, *(p for p in paths if p not in captions)])
            for path in strays:
                refused.append(f"{clip(path.name, 80)}: it is a mask without its picture")
            for path in plain:
                if path in earlier:
                    self._keep_mask(earlier[path], masks.get(path), refused)
                    continue
                name = clip(path.name, 80)
                if len(held) >= MAX_PICTURES:
                    refused.append(f"{name}: a training takes at most {MAX_PICTURES} pictures")
                elif path.stat().st_size > MAX_PICTURE_BYTES:
                    refused.append(f"{name}: at most {MAX_PICTURE_BYTES >> 20} MB are taken")
                elif self.measure() > MAX_DRAFT_BYTES:
                    refused.append(f"{name}: a training takes at most 1 GiB of pictures")
                elif (check := check_picture(path, 64)).kind == "corrupt":
                    refused.append(check.text)
                else:
                    id = check.digest[:16]
                    if id in held:
                        refused.append(f"{name}: it is here already")
                    else:
                        held.add(id)
                        entry = {"id": id, "name": name, "file": self._store(path, id)}
                        self._keep_mask(entry, masks.get(path), refused)
                        state["pictures"].append(entry)
                    text = read_caption(find_sidecars(path, paths))
                    if text and not state["captions"].get(id):
                        state["captions"][id] = text
            self._write(state)
        return refused

    def measure(self) -> int:
        """Bytes the draft takes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _store(self, path: Path, id: str) -> str:
        with Image.open(path) as opened:
            suffix = SUFFIXES.get(opened.format or "")
        name = f"{id}{suffix or '.png'}"
        if suffix:
            write_whole(self.folder / name, path.read_bytes())
        else:
            read_picture(path).save(self.folder / name)
        return name

    def _keep_mask(self, entry: dict[str, Any], path: Path | None, refused: list[str]) -> None:
        if path is None:
            return
        try:
            mask = read_picture(path).convert("L")
        except AtomError as error:
            refused.append(str(error))
            return
        entry["mask"] = f"{entry['id']}.mask.png"
        mask.save(self.folder / entry["mask"])

    def remove(self, id: str) -> None:
        """Take a picture out; its caption is kept for when it comes back."""
        with LOCK:
            state = self._read()
            gone = [p for p in state["pictures"] if p["id"] == id]
            state["pictures"] = [p for p in state["pictures"] if p["id"] != id]
            self._write(state)
            for picture in gone:
                (self.folder / picture["file"]).unlink(missing_ok=True)
                if mask := picture.get("mask"):
                    (self.folder / mask).unlink(missing_ok=True)

    def set_caption(self, id: str, text: str) -> None:
        """Write a picture's own prompt; empty text gives it the prompt all share.

        Raises:
            AtomError: no such picture.
        """
        with LOCK:
            state = self._read()
            if id not in {p["id"] for p in state["pictures"]}:
                raise AtomError(f"there is no picture {clip(id)!r} in this draft")
            state["captions"][id] = text.strip()[:MAX_CAPTION]
            self._write(state)

    def check(self, resolution: int) -> list[PictureCheck]:
        """What the trainer would make of every picture, in order."""
        return check_pictures([p.path for p in self.list()], resolution)

    def fill(self, folder: Path) -> None:
        """Copy pictures, with captions as `.txt` and masks as `.mask.png` beside them, in the
        draft's order.

        Raises:
            AtomError: there are no pictures.
        """
        pictures = self.list()
        if not pictures:
            raise AtomError("there are no pictures to train on; add at least one")
        for number, picture in enumerate(pictures):
            words = re.sub(r"^\d{3}-", "", slugify(Path(picture.name).stem))
            target = folder / f"{number:03d}-{words}{picture.path.suffix}"
            shutil.copyfile(picture.path, target)
            if picture.mask:
                shutil.copyfile(picture.mask, target.with_name(f"{target.stem}.mask.png"))
            if picture.caption:
                write_whole(target.with_suffix(".txt"), picture.caption.encode())


def read_caption(paths: Sequence[Path]) -> str:
    """The text of the first file; empty where there is none."""
    if not paths or paths[0].stat().st_size > MAX_PICTURE_BYTES:
        return ""
    return decode_text(paths[0].read_bytes())[0].strip()[:MAX_CAPTION]


def list_folders(roots: Sequence[Path]) -> dict[str, Path]:
    """Folders with pictures at or directly below the roots an operator listed, by a name to show.

    Links and hidden folders are passed over; visitors choose among the names.
    """
    found: dict[str, Path] = {}
    for root in roots:
        root = root.resolve()  # an operator may list a link
        children = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        for folder in [root, *children]:
            if folder.is_symlink() or folder.name.startswith("."):
                continue
            name = root.name if folder == root else f"{root.name}/{folder.name}"
            if holds_pictures(folder):
                same = sum(other.partition(" (")[0] == name for other in found)
                found[f"{name} ({same + 1})" if same else name] = folder
    return found


def holds_pictures(folder: Path) -> bool:
    """Whether a file is called like a picture; whether it is one is checked when it is added."""
    return any(p.is_file() and p.suffix.lower() in PICTURE_SUFFIXES for p in folder.iterdir())


def list_files(folder: Path) -> list[Path]:
    """The pictures of a folder, and the captions of those pictures; links are passed over."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.is_symlink())
    files = [p for p in files if p.suffix.lower() not in ALONGSIDE and p.name[0] != "."]
    stems = {p.stem for p in files if p.suffix.lower() != ".txt"}
    return [p for p in files if p.stem in stems]
