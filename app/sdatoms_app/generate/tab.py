"""The Generate tab: a prompt, atom files, a seed; the picture being painted, and afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sdatoms import AtomError
from sdatoms_app.generate.canvas import fit_sides
from sdatoms_app.generate.form import make_order
from sdatoms_app.generate.layout import (
    Form,
    PromptBox,
    ResultBox,
    build_form,
    build_prompt,
    build_result,
    list_presets,
    list_schedules,
)
from sdatoms_app.generate.panel import (
    SavedPanel,
    build_history_panel,
    build_saved_panel,
    take_file,
    wire_history,
    wire_saved,
)
from sdatoms_app.generate.results import describe, describe_pair, show_gallery, show_pair
from sdatoms_app.shared.events import QUIET
from sdatoms_app.shared.html import draw_note, draw_progress
from sdatoms_app.shared.messages import draw_error, show_errors
from sdatoms_app.studio.history import Kept
from sdatoms_app.studio.orders import MAX_SEED, Order
from sdatoms_app.studio.painting import Job, Update
from sdatoms_app.studio.studio import Studio

__all__ = [
    "GenerateTab",
    "build_generate_tab",
]


@dataclass(frozen=True)
class GenerateTab:
    """What other tabs need of this one."""

    form: Form
    compare: gr.Button
    """Asks the Compare tab to paint what stands in the form."""


def build_generate_tab(studio: Studio, load: Any) -> GenerateTab:
    """Lay the tab out and wire it; call inside `gr.Blocks`. `load` is the page's load event."""
    with gr.Row(elem_id="generate-grid"):  # placed by style.py: on a phone, result before settings
        with gr.Column(elem_id="ask"):
            ask = build_prompt()
        with gr.Column(elem_id="outcome"):
            result = build_result()
            history = build_history_panel()
        with gr.Column(elem_id="details"):
            form = build_form(studio, ask.prompt)
            saved = build_saved_panel(studio)
    remembered = gr.BrowserState({}, storage_key="sdatoms-form", secret="sdatoms")
    wire_form(form, result)
    wire_history(history, form, result, load)
    wire_saved(saved, form, result.note)
    wire_painting(ask, form, result, remembered)
    wire_load(form, saved, result.note, remembered, load)
    return GenerateTab(form, result.compare)


def wire_form(form: Form, result: ResultBox) -> None:
    """Everything in the form that another part of it, a file or a picture fills."""
    fields, studio = form.fields, form.studio
    form.rows.wire(fields["prompt"])

    def change_base(id: str) -> list[Any]:
        side = studio.bases.find_side(id)
        sizes = gr.Dropdown(choices=list_presets(side, studio.max_side), value=None)
        return [side, side, sizes, studio.bases.find_guidance(id)]

    def change_sampler(name: str, schedule: str) -> Any:
        choices = list_schedules(name)
        kept = schedule if schedule in (value for _, value in choices) else "normal"
        return gr.Dropdown(choices=choices, value=kept)

    def change_size(text: str | None) -> list[Any]:
        if not text:
            return [gr.skip(), gr.skip()]
        width, _, height = text.partition(" × ")
        return [int(width), int(height)]

    def drop(path: str | None, *values: Any) -> list[Any]:
        same = [gr.skip() for _ in form.outputs]
        if not path:
            return [gr.skip(), gr.skip(), *same]
        try:
            return [None, *take_file(form, Path(path), values)]
        except AtomError as error:
            return [None, draw_error(error), *same]

    @show_errors
    def send(ids: list[str], selected: int) -> list[Any]:
        if not ids:
            raise AtomError("generate a picture first")
        with Image.open(studio.history.find(ids[min(selected, len(ids) - 1)]).path) as picture:
            return [picture.convert("RGB"), gr.Accordion(open=True)]

    def select(event: gr.SelectData) -> int:
        return int(event.index) if isinstance(event.index, int) else 0

    size = [fields["width"], fields["height"]]
    own = [*size, form.sizes, fields["guidance_scale"]]
    fields["base"].input(change_base, fields["base"], own, **QUIET)
    fields["scheduler"].input(
        change_sampler, [fields["scheduler"], fields["schedule"]], fields["schedule"], **QUIET
    )
    form.sizes.input(change_size, form.sizes, size, **QUIET)
    form.canvas.init.upload(
        show_errors(lambda path, id: fit_sides(path, studio.bases.find_side(id), studio.max_side)),
        [form.canvas.init, fields["base"]],
        size,
        **QUIET,
    )
    form.drop.upload(
        drop, [form.drop, *form.inputs], [form.drop, result.note, *form.outputs], **QUIET
    )
    result.gallery.select(select, None, result.selected, **QUIET)
    result.send.click(
        send, [result.kept, result.selected], [form.canvas.init, form.start_from], **QUIET
    )
    result.reuse.click(lambda: False, None, fields["random_seed"], **QUIET)


def wire_load(
    form: Form, saved: SavedPanel, note: gr.HTML, remembered: gr.BrowserState, load: Any
) -> None:
    """Fill a fresh page: the lists as they are now, and the form as it was last painted with.

    A page takes its time for every part that an event may change, so that the many of the form are
    asked for where something is remembered alone.
    """
    studio = form.studio
    asked = gr.Textbox("", visible=False, label="Whether something is remembered")

    def say_ready() -> str:
        return draw_note(f"{studio.bases.list()[0].label} is ready. {choose_hint(studio)}")

    def open_page(settings: Any) -> list[Any]:
        forms = gr.Dropdown(choices=studio.saved_forms.list(), value=None)
        if settings and isinstance(settings, dict):
            return [forms, gr.skip(), "yes", *(gr.skip() for _ in form.lists)]
        return [forms, say_ready(), "", *form.relist()]

    def restore(settings: dict[str, Any]) -> list[Any]:
        return [say_ready(), *form.fill(settings)[0]]

    load(open_page, remembered, [saved.chosen, note, asked, *form.lists], **QUIET)
    asked.change(restore, remembered, [note, *form.outputs], **QUIET)


def choose_hint(studio: Studio) -> str:
    """What somebody who sees the page for the first time does next."""
    if studio.library.list_examples():
        return "Press Generate, or “Try it” on an example."
    if studio.library.list_adapters():
        return "Press Generate, or “Try it” on an adapter."
    return "Press Generate; to teach it something new, go to the Train tab."


def wire_painting(
    ask: PromptBox, form: Form, result: ResultBox, remembered: gr.BrowserState
) -> None:
    """Generate and Cancel, a card's "Try it", and what the page remembers over a reload."""
    studio = form.studio

    def run(
        request: gr.Request, init: str | None, drawing: Any, mask: str | None, *values: Any
    ) -> Iterator[list[Any]]:
        settings = choose_seed(form.read(values))

        def list_orders() -> list[Order]:
            return [make_order(settings, **form.canvas.read(init, drawing, mask))]

        yield from follow(request, settings["seed"], list_orders, show_gallery, describe)

    def run_pair(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        settings = choose_seed(form.read(values))

        def list_orders() -> list[Order]:
            order = replace(make_order(settings), batch=1)
            return [replace(order, adapters=(), strength_schedules={}), order]

        yield from follow(request, settings["seed"], list_orders, show_pair, describe_pair)

    def follow(
        request: gr.Request,
        seed: int,
        list_orders: Callable[[], list[Order]],
        show: Callable[[Sequence[Kept]], gr.Gallery],
        describe: Callable[..., str],
    ) -> Iterator[list[Any]]:
        """Yield the preview, the pictures so far, the progress or note, the seed, the ids."""
        kept: list[Kept] = []

        def work(job: Job) -> None:
            for order in list_orders():
                for picture in studio.paint(order, job):
                    kept.append(picture)
                    job.tell(finished=tuple(kept))

        job = studio.desk.start(f"{request.session_hash}/generate", work)
        shown, update = 0, Update(0, 1, "starting")
        yield [
            gr.skip(),
            gr.skip(),
            draw_progress(update.done, update.total, update.message),
            seed,
            gr.skip(),
        ]
        try:
            for update in job.watch():
                live, gallery = gr.skip(), gr.skip()
                if update.preview is not None:
                    live = gr.Image(update.preview, visible=True)
                    gallery = gr.Gallery(visible=bool(shown))
                if len(update.finished) > shown:
                    shown = len(update.finished)
                    gallery = show(kept[:shown])
                bar = draw_progress(update.done, update.total, update.message)
                yield [live, gallery, bar, gr.skip(), [k.id for k in kept]]
            note = describe(kept, update.remarks, cancelled=job.cancelled)
        except Exception as error:  # whatever it was, the page does not wait for it
            note = draw_error(error)
        finally:
            studio.desk.forget(f"{request.session_hash}/generate", job)
        gallery = show(kept) if kept else gr.Gallery(visible=True)
        yield [gr.Image(None, visible=False), gallery, note, gr.skip(), [k.id for k in kept]]

    def start() -> list[Any]:
        return [gr.Button(interactive=False), gr.Button(interactive=True), 0]

    def stop() -> list[Any]:
        return [gr.Button(interactive=True), gr.Button(interactive=False)]

    def stop_painting(request: gr.Request) -> Any:
        studio.desk.cancel(f"{request.session_hash}/generate")
        return gr.Button(interactive=False)

    @show_errors
    def try_out(event: gr.EventData) -> list[Any]:
        data = event._data if isinstance(event._data, dict) else {}
        return form.rows.try_out(str(data.get("id")))

    buttons = [ask.paint, ask.cancel]
    asked = gr.on(
        [ask.paint.click, ask.prompt.submit],
        start,
        None,
        [*buttons, result.selected],
        queue=False,
        **QUIET,
    )
    tried = form.rows.cards.submit(
        try_out, None, [ask.prompt, *form.rows.outputs], **QUIET
    ).success(start, None, [*buttons, result.selected], queue=False, **QUIET)
    for begun, work, given in (
        (asked, run, [*form.canvas.inputs, *form.inputs]),
        (tried, run_pair, form.inputs),
    ):
        begun.then(
            work,
            given,
            [result.live, result.gallery, result.note, form.fields["seed"], result.kept],
            concurrency_limit=8,
            **QUIET,
        ).then(  # remembered before Generate is ready again, so that a reload then finds the form
            lambda *values: form.read(values), form.inputs, remembered, queue=False, **QUIET
        ).then(stop, None, buttons, queue=False, **QUIET)
    ask.cancel.click(stop_painting, None, ask.cancel, queue=False, **QUIET)


def choose_seed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with a new seed where a random one is asked for."""
    if settings["random_seed"]:
        settings["seed"] = random.randint(0, MAX_SEED)
    return settings
