"""The Atoms tab: what is inside a file, what each atom does, mixing files, other formats."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdatoms import AtomError
from sdatoms_app.atoms.api import build_atoms_api
from sdatoms_app.atoms.drawing import HEAT_STYLE
from sdatoms_app.atoms.exports import FORMATS, MAX_RANK
from sdatoms_app.atoms.following import Follower
from sdatoms_app.atoms.page import (
    EVERYWHERE,
    HERE,
    MAX_MIXED,
    MAX_MUTED,
    MAX_STEPS,
    MIN_HEIGHT,
    AtomsPage,
)
from sdatoms_app.shared.events import PRIVATE, QUIET
from sdatoms_app.shared.messages import draw_error, show_errors
from sdatoms_app.shared.plots import PLOT_STYLE
from sdatoms_app.studio.orders import MAX_SEED
from sdatoms_app.studio.studio import Studio

__all__ = [
    "build_atoms_tab",
]

EMPTY = (
    '<p class="hint">This tab shows what is inside an atom file: which layers of the base it '
    "changes and how much, and the filter atoms themselves, before and after. There is no atom "
    "file yet; make one on the Train tab, or drop one on the Generate tab.</p>"
)
SECONDS = 5.0
"""Between two looks for a new checkpoint of the run that is followed."""
SHEETS = (
    (("before", "Atoms before"), ("after", "Atoms after")),
    (("difference", "Difference, on its own scale"), ("response", "Frequencies let through")),
)
CLICK = """
element.addEventListener('click', (event) => {
  const cell = event.target.closest('[data-path]');
  if (cell) trigger('select', {index: 0, value: cell.dataset.path});
});
"""


def build_atoms_tab(studio: Studio, load: Any, select: Any) -> None:
    """Lay the tab out; call inside `gr.Blocks`. `load` is the page's load event, `select` the
    tab's."""
    page = AtomsPage(studio)
    with gr.Row():
        chosen = gr.Dropdown(
            page.list_files(),
            value=None,
            label="Adapter",
            allow_custom_value=True,  # a followed run's checkpoint is not in the list
            elem_id="anatomy-file",
            scale=4,
            min_width=260,
        )
        refresh = gr.Button(
            "Refresh list", size="sm", elem_id="anatomy-refresh", scale=1, min_width=120
        )
    follower = Follower(studio)
    with gr.Accordion("Follow a training", open=False, elem_id="anatomy-follow"):
        run = gr.Dropdown(
            [("nothing", "")],
            value="",
            label="Run",
            info="Its newest checkpoint is opened below as soon as it is saved.",
            allow_custom_value=True,  # runs come and go between two looks
            elem_id="anatomy-run",
        )
        course = gr.HTML(css_template=PLOT_STYLE, js_on_load=None, elem_id="anatomy-course")
        seen, timer = gr.State(""), gr.Timer(SECONDS)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            heat = gr.HTML(
                EMPTY,
                css_template=HEAT_STYLE,
                js_on_load=CLICK,
                elem_id="anatomy-heat",
            )
            with gr.Accordion("Parameters and bytes", open=False):
                budget = gr.HTML(css_template=HEAT_STYLE, js_on_load=None, elem_id="anatomy-budget")
        with gr.Column(scale=3, min_width=320):
            layer = gr.Dropdown(
                [],
                label="Layer",
                info="Module path and view; the map of layers chooses too.",
                elem_id="anatomy-layer",
            )
            channel = gr.Number(
                -1,
                label="Input channel",
                info="Where channels have atoms of their own; −1: the mean of all.",
                precision=0,
                minimum=-1,
                elem_id="anatomy-channel",
                visible=False,
            )
            sheets = []
            for pair in SHEETS:
                with gr.Row():
                    for name, label in pair:
                        sheets.append(
                            gr.Image(
                                label=label,
                                alt_text=label,
                                format="png",
                                image_mode="RGBA",
                                interactive=False,
                                height=MIN_HEIGHT,
                                visible=False,
                                min_width=240,
                                buttons=["fullscreen"],
                                elem_id=f"anatomy-{name}",
                            )
                        )
            words = gr.Textbox(label="Scale", interactive=False, elem_id="anatomy-words")
    with gr.Accordion("Mute an atom and see", open=False, elem_id="anatomy-mute"):
        with gr.Row():
            prompt = gr.Textbox(
                label="Prompt to try", value="cat face in sks style", elem_id="anatomy-prompt"
            )
            atoms = gr.Dropdown(
                [],
                label="Atoms to mute, one at a time",
                multiselect=True,
                max_choices=MAX_MUTED,
                elem_id="anatomy-atoms",
            )
        with gr.Row():
            where = gr.Radio([EVERYWHERE, HERE], value=EVERYWHERE, label="Mute it")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            steps = gr.Slider(1, MAX_STEPS, value=20, step=1, label="Steps")
        mute = gr.Button("Generate without them", variant="primary", elem_id="anatomy-paint")
        painted = gr.Gallery(
            label="Same seed",
            columns=4,
            height="auto",
            object_fit="contain",
            interactive=False,
            buttons=["download"],
            format="png",
            elem_id="anatomy-painted",
        )
    with gr.Accordion("Compare and mix files", open=False, elem_id="anatomy-mix"):
        several = gr.Dropdown(
            page.list_files(),
            value=[],
            label="Files",
            info=f"Two to {MAX_MIXED}.",
            multiselect=True,
            max_choices=MAX_MIXED,
            elem_id="anatomy-several",
        )
        alike = gr.HTML(css_template=HEAT_STYLE, js_on_load=None, elem_id="anatomy-alike")
        sliders = [
            gr.Slider(
                -1,
                2,
                value=1,
                step=0.05,
                label="Strength",
                visible=False,
                elem_id=f"anatomy-strength-{k}",
            )
            for k in range(MAX_MIXED)
        ]
        with gr.Row():
            title = gr.Textbox(
                value="", label="Name of the mix", max_length=60, elem_id="anatomy-title"
            )
            save = gr.Button("Save the mix as one file", variant="primary", elem_id="anatomy-save")
        mixed = gr.Textbox(label="Saved", interactive=False, elem_id="anatomy-mixed")
    with gr.Accordion("Export the chosen file", open=False, elem_id="anatomy-export"):
        with gr.Row():
            form = gr.Radio(list(FORMATS), value=next(iter(FORMATS)), label="Format")
            rank = gr.Slider(1, MAX_RANK, value=16, step=1, label="Rank, for LoRA")
        export = gr.Button("Export", elem_id="anatomy-do-export")
        exported = gr.Textbox(label="Result", interactive=False, elem_id="anatomy-exported")
        download = gr.DownloadButton("Download", visible=False, elem_id="anatomy-download")

    alone: dict[str, Any] = {"concurrency_id": "pipeline", "concurrency_limit": 1}
    view = [channel, *sheets, words]
    chosen.input(
        page.open_file,
        chosen,
        [heat, budget, layer, atoms, *view],
        trigger_mode="always_last",
        **PRIVATE,
        **alone,
    )
    opened = gr.State("")
    chosen.input(lambda id: id or "", chosen, opened, queue=False, **QUIET)
    select(
        page.open_first,
        [chosen, opened],
        [opened, heat, budget, layer, atoms, *view],
        **QUIET,
        **alone,
    )
    for event in (refresh.click, load):
        event(page.relist, chosen, [chosen, several], **QUIET)
        event(follower.relist, None, run, **QUIET)

    @show_errors
    def follow(run: str | None, seen: str) -> list[Any]:
        """Open the newest checkpoint of the chosen run, where it is another than was seen."""
        nothing = [gr.skip()] * (4 + len(view))
        newest = follower.find_newest(run)
        if newest is None or newest == seen:
            return [gr.skip(), gr.skip(), gr.skip(), *nothing]
        try:
            return [newest, newest, follower.show(run or ""), *page.open_file(newest)]
        except AtomError as error:  # once, and not at every look
            return [newest, gr.skip(), draw_error(error), *nothing]

    followed = [seen, chosen, course, heat, budget, layer, atoms, *view]
    gr.on(
        [timer.tick, run.input],
        follow,
        [run, seen],
        followed,
        trigger_mode="always_last",
        **QUIET,
        **alone,
    )
    layer.input(
        page.show_layer,
        [chosen, layer, channel],
        view,
        trigger_mode="always_last",
        **QUIET,
    )
    channel.input(
        page.show_layer, [chosen, layer, channel], view, trigger_mode="always_last", **QUIET
    )
    heat.select(page.choose_cell, chosen, [layer, *view], **QUIET)
    mute.click(
        page.paint_muted,
        [chosen, layer, prompt, atoms, where, seed, steps],
        painted,
        **PRIVATE,
        **alone,
    )
    several.input(
        page.show_likeness,
        several,
        [alike, *sliders],
        trigger_mode="always_last",
        **PRIVATE,
    )
    save.click(
        page.save_mix,
        [several, title, *sliders],
        [mixed, chosen, several],
        **PRIVATE,
    )
    export.click(
        page.export,
        [chosen, form, rank],
        [exported, download],
        **PRIVATE,
        **alone,
    )
    build_atoms_api(page)
