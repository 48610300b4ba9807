"""What the Train tab does: drafts of pictures, the cost of settings, a place in the queue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sdatoms import AtomError
from sdatoms.diffusion.family import read_resolution, read_units
from sdatoms.errors import clip
from sdatoms.pictures import read_picture
from sdatoms.storage import find_assets
from sdatoms.training.buckets import Size, list_buckets
from sdatoms.training.config import TrainConfig
from sdatoms.training.labelling import put_trigger
from sdatoms.training.picture_checks import PictureCheck
from sdatoms.training.presets import expand_preset
from sdatoms.training.real_presets import REAL_PRESETS
from sdatoms_app.queue.queue import INSTANCES, Queue
from sdatoms_app.queue.training import Training, read_request
from sdatoms_app.shared.html import count
from sdatoms_app.shared.messages import show_errors
from sdatoms_app.studio.studio import Studio
from sdatoms_app.train.concept_table import describe_taken, list_rows, read_rows
from sdatoms_app.train.drafts import (
    Draft,
    Picture,
    drop_stray_captions,
    list_files,
    list_folders,
    list_passed,
)
from sdatoms_app.train.form import (
    PRESETS,
    change_preset,
    check_settings,
    list_settings,
    read_defaults,
    read_preset,
    show_value,
)
from sdatoms_app.train.labels import Labels
from sdatoms_app.train.masking import cut_shown, read_drawn, show_editor
from sdatoms_app.train.measure import Measurements, describe_facts, quote_cost, sample_folder
from sdatoms_app.train.offered import CAPS, PLAIN
from sdatoms_app.train.trees import add_tree, add_zip

__all__ = [
    "TrainPage",
    "open_queue",
]

MARKS = {"fine": "✓ fine", "tiny": "△ tiny", "duplicate": "△ duplicate", "corrupt": "✗ corrupt"}
MEASURING = "the measuring of settings"


def open_queue(studio: Studio) -> Queue:
    """The trainings of this app: below its folder of atom files, so that results are listed."""
    return Queue(studio.library.folder / "runs")


class TrainPage:
    """The tab's handlers; they keep nothing in memory, so a reload or a restart loses nothing.

    `show` and what builds on it return the pictures' part of the page: token, crops, checks,
    picture to edit, its caption, its concept, the table of concepts.
    """

    def __init__(self, studio: Studio, roots: Sequence[Path]) -> None:
        self.studio = studio
        self.queue = open_queue(studio)
        self.measured = Measurements(self.queue.root / ".measured.json")
        self.drafts = self.queue.root / ".drafts"
        self.labels = Labels(studio.labellers)
        self.places = [*roots, find_assets() / "subjects"]
        self.folded = [name for name in list_settings() if name not in PLAIN]
        self.names = [*PLAIN, *self.folded]
        """Every setting of the form, in the order its values come in."""

    def open(self, token: str | None) -> Draft:
        return Draft(self.drafts, token)

    def list_folders(self) -> list[str]:
        return list(list_folders(self.places))

    def name_presets(self) -> list[str]:
        """Presets that are meant for the operator's base, or for any."""
        side = read_resolution(self.studio.base) if self.studio.base else 0
        real = {name: REAL_PRESETS.get(name.lower()) for name in PRESETS}
        return [name for name, preset in real.items() if preset is None or preset.side == side]

    def list_presets(self) -> list[tuple[str, str]]:
        """Presets with their steps and what was measured for them."""
        found = []
        for name in self.name_presets():
            settings = self.with_base(read_preset(name))
            facts = self.measured.find(settings)
            quoted = "" if self.studio.base else quote_cost(name)
            cost = f" · {describe_facts(facts, brief=True)}" if facts else quoted
            found.append((f"{name} · {settings['max_train_steps']} steps{cost}", name))
        return found

    def with_base(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings with the operator's base and evaluators."""
        base, models = self.studio.base, self.studio.labellers
        measured = {n: models[n] for n in ("evaluator", "style_evaluator") if n in models}
        return settings | measured | ({"pretrained_model_name_or_path": base} if base else {})

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        return check_settings(dict(zip(self.names, values, strict=True)))

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
    def load(self, token: str | None) -> list[Any]:
        """The draft and the settings of a page that is opened anew."""
        draft = self.open(token)
        form = draft.form
        values = [form.get(name, gr.skip()) for name in self.names]
        preset = form.get("preset")
        chosen = preset if preset in PRESETS else "Balanced"
        return [*self.show(draft), gr.Radio(choices=self.list_presets(), value=chosen), *values]

    @show_errors
    def add_pictures(self, files: list[str] | None, token: str) -> list[Any]:
        """Check pictures and keep them in a draft; captions are .txt files of the same names."""
        draft = self.open(token)
        paths = [Path(file) for file in files or []]
        zips = [path for path in paths if path.suffix.lower() == ".zip"]
        refused = draft.add([path for path in paths if path not in zips])
        for path in zips:
            refused += add_zip(draft, path)
        return [None, *self.show(draft, refused=refused)[:5]]

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
            AtomError: it is not listed.
        """
        found = list_folders(self.places)
        if name not in found:
            raise AtomError(f"no folder {clip(str(name))!r} is listed")
        return list_files(found[name])

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
    def see_crops(self, id: str | None, token: str, preset: str, *values: Any) -> list[Any]:
        """The crops of settings that were just changed."""
        draft = self.open(token)
        draft.keep_form(dict(zip(self.names, values, strict=True)) | {"preset": preset})
        return self.show(draft, id)

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

    @show_errors
    def keep_form(self, token: str, preset: str, *values: Any) -> tuple[str, str]:
        """Keep the settings with the draft; returns its token and what they cost."""
        draft = self.open(token)
        draft.keep_form(dict(zip(self.names, values, strict=True)) | {"preset": preset})
        return draft.token, self.describe_cost(values, len(draft.list()))

    def describe_cost(self, values: Sequence[Any], pictures: int) -> str:
        try:
            settings = self.read(values)
        except AtomError as error:
            return str(error)
        config = TrainConfig(**settings)
        batch = config.train_batch_size * config.gradient_accumulation_steps
        views = config.max_train_steps * batch
        each = f"; each of {pictures} is seen {views / pictures:.0f} times" if pictures else ""
        plan = f"{count(config.max_train_steps, 'step')} of {count(batch, 'picture')}{each}"
        return f"{plan}\n{describe_facts(self.measured.find(self.with_base(settings)))}"

    def use_preset(self, name: str, prompt: str) -> list[Any]:
        """The trainer's defaults with the preset's changes, for the folded settings and for what
        keeps the class."""
        changes = expand_preset(name.lower(), {"instance_prompt": prompt})
        values = read_defaults() | changes
        names = [*self.folded, "with_prior_preservation", "class_prompt"]
        return [show_value(values[n]) for n in names]

    @show_errors
    def measure(self, token: str, *values: Any) -> str:
        """Minutes and memory of the settings, from two real steps in a process of their own."""
        draft = self.open(token)
        settings = self.read(values)
        self.check_idle()
        with self.studio.lend(MEASURING):
            self.measured.measure(self.with_base(settings), sample_folder(draft))
        return self.describe_cost(values, len(draft.list()))

    @show_errors
    def measure_presets(self, token: str, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        """Measure every preset on this machine; each is done once."""
        draft = self.open(token)
        self.check_idle()
        names = self.name_presets()
        for number, name in enumerate(names):
            progress((number, len(names)), desc=f"measuring {name}")
            settings = self.with_base(read_preset(name))
            with self.studio.lend(MEASURING):
                self.measured.measure(settings, sample_folder(draft))
        return gr.Radio(choices=self.list_presets())

    def check_idle(self) -> None:
        """Refuse to measure beside a training: both would be slow, and the numbers wrong."""
        if self.queue.find_running() is not None:
            raise AtomError("a training is running; measure when it has ended")

    @show_errors
    def start(self, token: str, *values: Any) -> tuple[str, str]:
        """Queue a training of a draft's pictures; returns a message and the run's id."""
        draft = self.open(token)
        training = self.enqueue(draft, self.read(values))
        place = f"behind {count(training.place, 'other')}" if training.place else "next"
        return f"{training.id} is queued, {place}; see it under Runs", training.id

    def enqueue(self, draft: Draft, settings: dict[str, Any]) -> Training:
        """Queue a training of a draft's pictures.

        Raises:
            AtomError: a prompt is missing, there are no pictures, or the queue is full.
        """
        if not settings.get("instance_prompt"):
            raise AtomError("the prompt of the pictures is empty; name what they show")
        return self.queue.add(settings["instance_prompt"], self.with_base(settings), draft.fill)

    def train_folder(self, folder: str, preset: str, settings: dict[str, Any]) -> Training:
        """Queue a training of a listed folder with a preset and changes to it.

        Raises:
            AtomError: as `train_files`, or the folder is not listed.
        """
        return self.train_files(self.find_files(folder), preset, settings)

    def train_files(self, files: Sequence[Path], preset: str, settings: dict[str, Any]) -> Training:
        """Queue a training of pictures with a preset and changes to it.

        Raises:
            AtomError: as `enqueue`; the preset is not listed, a setting does not fit, or a picture
                cannot be used.
        """
        chosen = change_preset(preset, settings)
        draft = self.open(None)
        refused = draft.add(drop_stray_captions(files))
        if refused:
            raise AtomError("; ".join(refused[:5]))
        return self.enqueue(draft, chosen)

    def measure_preset(self, preset: str, settings: dict[str, Any]) -> dict[str, str]:
        """What a preset with changes costs.

        Raises:
            AtomError: the preset is not listed, a setting does not fit, or a training is running.
        """
        chosen = self.with_base(change_preset(preset, settings))
        self.check_idle()
        with self.studio.lend(MEASURING):
            return self.measured.measure(chosen, sample_folder(self.open(None)))

    @show_errors
    def fill(self, id: str | None, token: str) -> list[Any]:
        """The pictures and settings of a run, for another training like it."""
        training = self.queue.find(id or "")
        request = read_request(training.path)
        draft = self.open(token)
        folder = training.path / INSTANCES
        if folder.is_dir():
            for picture in draft.list():
                draft.remove(picture.id)
            add_tree(draft, folder)
        values = read_defaults() | request
        return [*self.show(draft), *(show_value(values[n]) for n in self.names)]


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
