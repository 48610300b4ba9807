"""One pipeline, one lock: checks what a visitor asks for, paints it, keeps it with its recipe."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms import AdapterSet, AtomError, AtomFile, load_atoms, read_atoms
from sdatoms.adapters.plan import Fit, fingerprint_base, judge_fit
from sdatoms.atoms.schedules import parse_schedule
from sdatoms.atoms.strengths import Strength
from sdatoms.diffusion.guidance import find_guidance
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.preview import Previewer
from sdatoms.diffusion.prompts import count_tokens
from sdatoms.diffusion.sizes import MAX_SIDE, choose_size, describe_choice, fit_size
from sdatoms.errors import first_line
from sdatoms.files.lora_file import read_lora_header
from sdatoms.pictures import read_picture
from sdatoms.storage import find_assets
from sdatoms_app.studio.bases import BaseChoice, Bases
from sdatoms_app.studio.handover import Handover
from sdatoms_app.studio.history import History, Kept
from sdatoms_app.studio.library import Entry, Library
from sdatoms_app.studio.orders import (
    MAX_SEED,
    Order,
    check_order,
    check_second_pass,
    list_paint_settings,
    make_recipe,
)
from sdatoms_app.studio.painting import Desk, Job
from sdatoms_app.studio.saved_forms import SavedForms

__all__ = [
    "Studio",
]

EVERY_BASE = ("dtype", "offload", "say")
"""Ways of opening that hold for every base."""


class Studio:
    """Holds the pipeline, opened on first use and shared by all visitors one at a time."""

    def __init__(
        self,
        base: str | None,
        library: Library,
        outputs: Path,
        *,
        models: Path | None = None,
        hub: bool = False,
        opening: Mapping[str, Any] | None = None,
        max_side: int = MAX_SIDE,
        handover: Handover | None = None,
        labellers: Mapping[str, str] | None = None,
        measures: bool = False,
    ) -> None:
        self.base = base
        self.max_side = max_side
        """The longest side that may be asked for, px."""
        self.labellers = dict(labellers or {})
        """Models that label pictures or measure trainings, by hub name or folder: `captioner`,
        `segmenter`, `evaluator`, `style_evaluator`."""
        self.measures = measures
        """Whether trainings are measured on this machine before anybody asks."""
        self.opening = dict(opening or {})
        """Arguments of `load_base`; those of one base's files are for the default alone."""
        self.bases = Bases(base, models, hub=hub)
        self.library = library
        self.outputs = outputs
        self.history = History(outputs)
        self.saved_forms = SavedForms(outputs / "presets")
        self.desk = Desk()
        self.handover = handover or Handover()
        self.lock = threading.Lock()
        """Held by whoever uses the pipeline."""
        self._pipe: Any = None
        self._opened: BaseChoice | None = None
        self._previewer: Previewer | None = None
        self._prints: dict[str, list[float]] = {}
        self._fits: dict[tuple[str, Entry], Fit] = {}

    def open(self, base: str = "") -> Any:
        """The pipeline of that base; reads it from disk unless it is the one at hand.

        Whoever calls this holds `lock`.

        Raises:
            AtomError: no such base is listed, or it does not open; the one at hand stays.
        """
        choice = self.bases.find(base)
        self.settle()
        if self._pipe is None or choice != self._opened:
            own = choice.where == self.base
            given = {k: v for k, v in self.opening.items() if own or k in EVERY_BASE}
            pipe = open_base(choice, self.handover.choose_opening(given))
            self._pipe, self._opened = pipe, choice
            self._previewer = Previewer(pipe, list_examples())
            self._prints = fingerprint_base(pipe)
        return self._pipe

    def settle(self) -> None:
        """See that the pipeline lies where trainings leave it room, adapters and all.

        Whoever calls this holds `lock`.
        """
        if not self.handover.settle(self._pipe):
            self._pipe = None  # opened in the training's shadow; it is opened anew at its own place

    def hand_over(self) -> bool:
        """Give the device to a training that begins, or take it back after one, unless somebody
        paints just now; tells whether it is done."""
        if self.handover.settled:
            return True
        if not self.lock.acquire(blocking=False):
            return False
        try:
            self.settle()
        finally:
            self.lock.release()
        return True

    @contextmanager
    def lend(self, borrower: str) -> Iterator[None]:
        """Leave the device to `borrower` for the time of a `with` block, as to a training."""
        self.handover.borrower = borrower
        try:
            with self.lock:
                self.settle()
            yield
        finally:
            self.handover.borrower = None

    def check(self, order: Order) -> list[tuple[Entry, Strength]]:
        """The atom files of an order.

        Raises:
            AtomError: as `check_order`, or a base or file is not listed.
        """
        check_order(order, self.max_side)
        self.bases.find(order.base)
        check_second_pass(order, self.bases.find_side(order.base), self.max_side)
        return [(self.library.find(id), strength) for id, strength in order.adapters]

    def paint(self, order: Order, job: Job | None = None) -> Iterator[Kept]:
        """Paint the pictures of an order and keep each as soon as it is done.

        `job` is told of every step and of previews, and cancels between two steps.

        Raises:
            AtomError: as `check`, or a file does not fit the base. The pipeline stays usable.
        """
        job = job or Job(lambda _: None)
        entries = self.check(order)
        job.tell(message="waiting for the pictures before")
        self.handover.take_turn(job, self.lock)
        try:
            job.tell(message="opening the base")
            pipe = self.open(order.base)
            if order.guidance_scale is None:
                order = replace(order, guidance_scale=find_guidance(pipe))
            job.check()
            remarks = self._load(entries)
            seen = count_tokens(pipe, order.prompt)
            if seen.windows > 1:
                remarks.append(
                    f"The prompt's {seen.tokens} tokens are read in {seen.windows} windows of "
                    f"{seen.window}."
                )
            given = (order.width or None, order.height or None)
            if said := describe_choice(given, choose_size(pipe, *given)):
                remarks.append(f"{said}.")
            loras = [entry.id for entry, _ in entries if entry.rank]
            if order.embed and loras:
                remarks.append(f"LoRA files do not go inside pictures: {', '.join(loras)}.")
            job.tell(remarks=tuple(remarks))
            for first in range(0, order.batch, order.batch_size):
                count = min(order.batch_size, order.batch - first)
                yield from self._paint_batch(pipe, order, entries, first, count, job)
        finally:
            self.lock.release()

    def _paint_batch(
        self,
        pipe: Any,
        order: Order,
        entries: list[tuple[Entry, Strength]],
        first: int,
        count: int,
        job: Job,
    ) -> list[Kept]:
        """Paint `count` pictures at once, the order's `first` and those after it."""
        previewer = self._previewer
        assert previewer is not None and self._opened is not None
        seeds = [(order.seed + first + k) % (MAX_SEED + 1) for k in range(count)]
        settings = list_paint_settings(order)

        def tell(done: int, total: int) -> None:
            job.check()
            names = f"{first + 1}" if count == 1 else f"{first + 1} to {first + count}"
            which = f", picture {names} of {order.batch}" if order.batch > 1 else ""
            job.tell(
                done=first * total + done * count,
                total=order.batch * total,
                message=f"step {done} of {total}{which}",
            )
            if job.wants_preview():
                job.tell(preview=previewer.draw())

        job.tell(message="starting")
        pictures = paint(
            pipe,
            [order.prompt] * count,
            seeds,
            **settings,
            batch_size=count,
            callback=tell,
            previewer=previewer,
            strength_schedules={
                name_adapter(entry): parse_schedule(order.strength_schedules[entry.id])
                for entry, _ in entries
                if entry.id in order.strength_schedules
            },
        )
        shape = order.init_picture.size if order.init_picture else None
        size = fit_size(pipe, settings["width"], settings["height"], shape)
        inside = [entry for entry, _ in entries if order.embed and not entry.rank]
        embedded = [read_atoms(entry.path) for entry in inside]
        base = (self._opened.id, self._prints)
        return [
            self.history.keep(
                picture,
                replace(
                    make_recipe(order, entries, size, seeds[k], base),
                    batch_size=count,
                    batch_position=k,
                ),
                embedded,
            )
            for k, picture in enumerate(pictures)
        ]

    def _load(self, entries: list[tuple[Entry, Strength]]) -> list[str]:
        """Make the pipeline carry these files and no others; files that stay are not read again.

        Returns:
            What the library warns of.
        """
        adapters = AdapterSet(self._pipe)
        wanted = {name_adapter(entry): (entry, s) for entry, s in entries}
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for name in adapters.names:
                    if name not in wanted:
                        adapters.remove(name)
                for name, (entry, strength) in wanted.items():
                    if name in adapters.names:
                        adapters.set_strengths({name: strength})
                    else:
                        load_atoms(self._pipe, entry.path, name=name, strength=strength)
        except BaseException:
            adapters.clear()
            raise
        return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]

    def paint_each(
        self,
        files: Sequence[tuple[str, AtomFile]],
        prompt: str,
        seed: int,
        steps: int,
        tell: Callable[[int, int, str], None],
    ) -> list[tuple[Image.Image, str]]:
        """The default base and each file alone at strength 1, from one seed; the pipeline is left
        as the base.

        Args:
            files: label and file.
            tell: is told before each picture: which, of how many, its label.

        Raises:
            AtomError: a file does not fit the base.
        """
        wanted: list[tuple[str, AtomFile | None]] = [("base", None), *files]
        shown = []
        with self.handover.hold(self.lock, lambda text: tell(0, len(wanted), text)):
            pipe = self.open()
            adapters = AdapterSet(pipe)
            adapters.clear()
            for number, (label, file) in enumerate(wanted):
                tell(number, len(wanted), label)
                try:
                    if file is not None:
                        load_atoms(pipe, file, name=label)
                    picture = paint(pipe, [prompt], [seed], num_inference_steps=steps)[0]
                finally:
                    adapters.clear()
                shown.append((picture, label))
        return shown

    def judge(self, entry: Entry) -> Fit | None:
        """Whether a file fits the base at hand; None before the first base is opened."""
        if self._pipe is None or self._opened is None:
            return None
        key = (self._opened.id, entry)
        if key not in self._fits:
            file = read_lora_header(entry.path) if entry.rank else read_atoms(entry.path)
            if file is None:
                raise AtomError(f"the file {entry.id!r} changed; refresh the list")
            self._fits[key] = judge_fit(file, self._pipe)
        return self._fits[key]

    def read_fingerprint(self, base: str) -> dict[str, list[float]]:
        """The fingerprint of a base, opened for it unless it is the one at hand."""
        if self._opened is not None and self.bases.find(base) == self._opened:
            return self._prints  # without waiting for whoever paints
        with self.lock:
            self.open(base)
            return self._prints


def name_adapter(entry: Entry) -> str:
    """What a listed file is called in the pipeline: another where its content changed."""
    return f"{entry.id} {entry.sha256[:12]}"


def open_base(choice: BaseChoice, opening: Mapping[str, Any]) -> Any:
    """The pipeline of a listed base.

    Raises:
        AtomError: it does not open, whatever the libraries that read it make of it.
    """
    try:
        return load_base(choice.where, inpainting=True, **opening)
    except AtomError:
        raise
    except Exception as error:
        raise AtomError(f"the base {choice.id!r} cannot be opened: {first_line(error)}") from None


def list_examples() -> list[Image.Image]:
    """A few bundled pictures, to fit the colours of previews on."""
    paths = sorted(find_assets().glob("subjects/*/*.png"))
    return [read_picture(path) for path in paths[:: max(1, len(paths) // 24)]]
