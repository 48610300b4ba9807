"""One pipeline, one lock: checks what a visitor asks for, paints it, keeps it with its recipe."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms import AdapterSet, AtomError, load_atoms, read_atoms
from sdatoms.adapters.plan import Fit, fingerprint_base, judge_fit
from sdatoms.atoms.strengths import Strength
from sdatoms.diffusion.pipeline import SCHEDULERS, load_base, paint
from sdatoms.diffusion.preview import Previewer
from sdatoms.diffusion.prompts import count_tokens, parse_prompt
from sdatoms.diffusion.recipe import Recipe, UsedAtoms, hash_picture, list_versions
from sdatoms.errors import clip
from sdatoms.pictures import read_picture
from sdatoms.storage import find_assets
from sdatoms_app.studio.bases import BaseChoice, Bases
from sdatoms_app.studio.history import History, Kept
from sdatoms_app.studio.library import Entry, Library
from sdatoms_app.studio.painting import Desk, Job
from sdatoms_app.studio.saved_forms import Presets

__all__ = [
    "MAX_ADAPTERS",
    "MAX_BATCH",
    "MAX_PROMPT",
    "MAX_SEED",
    "MAX_SIDE",
    "MAX_STEPS",
    "MAX_STRENGTH",
    "Order",
    "Studio",
]

MAX_STEPS = 100
MAX_PROMPT = 2000
MAX_BATCH = 8
MAX_SIDE = 1024
MAX_ADAPTERS = 5
MAX_SEED = 2**32 - 1
MAX_STRENGTH = 10.0


@dataclass(frozen=True)
class Order:
    """What a visitor asks for; `Studio.check` says whether it can be had."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    batch: int = 1
    """Pictures, with rising seeds."""
    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    scheduler: str = "DDIM"
    width: int = 0
    """px, a multiple of 8; 0: the base's own."""
    height: int = 0
    base: str = ""
    """Id of a listed base; empty: the default."""
    adapters: tuple[tuple[str, Strength], ...] = ()
    """Ids of listed atom files, with their strengths."""
    init_picture: Image.Image | None = None
    denoising_strength: float = 0.6
    embed: bool = False
    """Put the atom files inside the PNGs."""


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
    ) -> None:
        self.base = base
        self.bases = Bases(base, models, hub=hub)
        self.library = library
        self.outputs = outputs
        self.history = History(outputs)
        self.presets = Presets(outputs / "presets")
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
            pipe = load_base(choice.where)
            self._pipe, self._opened = pipe, choice
            self._previewer = Previewer(pipe, list_examples())
            self._prints = fingerprint_base(pipe)
        return self._pipe

    def check(self, order: Order) -> list[tuple[Entry, Strength]]:
        """The atom files of an order.

        Raises:
            AtomError: the prompt is empty or too long, a number is out of range, a base or file is
                not listed.
        """
        for what, text in (("prompt", order.prompt), ("negative prompt", order.negative_prompt)):
            if len(text) > MAX_PROMPT:
                raise AtomError(f"the {what} has {len(text)} characters; it takes {MAX_PROMPT}")
            parse_prompt(text)
        if not order.prompt.strip():
            raise AtomError("the prompt is empty; say what to paint")
        for what, number, low, high in (
            ("steps", order.num_inference_steps, 1, MAX_STEPS),
            ("guidance", order.guidance_scale, 0, 30),
            ("the seed", order.seed, 0, MAX_SEED),
            ("the number of pictures", order.batch, 1, MAX_BATCH),
            ("the share painted anew", order.denoising_strength, 0.01, 1),
            ("the number of atom files", len(order.adapters), 0, MAX_ADAPTERS),
            ("the width", order.width or 64, 64, MAX_SIDE),
            ("the height", order.height or 64, 64, MAX_SIDE),
        ):
            if not low <= number <= high:  # NaN is refused too
                raise AtomError(f"{what} is {number}; it goes from {low} to {high}")
        if order.width % 8 or order.height % 8:
            raise AtomError(
                f"the size is {order.width}×{order.height} px; sides are multiples of 8"
            )
        if order.scheduler not in SCHEDULERS:
            raise AtomError(
                f"the scheduler is {clip(order.scheduler)!r}; known are {', '.join(SCHEDULERS)}"
            )
        self.bases.find(order.base)
        ids = [id for id, _ in order.adapters]
        if len(set(ids)) < len(ids):
            raise AtomError("an atom file is listed twice; raise its strength instead")
        for id, strength in order.adapters:
            numbers = strength.values() if isinstance(strength, Mapping) else [strength]
            if not all(abs(number) <= MAX_STRENGTH for number in numbers):
                raise AtomError(
                    f"the strength of {clip(id)!r} goes from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}"
                )
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
            negative_prompt=order.negative_prompt or None,
            num_inference_steps=order.num_inference_steps,
            guidance_scale=order.guidance_scale,
            scheduler=order.scheduler,
            width=order.width or None,
            height=order.height or None,
            init_picture=order.init_picture,
            denoising_strength=order.denoising_strength,
            callback=tell,
            previewer=previewer,
        )[0]
        anew = order.init_picture is not None
        recipe = Recipe(
            prompt=order.prompt,
            negative_prompt=order.negative_prompt,
            seed=seed,
            num_inference_steps=order.num_inference_steps,
            guidance_scale=float(order.guidance_scale),
            scheduler=order.scheduler,
            width=picture.width,
            height=picture.height,
            base_model=self._opened.id,
            base_fingerprint=self._prints,
            adapters=tuple(
                UsedAtoms(
                    entry.id,
                    entry.sha256,
                    dict(strength) if isinstance(strength, Mapping) else float(strength),
                    entry.trigger,
                )
                for entry, strength in entries
            ),
            denoising_strength=order.denoising_strength if anew else None,
            init_sha256=hash_picture(order.init_picture) if order.init_picture else None,
            versions=list_versions(),
        )
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


def list_examples() -> list[Image.Image]:
    """A few bundled pictures, to fit the colours of previews on."""
    paths = sorted(find_assets().glob("subjects/*/*.png"))
    return [read_picture(path) for path in paths[:: max(1, len(paths) // 24)]]
