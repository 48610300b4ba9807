"""The Compare tab: one seed without and with atoms under a slider, and grids over strength, seed,
checkpoint and adapter. Prompt and settings are those of the Generate tab."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sdatoms import AtomError
from sdatoms_app.cards import draw_note, draw_progress
from sdatoms_app.form import make_order
from sdatoms_app.generate_tab import QUIET, GenerateTab, describe
from sdatoms_app.grids import MAX_CELLS, paint_grid, parse_numbers, plan_grid
from sdatoms_app.history import Kept
from sdatoms_app.jobs import Job, Update
from sdatoms_app.studio import Studio

__all__ = ["build_compare_tab"]

# Tabs are switched where they are drawn: no server is asked, and no handle on them is needed.
SHOW_TAB = """() => {
  const tabs = [...document.querySelectorAll('#tabs button[role=tab]')];
  const tab = tabs.find((tab) => tab.textContent.trim() === 'Compare');
  if (tab) tab.click();
}"""


def build_compare_tab(studio: Studio, generate: GenerateTab) -> None:
    """Lay the tab out and wire it; call inside `gr.Blocks`."""
    gr.Markdown("The prompt, the settings and the atom files of the **Generate** tab are compared.")
    with gr.Row():
        with gr.Column(min_width=320):
            with gr.Row():
                both = gr.Button(
                    "Paint without and with atoms",
                    variant="primary",
                    elem_id="compare-paint",
                    min_width=160,
                    scale=3,
                )
                halt = gr.Button(
                    "Cancel",
                    variant="stop",
                    interactive=False,
                    elem_id="compare-cancel",
                    min_width=80,
                    scale=1,
                )
            slider = gr.ImageSlider(
                label="Base | with atoms",
                format="png",
                interactive=False,
                height=420,
                max_height=420,
                buttons=["fullscreen"],
                elem_id="slider",
            )
            pair_note = gr.HTML(elem_id="compare-note")
        with gr.Column(min_width=320):
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
                label="Atom files and checkpoints (rows)",
                info="Each by itself; none: those of the Generate tab together.",
                elem_id="grid-files",
            )
            with gr.Row():
                draw = gr.Button(
                    "Paint the grid",
                    variant="primary",
                    elem_id="grid-paint",
                    min_width=160,
                    scale=3,
                )
                stop = gr.Button(
                    "Cancel",
                    variant="stop",
                    interactive=False,
                    elem_id="grid-cancel",
                    min_width=80,
                    scale=1,
                )
            grid_note = gr.HTML(draw_note(f"At most {MAX_CELLS} pictures."), elem_id="grid-note")
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
    singles = gr.Files(
        label="Single pictures, with their recipes",
        visible=False,
        interactive=False,
        elem_id="singles",
    )

    def paint_both(
        request: gr.Request, init: Image.Image | None, *values: Any
    ) -> Iterator[list[Any]]:
        kept: list[Kept] = []

        def work(job: Job) -> None:
            order = replace(make_order(generate.read(values), init), batch=1)
            if not order.adapters:
                raise AtomError("choose an atom file on the Generate tab, and switch it on")
            for half in (replace(order, adapters=()), order):
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
        except AtomError as error:
            note = draw_note(f"{error}.", alarm=True)
        finally:
            studio.desk.forget(f"{request.session_hash}/pair", job)
        pair = tuple(str(k.path) for k in kept) if len(kept) == 2 else gr.skip()
        yield [pair, note]

    def paint_cells(
        request: gr.Request,
        strengths: str,
        seeds: str,
        files: list[str],
        init: Image.Image | None,
        *values: Any,
    ) -> Iterator[list[Any]]:
        done: list[tuple[Path, list[Kept]]] = []

        def work(job: Job) -> None:
            order = make_order(generate.read(values), init)
            grid = plan_grid(
                order,
                parse_numbers(strengths, float, "strengths"),
                parse_numbers(seeds, int, "seeds"),
                files,
            )
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
                note = draw_note(f"Cancelled; {shown} pictures are kept.")
            elif done:
                note = draw_note(
                    f"{shown} pictures, kept in the history; the grid is a PNG too.", update.remarks
                )
        except AtomError as error:
            note = draw_note(f"{error}.", alarm=True)
        finally:
            studio.desk.forget(f"{request.session_hash}/grid", job)
        paths = [str(k.path) for k in done[-1][1]] if done else []
        last = read_grid(done[-1][0]) if done else gr.skip()
        yield [last, note, gr.Files(paths, visible=bool(paths))]

    def start() -> list[Any]:
        return [gr.Button(interactive=False), gr.Button(interactive=True)]

    def end() -> list[Any]:
        return [gr.Button(interactive=True), gr.Button(interactive=False)]

    def cancel_pair(request: gr.Request) -> Any:
        studio.desk.cancel(f"{request.session_hash}/pair")
        return gr.Button(interactive=False)

    def cancel_grid(request: gr.Request) -> Any:
        studio.desk.cancel(f"{request.session_hash}/grid")
        return gr.Button(interactive=False)

    def refresh(picked: list[str]) -> Any:
        choices = list_files(studio)
        listed = {id for _, id in choices}
        return gr.Dropdown(choices=choices, value=[id for id in picked if id in listed])

    form = [generate.init, *generate.list_inputs()]
    gr.on([both.click], start, None, [both, halt], queue=False, **QUIET).then(
        paint_both, form, [slider, pair_note], concurrency_limit=8, **QUIET
    ).then(end, None, [both, halt], queue=False, **QUIET)
    generate.compare.click(None, None, None, js=SHOW_TAB).then(
        start, None, [both, halt], queue=False, **QUIET
    ).then(paint_both, form, [slider, pair_note], concurrency_limit=8, **QUIET).then(
        end, None, [both, halt], queue=False, **QUIET
    )
    draw.click(start, None, [draw, stop], queue=False, **QUIET).then(
        paint_cells,
        [strengths, seeds, files, *form],
        [picture, grid_note, singles],
        concurrency_limit=8,
        **QUIET,
    ).then(end, None, [draw, stop], queue=False, **QUIET)
    halt.click(cancel_pair, None, halt, queue=False, **QUIET)
    stop.click(cancel_grid, None, stop, queue=False, **QUIET)
    files.focus(refresh, files, files, **QUIET)


def read_grid(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")


def list_files(studio: Studio) -> list[tuple[str, str]]:
    """Finished files, then the checkpoints of runs."""
    files = [(entry.label, entry.id) for entry in studio.library.list()]
    steps = [
        (f"{e.id.rpartition('@')[0]}, step {e.step}", e.id)
        for e in studio.library.list_checkpoints()
    ]
    return files + steps
