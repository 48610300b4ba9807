"""The Generate tab: a prompt, atom files, a seed; the picture being painted, and afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sdatoms import AtomError
from sdatoms_app.generate.form import DEFAULTS, clean_settings, make_order
from sdatoms_app.generate.layout import (
    build_form,
    build_prompt,
    build_result,
    list_bases,
    list_sizes,
)
from sdatoms_app.generate.panel import build_history_panel, take_file
from sdatoms_app.generate.rows import AdapterRows
from sdatoms_app.shared.html import count, draw_note, draw_progress
from sdatoms_app.shared.messages import warn
from sdatoms_app.studio.history import Kept
from sdatoms_app.studio.painting import Job, Update
from sdatoms_app.studio.studio import MAX_SEED, Studio

__all__ = [
    "QUIET",
    "GenerateTab",
    "build_generate_tab",
    "describe",
]

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class GenerateTab:
    """The components of the tab, and how to read and fill its form."""

    paint: gr.Button
    cancel: gr.Button
    rows: AdapterRows
    drop: gr.File
    start_from: gr.Accordion
    init: gr.Image
    sizes: gr.Dropdown
    live: gr.Image
    result: gr.Gallery
    note: gr.HTML
    kept: gr.State
    """Ids of the pictures in the result, in order."""
    selected: gr.State
    send: gr.Button
    compare: gr.Button
    reuse: gr.Button
    remembered: gr.BrowserState
    search: gr.Textbox
    look: gr.Button
    past: gr.Gallery
    past_ids: gr.State
    past_chosen: gr.State
    past_note: gr.HTML
    restore: gr.Button
    past_send: gr.Button
    preset: gr.Dropdown
    preset_load: gr.Button
    preset_delete: gr.Button
    preset_name: gr.Textbox
    preset_save: gr.Button

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.fields: dict[str, Any] = {}
        """Setting → component, in the order of `DEFAULTS`."""

    def list_inputs(self) -> list[Any]:
        """What `read` reads."""
        return [*(self.fields[name] for name in DEFAULTS), *self.rows.inputs]

    def list_outputs(self) -> list[Any]:
        """What `fill` updates."""
        return [*(self.fields[name] for name in DEFAULTS), *self.rows.outputs]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """Settings from the values of `list_inputs`."""
        settings = dict(zip(DEFAULTS, values, strict=False))
        return settings | {"adapters": self.rows.read(values[len(DEFAULTS) :])}

    def fill(self, settings: dict[str, Any]) -> tuple[list[Any], list[str]]:
        """Updates of `list_outputs`, and remarks on what could not be taken over."""
        clean, remarks = clean_settings(settings, self.studio)
        side = self.studio.bases.find_side(clean["base"])
        clean["width"], clean["height"] = clean["width"] or side, clean["height"] or side
        values: list[Any] = [clean[name] for name in DEFAULTS]
        values[list(DEFAULTS).index("base")] = gr.Dropdown(
            choices=list_bases(self.studio), value=clean["base"]
        )
        return [*values, *self.rows.show(clean["adapters"])], remarks


def build_generate_tab(studio: Studio) -> GenerateTab:
    """Lay the tab out and wire it to the studio; call inside `gr.Blocks`."""
    tab = GenerateTab(studio)
    with gr.Row(elem_id="generate-grid"):  # placed by style.py: on a phone, result before settings
        with gr.Column(elem_id="ask"):
            build_prompt(tab)
        with gr.Column(elem_id="outcome"):
            build_result(tab)
            build_history_panel(tab)
        with gr.Column(elem_id="details"):
            build_form(tab)
    wire_form(tab)
    wire_painting(tab)
    return tab


def wire_form(tab: GenerateTab) -> None:
    """Everything but painting."""
    fields, studio = tab.fields, tab.studio
    tab.rows.wire(fields["prompt"])

    def change_base(id: str) -> list[Any]:
        side = studio.bases.find_side(id)
        return [side, side, gr.Dropdown(choices=list_sizes(side), value=None)]

    def change_size(text: str | None) -> list[Any]:
        if not text:
            return [gr.skip(), gr.skip()]
        width, _, height = text.partition(" × ")
        return [int(width), int(height)]

    def drop(path: str | None, *values: Any) -> list[Any]:
        empty = [gr.skip() for _ in range(1 + len(tab.list_outputs()))]
        if not path:
            return [gr.skip(), *empty]
        try:
            return [None, *take_file(tab, Path(path), values)]
        except AtomError as error:
            gr.Warning(escape(str(error)))
            return [None, draw_note(f"{error}.", alarm=True), *empty[1:]]

    def send(ids: list[str], selected: int) -> list[Any]:
        if not ids:
            raise AtomError("paint a picture first")
        with Image.open(studio.history.find(ids[min(selected, len(ids) - 1)]).path) as picture:
            return [picture.convert("RGB"), gr.Accordion(open=True)]

    def select(event: gr.SelectData) -> int:
        return int(event.index) if isinstance(event.index, int) else 0

    size = [fields["width"], fields["height"]]
    fields["base"].input(change_base, fields["base"], [*size, tab.sizes], **QUIET)
    tab.sizes.input(change_size, tab.sizes, size, **QUIET)
    tab.drop.upload(
        drop, [tab.drop, *tab.list_inputs()], [tab.drop, tab.note, *tab.list_outputs()], **QUIET
    )
    tab.result.select(select, None, tab.selected, **QUIET)
    tab.send.click(warn(send), [tab.kept, tab.selected], [tab.init, tab.start_from], **QUIET)
    tab.reuse.click(lambda: False, None, fields["random_seed"], **QUIET)


def wire_painting(tab: GenerateTab) -> None:
    """Paint and Cancel, and what the page remembers over a reload."""
    fields, studio = tab.fields, tab.studio
    tab.remembered = gr.BrowserState({}, storage_key="sdatoms-form", secret="sdatoms")

    def run(request: gr.Request, init: Image.Image | None, *values: Any) -> Iterator[list[Any]]:
        """Yield the preview, the pictures so far, the progress or note, the seed, the ids."""
        settings = tab.read(values)
        if settings["random_seed"]:
            settings["seed"] = random.randint(0, MAX_SEED)
        kept: list[Kept] = []

        def work(job: Job) -> None:
            for picture in studio.paint(make_order(settings, init), job):
                kept.append(picture)
                job.tell(finished=tuple(kept))

        job = studio.desk.start(f"{request.session_hash}/generate", work)
        shown, update = 0, Update(0, 1, "starting")
        yield [
            gr.skip(),
            gr.skip(),
            draw_progress(update.done, update.total, update.message),
            settings["seed"],
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
                    gallery = show_gallery(kept[:shown])
                bar = draw_progress(update.done, update.total, update.message)
                yield [live, gallery, bar, gr.skip(), [k.id for k in kept]]
            note = describe(kept, update.remarks, cancelled=job.cancelled)
        except AtomError as error:
            note = draw_note(f"{error}.", alarm=True)
        finally:
            studio.desk.forget(f"{request.session_hash}/generate", job)
        gallery = show_gallery(kept) if kept else gr.Gallery(visible=True)
        yield [gr.Image(None, visible=False), gallery, note, gr.skip(), [k.id for k in kept]]

    def start() -> list[Any]:
        return [gr.Button(interactive=False), gr.Button(interactive=True), 0]

    def stop() -> list[Any]:
        return [gr.Button(interactive=True), gr.Button(interactive=False)]

    def stop_painting(request: gr.Request) -> Any:
        studio.desk.cancel(f"{request.session_hash}/generate")
        return gr.Button(interactive=False)

    buttons = [tab.paint, tab.cancel]
    gr.on(
        [tab.paint.click, fields["prompt"].submit],
        start,
        None,
        [*buttons, tab.selected],
        queue=False,
        **QUIET,
    ).then(
        run,
        [tab.init, *tab.list_inputs()],
        [tab.live, tab.result, tab.note, fields["seed"], tab.kept],
        concurrency_limit=8,
        **QUIET,
    ).then(  # remembered before Paint is ready again, so that a reload then finds the form
        lambda *values: tab.read(values), tab.list_inputs(), tab.remembered, queue=False, **QUIET
    ).then(stop, None, buttons, queue=False, **QUIET)
    tab.cancel.click(stop_painting, None, tab.cancel, queue=False, **QUIET)


def show_gallery(kept: Sequence[Kept]) -> gr.Gallery:
    pictures = [(str(picture.path), picture.caption) for picture in kept]
    return gr.Gallery(pictures, selected_index=len(pictures) - 1, visible=True)


def describe(kept: Sequence[Kept], remarks: Sequence[str], *, cancelled: bool) -> str:
    """What is said under the pictures."""
    if not kept:
        return draw_note("Cancelled; nothing was kept." if cancelled else "")
    recipe = kept[-1].recipe
    atoms = ", ".join(f"{u.name} at {write_strength(u.strength)}" for u in recipe.adapters)
    seeds = f"seed {kept[0].recipe.seed}" + (f" to {recipe.seed}" if len(kept) > 1 else "")
    text = f"{seeds}, {atoms or 'no atoms'}, {recipe.scheduler}, {recipe.num_inference_steps} steps"
    if cancelled:
        text = f"Cancelled after {count(len(kept), 'picture')}. {text}"
    return draw_note(text, remarks)


def write_strength(strength: float | dict[str, float]) -> str:
    if isinstance(strength, dict):
        return "/".join(f"{number:g}" for number in strength.values())
    return f"{strength:g}"
