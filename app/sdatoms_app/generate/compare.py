"""The Compare tab: one seed without and with atoms, and grids over strength, seed and file.

Prompt and settings are those of the Generate tab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from sdatoms import AtomError
from sdatoms_app.generate.form import make_order
from sdatoms_app.generate.grids import MAX_CELLS, paint_grid, parse_numbers, plan_grid
from sdatoms_app.generate.layout import Form
from sdatoms_app.generate.results import describe
from sdatoms_app.generate.tab import GenerateTab
from sdatoms_app.shared.events import QUIET, go_to
from sdatoms_app.shared.html import count, draw_note, draw_progress
from sdatoms_app.shared.messages import draw_error
from sdatoms_app.studio.history import Kept
from sdatoms_app.studio.painting import Job, Update
from sdatoms_app.studio.studio import Studio

__all__ = [
    "build_compare_tab",
]


class Buttons(NamedTuple):
    """A button that starts work, and one that cancels it."""

    go: gr.Button
    halt: gr.Button


def build_buttons(label: str, name: str) -> Buttons:
    with gr.Row():
        go = gr.Button(label, variant="primary", elem_id=f"{name}-paint", min_width=160, scale=3)
        halt = gr.Button(
            "Cancel",
            variant="stop",
            interactive=False,
            elem_id=f"{name}-cancel",
            min_width=80,
            scale=1,
        )
    return Buttons(go, halt)


def wire_buttons(
    studio: Studio,
    buttons: Buttons,
    name: str,
    work: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    begin: Any = None,
) -> None:
    """Start `work` by the button or after the event `begin`; whatever becomes of it, the buttons
    are right afterwards."""

    def halt(request: gr.Request) -> Any:  # `cancel` is an endpoint of the API
        studio.desk.cancel(f"{request.session_hash}/{name}")
        return gr.Button(interactive=False)

    started = lambda: [gr.Button(interactive=False), gr.Button(interactive=True)]
    ended = lambda: [gr.Button(interactive=True), gr.Button(interactive=False)]
    for trigger in [buttons.go.click, *([begin] if begin else [])]:
        trigger(started, None, [*buttons], queue=False, **QUIET).then(
            work, inputs, outputs, concurrency_limit=8, **QUIET
        ).then(ended, None, [*buttons], queue=False, **QUIET)
    buttons.halt.click(halt, None, buttons.halt, queue=False, **QUIET)


def build_compare_tab(studio: Studio, generate: GenerateTab) -> None:
    """Lay the tab out and wire it; call inside `gr.Blocks`."""
    gr.Markdown(
        "What the adapters chosen on the **Generate** tab do: its prompt, seed and settings, "
        "without and with them; and grids over strengths, seeds and files."
    )
    with gr.Row():
        with gr.Column(min_width=320):
            build_pair(studio, generate)
        with gr.Column(min_width=320):
            grid = build_grid(studio)
    build_cells(studio, generate.form, grid)


def build_pair(studio: Studio, generate: GenerateTab) -> None:
    """One seed without and with atoms, under a slider."""
    form = generate.form
    buttons = build_buttons("Generate without and with adapters", "compare")
    pair, told = show_example(studio)
    slider = gr.ImageSlider(
        pair,
        label="Without | with adapters",
        format="png",
        interactive=False,
        height=420,
        max_height=420,
        buttons=["fullscreen"],
        elem_id="slider",
    )
    pair_note = gr.HTML(told, elem_id="compare-note")

    def paint_both(
        request: gr.Request, init: str | None, drawing: Any, mask: str | None, *values: Any
    ) -> Iterator[list[Any]]:
        kept: list[Kept] = []

        def work(job: Job) -> None:
            pictures = form.canvas.read(init, drawing, mask)
            order = replace(make_order(form.read(values), **pictures), batch=1)
            if not order.adapters:
                raise AtomError("no adapter is chosen: choose one on the Generate tab")
            for half in (replace(order, adapters=(), strength_schedules={}), order):
                for painted in studio.paint(half, job):
                    kept.append(painted)

        update = Update(0, 1, "starting")
        job = studio.desk.start(f"{request.session_hash}/pair", work)
        try:
            for update in job.watch():
                yield [gr.skip(), draw_progress(update.done, update.total, update.message)]
            note = draw_note("Cancelled.")
            if len(kept) == 2:
                note = describe(kept[-1:], update.remarks, cancelled=False)
        except Exception as error:  # whatever it was, the page does not wait for it
            note = draw_error(error)
        finally:
            studio.desk.forget(f"{request.session_hash}/pair", job)
        pair = tuple(str(k.path) for k in kept) if len(kept) == 2 else gr.skip()
        yield [pair, note]

    wire_buttons(
        studio,
        buttons,
        "pair",
        paint_both,
        [*form.canvas.inputs, *form.inputs],
        [slider, pair_note],
        generate.compare.click(None, None, None, js=go_to("Compare")).then,
    )


def show_example(studio: Studio) -> tuple[Any, str]:
    """The pictures without and with an example, and what is said of them; none where the program
    came without one."""
    for entry in studio.library.list_examples():
        if pair := entry.read_pair():
            text = (
                f"An example: “{entry.prompt}”. Left of the line is the base alone, right of it "
                f"with {entry.id}; drag the line. Choose adapters on the Generate tab to see yours."
            )
            return tuple(pair), draw_note(text)
    text = (
        "Choose an adapter on the Generate tab; here the same seed is then shown without and with "
        "it, under a line that you drag."
    )
    return None, draw_note(text)


class GridForm(NamedTuple):
    """What a grid goes over."""

    strengths: gr.Textbox
    seeds: gr.Textbox
    files: gr.Dropdown
    buttons: Buttons
    note: gr.HTML


def build_grid(studio: Studio) -> GridForm:
    """The axes of a grid."""
    strengths = gr.Textbox(
        label="Strengths (columns)",
        value="0, 0.5, 1, 1.5",
        info="Between 0 and 2 they go from the base to more than was trained.",
        elem_id="grid-strengths",
    )
    seeds = gr.Textbox(
        label="Seeds (rows)", value="0-2", info="Such as 1, 5 or 0-3.", elem_id="grid-seeds"
    )
    files = gr.Dropdown(
        list_files(studio),
        value=[],
        multiselect=True,
        label="Adapters and checkpoints (rows)",
        info="Each by itself; none: those of the Generate tab together.",
        elem_id="grid-files",
    )
    buttons = build_buttons("Generate the grid", "grid")
    note = gr.HTML(draw_note(f"At most {MAX_CELLS} pictures."), elem_id="grid-note")

    def refresh(picked: list[str]) -> Any:
        choices = list_files(studio)
        listed = {id for _, id in choices}
        return gr.Dropdown(choices=choices, value=[id for id in picked if id in listed])

    files.focus(refresh, files, files, **QUIET)
    return GridForm(strengths, seeds, files, buttons, note)


def build_cells(studio: Studio, form: Form, axes: GridForm) -> None:
    """The painted grid and its single pictures."""
    picture = gr.Image(
        label="Grid",
        format="png",
        type="filepath",
        interactive=False,
        buttons=["download", "fullscreen"],
        alt_text="The grid of pictures",
        elem_id="grid",
        elem_classes="picture",
    )
    singles = gr.Gallery(
        label="Single pictures, with their recipes",
        visible=False,
        interactive=False,
        columns=6,
        height="auto",
        object_fit="contain",
        buttons=["download", "fullscreen"],
        elem_id="singles",
    )

    def paint_cells(
        request: gr.Request,
        strengths: str,
        seeds: str,
        files: list[str],
        init: str | None,
        drawing: Any,
        mask: str | None,
        *values: Any,
    ) -> Iterator[list[Any]]:
        done: list[tuple[Path, list[Kept]]] = []
        labels: list[str] = []

        def work(job: Job) -> None:
            pictures = form.canvas.read(init, drawing, mask)
            order = make_order(form.read(values), **pictures)
            grid = plan_grid(
                order,
                parse_numbers(strengths, float, "strengths"),
                parse_numbers(seeds, int, "seeds"),
                files,
            )
            labels.extend(f"{grid.rows[c.row]}, {grid.columns[c.column]}" for c in grid.cells)
            for path, kept in paint_grid(studio, grid, job):
                done.append((path, list(kept)))
                job.tell(finished=tuple(kept))

        job = studio.desk.start(f"{request.session_hash}/grid", work)
        shown, note, update = 0, "", Update(0, 1, "starting")
        try:
            for update in job.watch():
                drawn = gr.skip()
                if len(update.finished) > shown:
                    drawn = read_grid(done[-1][0])
                shown = len(update.finished)
                bar = draw_progress(update.done, update.total, update.message)
                yield [drawn, bar, gr.skip()]
            if job.cancelled:
                note = draw_note(f"Cancelled; kept so far: {count(shown, 'picture')}.")
            elif done:
                note = draw_note(
                    f"{count(shown, 'picture')}, kept in the history; the grid is a PNG too.",
                    update.remarks,
                )
        except Exception as error:  # whatever it was, the page does not wait for it
            note = draw_error(error)
        finally:
            studio.desk.forget(f"{request.session_hash}/grid", job)
        paths = [str(k.path) for k in done[-1][1]] if done else []
        last = read_grid(done[-1][0]) if done else gr.skip()
        pairs = list(zip(paths, labels, strict=False))  # cancelled: fewer pictures than cells
        yield [last, note, gr.Gallery(pairs, visible=bool(pairs))]

    wire_buttons(
        studio,
        axes.buttons,
        "grid",
        paint_cells,
        [axes.strengths, axes.seeds, axes.files, *form.canvas.inputs, *form.inputs],
        [picture, axes.note, singles],
    )


def read_grid(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")


def list_files(studio: Studio) -> list[tuple[str, str]]:
    """Finished files, then the checkpoints of runs."""
    files = [(entry.label, entry.id) for entry in studio.library.list_adapters()]
    steps = [
        (f"{e.id.rpartition('@')[0]}, step {e.step}", e.id)
        for e in studio.library.list_checkpoints()
    ]
    return files + steps
