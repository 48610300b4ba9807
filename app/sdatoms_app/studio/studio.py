"""One pipeline, one lock: checks what a visitor asks for, paints it, keeps it with its recipe."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms import AdapterSet, AtomError, AtomFile, load_atoms, read_atoms
from sdatoms.adapters.plan import Fit, fingerprint_base, judge_fit
from sdatoms.atoms.strengths import Strength
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.preview import Previewer
from sdatoms.diffusion.prompts import count_tokens
from sdatoms.errors import first_line
from sdatoms.pictures import read_picture
from sdatoms.storage import find_assets
from sdatoms_app.studio.bases import BaseChoice, Bases
from sdatoms_app.studio.history import History, Kept
from sdatoms_app.studio.library import Entry, Library
from sdatoms_app.studio.orders import MAX_SEED, Order, check_order, list_paint_settings, make_recipe
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
        labellers: Mapping[str, str] | None = None,
    ) -> None:
        self.base = base
        self.labellers = dict(labellers or {})
        """Models that label pictures, by hub name or folder: `captioner`, `segmenter`."""
        self.opening = dict(opening or {})
        """Arguments of `load_base`; those of one base's files are for the default alone."""
        self.bases = Bases(base, models, hub=hub)
        self.library = library
        self.outputs = outputs
        self.history = History(outputs)
        self.saved_forms = SavedForms(outputs / "presets")
        self.desk = Desk()
        self.lock = threading.Lock()
        """Held by whoever uses the pipeline."""
        self._pipe: Any = None
        self._opened: BaseChoice | None = None
        self._previewer: Previewer | None = None
        self._prints: dict[str, list[float]] = {}
        self._fits: dict[tuple[str, str], Fit] = {}

    def open(self, base: str = "") -> Any:
        """The pipeline of that base; reads it from disk unless it is the one at hand.

        Whoever calls this holds `lock`.

        Raises:
            AtomError: no such base is listed, or it does not open; the one at hand stays.
        """
        choice = self.bases.find(base)
        if self._pipe is None or choice != self._opened:
            own = choice.where == self.base
            given = self.opening.items()
            pipe = open_base(choice, {k: v for k, v in given if own or k in EVERY_BASE})
            self._pipe, self._opened = pipe, choice
            self._previewer = Previewer(pipe, list_examples())
            self._prints = fingerprint_base(pipe)
        return self._pipe

    def check(self, order: Order) -> list[tuple[Entry, Strength]]:
        """The atom files of an order.

        Raises:
            AtomError: as `check_order`, or a base or file is not listed.
        """
        check_order(order)
        self.bases.find(order.base)
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
        job.take_turn(self.lock)
        try:
            job.tell(message="opening the base")
            pipe = self.open(order.base)
            job.check()
            remarks = self._load(entries)
            seen = count_tokens(pipe, order.prompt)
            if seen.windows > 1:
                remarks.append(
                    f"The prompt's {seen.tokens} tokens are read in {seen.windows} windows of "
                    f"{seen.window}."
                )
            job.tell(remarks=tuple(remarks))
            for number in range(order.batch):
                yield self._paint_one(pipe, order, entries, number, job)
        finally:
            self.lock.release()

    def _paint_one(
        self,
        pipe: Any,
        order: Order,
        entries: list[tuple[Entry, Strength]],
        number: int,
        job: Job,
    ) -> Kept:
        previewer = self._previewer
        assert previewer is not None and self._opened is not None
        seed = (order.seed + number) % (MAX_SEED + 1)

        def tell(done: int, total: int) -> None:
            job.check()
            which = f", picture {number + 1} of {order.batch}" if order.batch > 1 else ""
            job.tell(
                done=number * total + done,
                total=order.batch * total,
                message=f"step {done} of {total}{which}",
            )
            if job.wants_preview():
                job.tell(preview=previewer.draw())

        job.tell(message="starting")
        picture = paint(
            pipe,
            [order.prompt],
            [seed],
            **list_paint_settings(order),
            callback=tell,
            previewer=previewer,
        )[0]
        recipe = make_recipe(order, entries, picture, seed, (self._opened.id, self._prints))
        embedded = [read_atoms(entry.path) for entry, _ in entries] if order.embed else []
        return self.history.keep(picture, recipe, embedded)

    def _load(self, entries: list[tuple[Entry, Strength]]) -> list[str]:
        """Make the pipeline carry these files and no others; files that stay are not read again.

        Returns:
            What the library warns of.
        """
        adapters = AdapterSet(self._pipe)
        wanted = {f"{entry.id} {entry.sha256[:12]}": (entry, s) for entry, s in entries}
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
        with self.lock:
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
        key = (self._opened.id, entry.sha256)
        if key not in self._fits:
            self._fits[key] = judge_fit(read_atoms(entry.path), self._pipe)
        return self._fits[key]

    def read_fingerprint(self, base: str) -> dict[str, list[float]]:
        """The fingerprint of a base, opened for it unless it is the one at hand."""
        if self._opened is not None and self.bases.find(base) == self._opened:
            return self._prints  # without waiting for whoever paints
        with self.lock:
            self.open(base)
            return self._prints


def open_base(choice: BaseChoice, opening: Mapping[str, Any]) -> Any:
    """The pipeline of a listed base.

    Raises:
        AtomError: it does not open, whatever the libraries that read it make of it.
    """
    try:
        return load_base(choice.where, **opening)
    except AtomError:
        raise
    except Exception as error:
        raise AtomError(f"the base {choice.id!r} cannot be opened: {first_line(error)}") from None


def list_examples() -> list[Image.Image]:
    """A few bundled pictures, to fit the colours of previews on."""
    paths = sorted(find_assets().glob("subjects/*/*.png"))
    return [read_picture(path) for path in paths[:: max(1, len(paths) // 24)]]
