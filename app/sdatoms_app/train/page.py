"""What the Train tab does: drafts of pictures, the cost of settings, a place in the queue."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sdatoms import AtomError
from sdatoms.diffusion.family import read_resolution
from sdatoms.storage import find_assets
from sdatoms.training.config import TrainConfig
from sdatoms.training.presets import expand_preset
from sdatoms.training.real_presets import REAL_PRESETS
from sdatoms_app.queue.queue import INSTANCES, Queue
from sdatoms_app.queue.training import Training, read_request
from sdatoms_app.shared.html import count
from sdatoms_app.shared.messages import show_errors
from sdatoms_app.studio.studio import Studio
from sdatoms_app.train.drafts import Draft
from sdatoms_app.train.form import (
    FIRST,
    PRESETS,
    change_preset,
    check_settings,
    list_settings,
    read_defaults,
    read_first,
    read_preset,
    show_value,
)
from sdatoms_app.train.listed import drop_stray_captions
from sdatoms_app.train.measure import (
    Measurements,
    describe_facts,
    describe_minutes,
    sample_folder,
)
from sdatoms_app.train.offered import PLAIN
from sdatoms_app.train.pictures import PicturesPart
from sdatoms_app.train.subjects import ask_known, find_subject
from sdatoms_app.train.trees import add_tree

__all__ = [
    "TrainPage",
    "open_queue",
]

MEASURING = "the measuring of settings"


def open_queue(studio: Studio) -> Queue:
    """The trainings of this app: below its folder of atom files, so that results are listed."""
    return Queue(studio.library.folder / "runs")


class TrainPage(PicturesPart):
    """The tab's handlers: those of the pictures, and of settings, costs and the queue."""

    def __init__(self, studio: Studio, roots: Sequence[Path]) -> None:
        self.queue = open_queue(studio)
        places = [*roots, find_assets() / "subjects"]
        super().__init__(studio, self.queue.root / ".drafts", places)
        self.measured = Measurements(self.queue.root / ".measured.json")
        self.measuring = threading.Lock()
        """Held while settings are measured that nobody asked to."""
        self.folded = [name for name in list_settings() if name not in PLAIN]
        self.names = [*PLAIN, *self.folded]
        """Every setting of the form, in the order its values come in."""

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
            cost = describe_facts(self.measured.find(settings), brief=True)
            words = [name, f"{settings['max_train_steps']} steps", *([cost] if cost else [])]
            found.append((" · ".join(words), name))
        return found

    def with_base(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings with the operator's base and evaluators."""
        base, models = self.studio.base, self.studio.labellers
        measured = {n: models[n] for n in ("evaluator", "style_evaluator") if n in models}
        return settings | measured | ({"pretrained_model_name_or_path": base} if base else {})

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        return check_settings(dict(zip(self.names, values, strict=True)))

    @show_errors
    def load(self, token: str | None) -> list[Any]:
        """The draft of a page that is opened anew, and the names of those of its settings that
        differ from the first preset's, which stand there already."""
        draft = self.open(token)
        preset = draft.form.get("preset")
        chosen = preset if preset in PRESETS else FIRST
        names = " ".join(self.find_changed(draft))
        return [*self.show(draft), gr.Radio(choices=self.list_presets(), value=chosen), names]

    @show_errors
    def restore(self, token: str) -> list[Any]:
        """What was filled in before the page was opened anew."""
        changed = self.find_changed(self.open(token))
        return [changed.get(name, gr.skip()) for name in self.names]

    def find_changed(self, draft: Draft) -> dict[str, Any]:
        """The settings of a draft that a page does not show when it opens."""
        first, form = read_first(), draft.form
        held = {name: show_value(form[name]) for name in self.names if name in form}
        return {name: value for name, value in held.items() if value != first[name]}

    @show_errors
    def see_crops(self, id: str | None, token: str, preset: str, *values: Any) -> list[Any]:
        """The crops of settings that were just changed."""
        draft = self.open(token)
        draft.keep_form(dict(zip(self.names, values, strict=True)) | {"preset": preset})
        return self.show(draft, id)

    @show_errors
    def keep_form(self, token: str, preset: str, *values: Any) -> tuple[str, str]:
        """Keep the settings with the draft; returns its token and what they cost."""
        draft = self.open(token)
        draft.keep_form(dict(zip(self.names, values, strict=True)) | {"preset": preset})
        return draft.token, self.describe_cost(values, len(draft.list()))

    def describe_cost(self, values: Sequence[Any], pictures: int) -> str:
        """What Start will do and how long it takes here, and below it what it takes else."""
        try:
            settings = self.read(values)
        except AtomError as error:
            return str(error)
        config = TrainConfig(**settings)
        batch = config.train_batch_size * config.gradient_accumulation_steps
        steps = count(config.max_train_steps, "step")
        facts = self.measured.find(self.with_base(settings))
        long = describe_minutes(facts)
        if not pictures:
            ready = f": {long}" if long else ""
            plan = f"Add pictures first. With these settings Start then trains {steps}{ready}."
            return f"{plan}\n{self.describe_rest(facts)}"
        each = f"each is seen {config.max_train_steps * batch / pictures:.0f} times"
        taken = f": {long}, samples aside" if long else ""
        what = f"Start trains {steps} on {count(pictures, 'picture')} ({each}){taken}."
        after = "Runs shows how it goes; the adapter is then listed on the Generate tab."
        return f"{what} {after}\n{self.describe_rest(facts)}"

    def describe_rest(self, facts: dict[str, str] | None) -> str:
        if facts:
            return f"It takes {describe_facts(facts)}."
        if self.measuring.locked():
            return "How long it takes on this machine is being measured."
        return "How long it takes on this machine is not measured yet."

    @show_errors
    def measure_quietly(self, token: str, *values: Any) -> list[Any]:
        """Begin to measure the settings in the background, where nobody has before and the machine
        is idle; the costs as they are known, and whether to look again."""
        draft = self.open(token)
        try:
            settings = self.with_base(self.read(values))
        except AtomError:
            settings = None
        wanted = settings is not None and self.studio.measures and not self.measured.find(settings)
        if wanted and self.queue.find_running() is None and self.measuring.acquire(blocking=False):
            work = (settings, sample_folder(draft))
            threading.Thread(target=self._measure_quietly, args=work, daemon=True).start()
        return self.look_measured(token, *values)

    def _measure_quietly(self, settings: dict[str, Any], pictures: Path) -> None:
        try:
            with contextlib.suppress(AtomError):  # whoever starts the training is told
                self.measured.measure(settings, pictures)
        finally:
            self.measuring.release()

    @show_errors
    def look_measured(self, token: str, *values: Any) -> list[Any]:
        """The cost of the settings, the presets, and a timer that runs while these may change."""
        under_way = self.measuring.locked()
        cost = self.describe_cost(values, len(self.open(token).list()))
        presets = gr.skip() if under_way else gr.Radio(choices=self.list_presets())
        return [cost, presets, gr.Timer(active=under_way)]

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
            self.measured.measure(self.with_base(settings), sample_folder(draft), anew=True)
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
            raise AtomError(
                "the instance prompt is empty; name what the pictures show, with a trigger word"
            )
        subject = find_subject([picture.id for picture in draft.list()])
        asked = ask_known(self.with_base(settings), subject)
        return self.queue.add(settings["instance_prompt"], asked, draft.fill)

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
