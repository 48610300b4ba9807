"""The pictures' part of the Train tab: what is taken, shown, captioned, masked and sorted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sdatoms import AtomError
from sdatoms.diffusion.family import read_resolution, read_units
from sdatoms.errors import clip
from sdatoms.pictures import read_picture
from sdatoms.storage import read_subject
from sdatoms.training.buckets import Size, list_buckets
from sdatoms.training.labelling import put_trigger
from sdatoms.training.picture_checks import PictureCheck
from sdatoms_app.shared.html import count
from sdatoms_app.shared.messages import show_errors
from sdatoms_app.studio.studio import Studio
from sdatoms_app.train.concept_table import describe_taken, list_rows, read_rows
from sdatoms_app.train.drafts import Draft, Picture
from sdatoms_app.train.labels import Labels
from sdatoms_app.train.listed import list_files, list_folders, list_passed
from sdatoms_app.train.masking import cut_shown, read_drawn, show_editor
from sdatoms_app.train.offered import CAPS
from sdatoms_app.train.subjects import list_digests
from sdatoms_app.train.trees import add_zip

__all__ = [
    "PicturesPart",
]

MARKS = {"fine": "✓ fine", "tiny": "△ tiny", "duplicate": "△ duplicate", "corrupt": "✗ corrupt"}


class PicturesPart:
    """The handlers of pictures; they keep nothing in memory, so a reload loses nothing.

    `show` and what builds on it return the pictures' part of the page: token, crops, checks,
    picture to edit, its caption, its concept, the table of concepts.

    Args:
        studio: names the base and the operator's models.
        drafts: folder of the drafts.
        places: folders whose pictures visitors may take.
    """

    def __init__(self, studio: Studio, drafts: Path, places: Sequence[Path]) -> None:
        self.studio, self.drafts, self.places = studio, drafts, places
        self.labels = Labels(studio.labellers)

    def open(self, token: str | None) -> Draft:
        return Draft(self.drafts, token)

    def list_folders(self) -> list[str]:
        return list(list_folders(self.places))

    def show(
        self, draft: Draft, chosen: str | None = None, refused: Sequence[str] = ()
    ) -> list[Any]:
        """The pictures' part of the page."""
        pictures = draft.list()
        checks = draft.check(self.find_side(draft), self.find_sizes(draft))
        pairs = list(zip(pictures, checks, strict=True))
        clear = draft.form.get("alpha_mask") is True
        crops = [(cut_shown(p, v, clear), mark(p, v)) for p, v in pairs if v.crop is not None]
        counts = {kind: sum(v.kind == kind for v in checks) for kind in MARKS}
        lines = [", ".join(f"{n} {kind}" for kind, n in counts.items() if n) or "no pictures yet"]
        lines += describe_taken(pictures)
        if pictures and draft.form.get("crop_style") == "random":
            lines.append("shown are the middles; parts are drawn at random")
        lines += [
            f"{mark(p, v)} · {p.name}: {rename(v.text, pictures)}{p.note and f'; {p.note}'}"
            for p, v in pairs
            if v.kind != "fine" or "," in v.text or p.mask or p.note
        ]
        lines += describe_extras(pictures)
        lines += [f"✗ left out · {line}" for line in refused]
        now = next((p for p in pictures if p.id == chosen), pictures[0] if pictures else None)
        choices = [(p.name, p.id) for p in pictures]
        caption = now.caption if now else ""
        label = f"Caption of {now.name}" if now else "Caption"
        return [
            draft.token,
            crops,
            "\n".join(lines),
            gr.Dropdown(choices=choices, value=now and now.id),
            gr.Textbox(value=caption, label=label),
            gr.Textbox(value=now.concept if now else ""),
            list_rows(draft.described),
        ]

    def find_sizes(self, draft: Draft) -> list[Size] | None:
        """Buckets that pictures are cut to; None for squares."""
        text = draft.form.get("aspect_ratio_buckets")
        if text != "auto":
            return None
        unit, grid = read_units(self.studio.base)
        try:
            return list_buckets(text, self.find_side(draft), grid, unit)
        except AtomError:  # said when the training is queued
            return None

    def find_side(self, draft: Draft) -> int:
        """Side in px of the training pictures: the form's, else the base's own."""
        side = str(draft.form.get("resolution") or "")
        known = side.isdecimal() and 8 <= int(side) <= CAPS["resolution"]
        return int(side) if known else read_resolution(self.studio.base)

    @show_errors
    def add_pictures(self, files: list[str] | None, token: str) -> list[Any]:
        """What `check_files` returns of an upload; the widget is emptied for the next one."""
        return [None, *self.check_files([Path(file) for file in files or []], token)]

    def check_files(self, paths: Sequence[Path], token: str) -> list[Any]:
        """Check pictures and keep them in a draft; returns what the page shows of it, up to the
        caption.

        Raises:
            AtomError: a zip cannot be read.
        """
        draft = self.open(token)
        zips = [path for path in paths if path.suffix.lower() == ".zip"]
        refused = draft.add([path for path in paths if path not in zips])
        for path in zips:
            refused += add_zip(draft, path)
        return self.show(draft, refused=refused)[:5]

    @show_errors
    def see_concepts(self, id: str | None, token: str) -> list[Any]:
        """The concept of a picture, and the table of all."""
        return self.show(self.open(token), id)[5:]

    @show_errors
    def add_folder(self, name: str | None, token: str) -> list[Any]:
        """Copy the pictures of a listed folder of the server into a draft."""
        files = self.find_files(name)
        draft = self.open(token)
        passed = list_passed(list_folders(self.places)[name or ""])
        return self.show(draft, refused=[*draft.add(files), *passed])

    def find_files(self, name: str | None) -> list[Path]:
        """Pictures and captions of a listed folder.

        Raises:
            AtomError: it is not listed, or none was chosen.
        """
        found = list_folders(self.places)
        if not name:
            raise AtomError("choose a folder first, then add it")
        if name not in found:
            raise AtomError(f"no folder {clip(str(name))!r} is listed")
        return list_files(found[name])

    @show_errors
    def try_subject(self, token: str, event: gr.SelectData) -> list[Any]:
        """The pictures of a bundled subject in place of another one's, and their prompt."""
        name = str(event.value)
        folder, about = read_subject(name)
        draft = self.open(token)
        if any(picture.id not in list_digests() for picture in draft.list()):
            raise AtomError("there are pictures of yours here; press “Remove all” before this")
        for picture in draft.list():
            draft.remove(picture.id)
        refused = draft.add(list_files(folder))
        return [*self.show(draft, refused=refused), about["instance_prompt"]]

    @show_errors
    def choose(self, id: str | None, token: str) -> list[Any]:
        return self.show(self.open(token), id)[4:6]

    @show_errors
    def choose_crop(self, token: str, event: gr.SelectData) -> list[Any]:
        draft = self.open(token)
        pictures = draft.list()
        index = event.index if isinstance(event.index, int) else -1
        chosen = pictures[index].id if 0 <= index < len(pictures) else None
        return self.show(draft, chosen)[3:6]

    @show_errors
    def keep_caption(self, id: str | None, text: str, token: str) -> None:
        """Write a picture's caption; of a picture that was just removed there is none to write."""
        draft = self.open(token)
        if id in {picture.id for picture in draft.list()}:
            draft.set_caption(id, text)

    @show_errors
    def keep_concept(self, id: str | None, name: str, token: str) -> list[list[Any]]:
        """Write what a picture shows; returns the table of concepts."""
        draft = self.open(token)
        if id in {picture.id for picture in draft.list()}:
            draft.set_concept(id, name or "")
        return list_rows(draft.described)

    @show_errors
    def keep_described(self, rows: list[list[Any]], token: str) -> None:
        """Write what is said of the concepts."""
        self.open(token).describe(read_rows(rows))

    @show_errors
    def open_mask(self, id: str | None, token: str) -> Any:
        """The picture to draw a mask on, with the mask it has."""
        return show_editor(self.find_picture(id, token))

    @show_errors
    def keep_mask(self, id: str | None, drawn: Any, token: str) -> list[Any]:
        """Keep what was painted as the picture's mask; nothing painted takes the mask away."""
        picture = self.find_picture(id, token)
        draft = self.open(token)
        draft.set_mask(picture.id, read_drawn(drawn))
        return self.show(draft, picture.id)

    @show_errors
    def caption_all(
        self,
        id: str | None,
        token: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Caption the pictures that have no caption, with the operator's model; what a visitor
        writes meanwhile stays."""
        draft = self.open(token)
        trigger = str(draft.form.get("trigger") or "")
        caption = self.labels.load_captioner()
        left = [picture for picture in draft.list() if not picture.caption]
        for number, picture in enumerate(left):
            progress((number, len(left)), desc=f"captioning {picture.name}", unit="pictures")
            text = put_trigger(trigger, caption(read_picture(picture.path)))
            draft.set_caption(picture.id, text, beside=True)
        return self.show(draft, id)

    @show_errors
    def mask_all(
        self,
        id: str | None,
        subject: str,
        token: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Mask the pictures that have no mask, with the operator's model."""
        draft = self.open(token)
        segment = self.labels.load_segmenter(subject)
        left = [picture for picture in draft.list() if not picture.mask]
        for number, picture in enumerate(left):
            progress((number, len(left)), desc=f"masking {picture.name}", unit="pictures")
            mask = segment(read_picture(picture.path))
            if mask.getbbox():
                draft.set_mask(picture.id, mask)
        return self.show(draft, id)

    def find_picture(self, id: str | None, token: str) -> Picture:
        """A picture of the draft.

        Raises:
            AtomError: there is none.
        """
        found = [picture for picture in self.open(token).list() if picture.id == id]
        if not found:
            raise AtomError("choose a picture first")
        return found[0]

    @show_errors
    def remove(self, id: str, token: str) -> list[Any]:
        draft = self.open(token)
        draft.remove(id)
        return self.show(draft)

    @show_errors
    def remove_all(self, token: str) -> list[Any]:
        draft = self.open(token)
        for picture in draft.list():
            draft.remove(picture.id)
        return self.show(draft)


def describe_extras(pictures: Sequence[Picture]) -> list[str]:
    """How many pictures have a mask or a caption of their own."""
    masks = sum(p.mask is not None for p in pictures)
    captions = sum(bool(p.caption) for p in pictures)
    found = []
    if masks:
        found.append(f"{count(masks, 'mask')}: where white, the picture counts; not trained on")
    if captions:
        found.append(f"{captions} of {count(len(pictures), 'picture')} with a caption of its own")
    return found


def mark(picture: Picture, found: PictureCheck) -> str:
    """What is to be said of a picture in a word or two."""
    return MARKS[found.kind] + (" · masked" if picture.mask else "")


def rename(text: str, pictures: Sequence[Picture]) -> str:
    """What was found, with the names visitors know instead of those on disk."""
    for picture in pictures:
        text = text.replace(picture.path.name, picture.name)
    return text
