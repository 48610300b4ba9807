"""Pictures and captions somebody is putting together for a training, kept on disk at every change.

A draft is a folder named by a random token that its visitor's browser holds. Pictures are stored
under their hash, whatever they were called; captions belong to the hash, so they survive removing
a picture, adding it again, and reloading the page.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms import AtomError
from sdatoms.errors import clip, mark_bytes
from sdatoms.pictures import read_picture, save_image
from sdatoms.settings import build_config
from sdatoms.storage import ABOUT, decode_text, read_table, write_whole
from sdatoms.training.buckets import Size
from sdatoms.training.concepts import Concept, read_data_config, write_data_config
from sdatoms.training.picture_checks import PictureCheck, check_picture, check_pictures
from sdatoms_app.queue.queue import DESCRIPTION
from sdatoms_app.queue.worker import write_json
from sdatoms_app.shared.places import hide_folders
from sdatoms_app.studio.library import slugify
from sdatoms_app.train.arrivals import reduce_photo, shrink_picture, sort_files
from sdatoms_app.train.subjects import find_subject

__all__ = [
    "MAX_DRAFTS",
    "Draft",
    "Picture",
]

TOKEN = re.compile(r"[0-9a-f]{32}")
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
"""Formats kept byte for byte; others are kept as the PNG of what the trainer would see."""
MAX_PICTURES = 200
MAX_PICTURE_BYTES = 64 << 20
MAX_DRAFT_BYTES = 1 << 30
MAX_CAPTION = 2000
MAX_DRAFTS = 100
MAX_NAME = 60
"""Characters of a concept's name."""
MASK = ".mask.png"
"""What a mask's file is called after its picture's."""
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
    """Where it counts: white where the loss does."""
    note: str = ""
    """What a person should know about its caption."""
    concept: str = ""
    """What it is a picture of, where a training learns several things."""


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
        empty: dict[str, Any] = {"pictures": [], "captions": {}, "notes": {}, "form": {}}
        empty |= {"concepts": {}, "described": []}
        return empty | read_table(self.folder / "draft.json", {})

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
                mask if (mask := self.folder / f"{p['id']}{MASK}").is_file() else None,
                state["notes"].get(p["id"], ""),
                state["concepts"].get(p["id"], ""),
            )
            for p in state["pictures"]
        ]

    def add(
        self,
        paths: Sequence[Path],
        *,
        concept: str = "",
        captions: Mapping[Path, str] | None = None,
        masks: Mapping[Path, Path] | None = None,
    ) -> list[str]:
        """Keep copies of pictures; a `.txt` of a picture's name becomes its caption, a mask of its
        name its mask. Large photos are kept smaller, as large as any training needs.

        Args:
            paths: files of any kind.
            concept: what the pictures show, where a training learns several things.
            captions: picture → its caption, where it is known already.
            masks: picture → its mask, likewise.

        Returns:
            One line for every file that was not taken.
        """
        refused = []
        with LOCK:
            state = self._read()
            owners = {Path(p["name"]).stem: p["id"] for p in state["pictures"]}
            found = sort_files(paths, owners)
            for path in found.pictures:
                refused += name_fault(path, self._add_picture(state, path, owners))
                if id := owners.get(path.stem):
                    text = (captions or {}).get(path, "")[:MAX_CAPTION]
                    if text and not state["captions"].get(id):
                        state["captions"][id] = text
                    if concept:
                        state["concepts"][id] = clip(concept, MAX_NAME)
                if mask := (masks or {}).get(path):
                    refused += name_fault(mask, self._add_mask(state, mask, owners.get(path.stem)))
            for path, stem in found.captions:
                text, note = read_caption(path)
                if stem in owners and text and not state["captions"].get(owners[stem]):
                    state["captions"][owners[stem]] = text
                    state["notes"][owners[stem]] = note
            for path, stem in found.masks:
                refused += name_fault(path, self._add_mask(state, path, owners.get(stem)))
            for path in found.strays:
                refused += name_fault(
                    path, "it belongs to no picture here, or to one that has another"
                )
            self._write(state)
        return refused

    def _add_picture(self, state: dict[str, Any], path: Path, owners: dict[str, str]) -> str:
        """Keep one picture and note its id in `owners`; says why it was not taken."""
        if len(state["pictures"]) >= MAX_PICTURES:
            return f"a training takes at most {MAX_PICTURES} pictures"
        if path.stat().st_size > MAX_PICTURE_BYTES:
            return f"at most {MAX_PICTURE_BYTES >> 20} MB are taken"
        if self.measure() > MAX_DRAFT_BYTES:
            return "a training takes at most 1 GiB of pictures"
        with tempfile.TemporaryDirectory() as folder:
            photo = reduce_photo(path, Path(folder))
            found = check_picture(photo, 64)
            if found.kind == "corrupt":
                return found.text
            id = owners[path.stem] = found.digest[:16]
            if id in {picture["id"] for picture in state["pictures"]}:
                return "it is here already"
            entry = {"id": id, "name": clip(path.name, 80), "file": self._store(photo, id)}
        state["pictures"].append(entry)
        return ""

    def _add_mask(self, state: dict[str, Any], path: Path, id: str | None) -> str:
        """Keep the mask of a picture, in place of an earlier one; says why it was not taken."""
        picture = next((p for p in state["pictures"] if p["id"] == id), None)
        if picture is None:
            return "the picture it belongs to was not taken"
        if path.stat().st_size > MAX_PICTURE_BYTES:
            return f"at most {MAX_PICTURE_BYTES >> 20} MB are taken"
        try:
            mask, own = read_picture(path), read_picture(self.folder / picture["file"])
        except AtomError as error:
            return str(error)
        (w, h), (wide, high) = mask.size, own.size
        if abs(w / h - wide / high) > 0.02 * wide / high:
            return f"the mask has {w}×{h} px where its picture has {wide}×{high}"
        scale = min(1.0, max(own.size) / max(mask.size))
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        save_image(mask.convert("L").resize(size), self.folder / f"{id}{MASK}")
        return ""

    def measure(self) -> int:
        """Bytes the draft takes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _store(self, path: Path, id: str) -> str:
        smaller = shrink_picture(path)
        with Image.open(path) as opened:
            suffix = SUFFIXES.get(opened.format or "")
        if smaller is not None:
            suffix = ".jpg" if suffix == ".jpg" else ".png"
        name = f"{id}{suffix or '.png'}"
        if smaller is not None:
            save_image(smaller, self.folder / name, quality=95, subsampling=0)
        elif suffix:
            write_whole(self.folder / name, path.read_bytes())
        else:
            save_image(read_picture(path), self.folder / name)
        return name

    def remove(self, id: str) -> None:
        """Take a picture out; its caption is kept for when it comes back."""
        with LOCK:
            state = self._read()
            gone = [p for p in state["pictures"] if p["id"] == id]
            state["pictures"] = [p for p in state["pictures"] if p["id"] != id]
            self._write(state)
            for picture in gone:
                (self.folder / picture["file"]).unlink(missing_ok=True)
                (self.folder / f"{id}{MASK}").unlink(missing_ok=True)

    def set_caption(self, id: str, text: str, *, beside: bool = False) -> None:
        """Write a picture's own prompt; empty text gives it the prompt all share.

        Args:
            beside: whether a caption that is there by now stays as it is.

        Raises:
            AtomError: no such picture.
        """
        with LOCK:
            state = self._read()
            check_listed(state, id)
            if beside and state["captions"].get(id):
                return
            state["captions"][id] = mark_bytes(text.strip()[:MAX_CAPTION])
            state["notes"].pop(id, None)  # it was about what a file held
            self._write(state)

    def set_mask(self, id: str, mask: Image.Image | None) -> None:
        """Keep a picture's mask, white where it counts, in place of an earlier one; None takes it
        away.

        Raises:
            AtomError: no such picture.
        """
        with LOCK:
            check_listed(self._read(), id)
            path = self.folder / f"{id}{MASK}"
            if mask is None:
                path.unlink(missing_ok=True)
                return
            save_image(mask.convert("L"), path)

    def set_concept(self, id: str, name: str) -> None:
        """Say what a picture shows, where a training learns several things; empty: what all show.

        Raises:
            AtomError: no such picture.
        """
        with LOCK:
            state = self._read()
            check_listed(state, id)
            state["concepts"][id] = clip(name.strip(), MAX_NAME)
            self._write(state)

    @property
    def described(self) -> list[dict[str, Any]]:
        """What is said of each concept that a picture has, in the order they came."""
        state = self._read()
        known = {row["name"]: row for row in state["described"]}
        names = dict.fromkeys(p.concept for p in self.list() if p.concept)
        return [known.get(name, {"name": name}) for name in names]

    def describe(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep what is said of concepts: `name`, and what a `Concept` takes."""
        with LOCK:
            state = self._read()
            known = {row["name"]: row for row in state["described"]}
            state["described"] = list((known | {row["name"]: row for row in rows}).values())
            self._write(state)

    def check(self, resolution: int, sizes: list[Size] | None = None) -> list[PictureCheck]:
        """What the trainer would make of every picture, in order."""
        return check_pictures([p.path for p in self.list()], resolution, sizes)

    def fill(self, folder: Path) -> None:
        """Copy pictures, and captions and masks beside them, in the draft's order; with several
        concepts, each below a folder of its own, and a description of all. With those of a bundled
        subject goes what is said of it, so that its true pictures are known.

        Raises:
            AtomError: there are no pictures, or what is said of a concept does not fit.
        """
        pictures = self.list()
        if not pictures:
            raise AtomError("there are no pictures to train on; add at least one")
        places = {"": folder}
        if named := self.described:
            rows = [*named, *([] if all(p.concept for p in pictures) else [{"name": ""}])]
            concepts = []
            for number, row in enumerate(rows):
                place = folder / f"concept-{number:02d}"
                place.mkdir()
                places[row["name"]] = place
                given = {"instance_data_dir": place.name, **row, "name": row["name"] or "others"}
                concepts.append(build_config(Concept, given, f"the concept {row['name']!r}"))
            text = write_data_config(concepts, absolute=False)
            write_whole(folder / DESCRIPTION, text.encode(errors="replace"))
            read_data_config(folder / DESCRIPTION)  # refuses what does not fit
        elif subject := find_subject([picture.id for picture in pictures]):
            shutil.copyfile(subject / ABOUT, folder / ABOUT)
        for number, picture in enumerate(pictures):
            words = re.sub(r"^\d{3}-", "", slugify(Path(picture.name).stem))
            target = places[picture.concept] / f"{number:03d}-{words}{picture.path.suffix}"
            shutil.copyfile(picture.path, target)
            if picture.caption:
                write_whole(target.with_suffix(".txt"), picture.caption.encode())
            if picture.mask:
                shutil.copyfile(picture.mask, target.with_name(f"{target.stem}{MASK}"))


def check_listed(state: dict[str, Any], id: str) -> None:
    """Refuse the id of a picture that a draft does not hold."""
    if id not in {p["id"] for p in state["pictures"]}:
        raise AtomError(f"there is no picture {clip(str(id))!r} in this draft")


def name_fault(path: Path, fault: str) -> list[str]:
    """A line that says of which file a fault is; none where there is none."""
    if not fault:
        return []
    fault = hide_folders(fault)
    return [fault if path.name in fault else f"{clip(path.name, 80)}: {fault}"]


def read_caption(path: Path) -> tuple[str, str]:
    """The caption a file holds, and what a person should know about it."""
    if path.stat().st_size > MAX_PICTURE_BYTES:
        return "", ""
    text, encoding = decode_text(path.read_bytes())
    text, notes = text.strip(), []
    if not encoding.startswith("utf"):
        notes.append(f"its caption is no Unicode and read as {encoding}")
    if len(text) > MAX_CAPTION:
        notes.append(f"its caption is cut to {MAX_CAPTION} characters")
    return text[:MAX_CAPTION], "; ".join(notes)
