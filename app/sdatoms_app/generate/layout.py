"""The components of the Generate tab: prompt, settings, result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from sdatoms.diffusion.pipeline import SCHEDULERS
from sdatoms_app.generate.form import DEFAULTS
from sdatoms_app.generate.panel import build_preset_panel
from sdatoms_app.generate.rows import AdapterRows
from sdatoms_app.studio.studio import MAX_BATCH, MAX_SEED, MAX_SIDE, MAX_STEPS, Studio

if TYPE_CHECKING:
    from sdatoms_app.generate.tab import GenerateTab

__all__ = [
    "build_form",
    "build_prompt",
    "build_result",
    "list_bases",
    "list_sizes",
]


def build_prompt(tab: GenerateTab) -> None:
    """The prompt and the buttons."""
    tab.fields["prompt"] = gr.Textbox(
        label="Prompt",
        info="Shift+Enter paints. (word:1.3) weighs more, [word] less; length is free.",
        value=DEFAULTS["prompt"],
        lines=2,
        max_lines=8,
        elem_id="prompt",
    )
    with gr.Row():
        tab.paint = gr.Button("Paint", variant="primary", elem_id="paint", scale=3, min_width=120)
        tab.cancel = gr.Button(
            "Cancel", variant="stop", interactive=False, elem_id="cancel", scale=1, min_width=80
        )


def build_form(tab: GenerateTab) -> None:
    """Atom files and settings."""
    fields = tab.fields
    tab.rows = AdapterRows(tab.studio)
    tab.drop = gr.File(
        label="Drop an atom file or a picture made here",
        height=160,
        elem_id="drop",
    )
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        build_settings(tab)
    tab.start_from = gr.Accordion("Start from a picture", open=False, elem_id="start-from")
    with tab.start_from:
        tab.init = gr.Image(
            label="Picture to start from",
            type="pil",
            format="png",
            sources=["upload", "clipboard"],
            height=220,
            elem_id="init-picture",
        )
        fields["denoising_strength"] = gr.Slider(
            0.05,
            1,
            value=DEFAULTS["denoising_strength"],
            step=0.05,
            label="Share painted anew",
            info="Small keeps the picture, 1 forgets it.",
            elem_id="denoising-strength",
        )
    build_preset_panel(tab)


def build_settings(tab: GenerateTab) -> None:
    fields, studio = tab.fields, tab.studio
    first = studio.bases.list()[0].id
    side = studio.bases.find_side(first)
    fields["negative_prompt"] = gr.Textbox(
        label="Negative prompt", lines=1, max_lines=4, elem_id="negative"
    )
    fields["base"] = gr.Dropdown(
        list_bases(studio),
        value=first,
        label="Base model",
        info="A listed one, or a hub id (owner/name)." if studio.bases.hub else None,
        allow_custom_value=studio.bases.hub,
        elem_id="base",
    )
    with gr.Row():
        fields["num_inference_steps"] = gr.Slider(
            1, MAX_STEPS, value=25, step=1, label="Steps", elem_id="steps", min_width=140
        )
        fields["guidance_scale"] = gr.Slider(
            0, 20, value=5, step=0.5, label="Guidance", elem_id="guidance", min_width=140
        )
    fields["scheduler"] = gr.Dropdown(
        list(SCHEDULERS), value="DDIM", label="Scheduler", elem_id="scheduler"
    )
    tab.sizes = gr.Dropdown(
        list_sizes(side), value=None, label="Size presets", elem_id="size-presets"
    )
    with gr.Row():
        fields["width"] = pick_side("Width (px)", side, "width")
        fields["height"] = pick_side("Height (px)", side, "height")
    with gr.Row():
        fields["seed"] = gr.Number(
            label="Seed",
            value=0,
            precision=0,
            minimum=0,
            maximum=MAX_SEED,
            elem_id="seed",
            min_width=140,
        )
        fields["batch"] = gr.Slider(
            1, MAX_BATCH, value=1, step=1, label="Pictures", elem_id="batch", min_width=140
        )
    fields["random_seed"] = gr.Checkbox(
        label="Random seed",
        info="A new seed for every painting; the last one stays in the field.",
        value=False,
        elem_id="random-seed",
    )
    fields["embed"] = gr.Checkbox(
        label="Put the atom files inside the pictures",
        info="A picture alone then brings its atoms along.",
        value=False,
        elem_id="embed",
    )


def pick_side(label: str, value: int, elem_id: str) -> gr.Number:
    return gr.Number(
        label=label,
        value=value,
        precision=0,
        minimum=64,
        maximum=MAX_SIDE,
        step=8,
        elem_id=elem_id,
        min_width=120,
    )


def build_result(tab: GenerateTab) -> None:
    """The picture and what can be done with it."""
    tab.live = gr.Image(
        label="While it is painted",
        format="jpeg",
        interactive=False,
        visible=False,
        height=420,
        buttons=[],
        alt_text="The picture while it is painted",
        elem_id="live",
        elem_classes="picture",
    )
    tab.result = gr.Gallery(
        label="Result",
        interactive=False,
        preview=True,
        height=420,
        columns=4,
        object_fit="contain",
        buttons=["download", "fullscreen"],
        elem_id="result",
        elem_classes="picture",
    )
    tab.note = gr.HTML(elem_id="note")
    tab.kept = gr.State([])
    tab.selected = gr.State(0)
    with gr.Row():
        tab.send = gr.Button("Start from this picture", size="sm", elem_id="send", min_width=140)
        tab.compare = gr.Button(
            "Compare without atoms", size="sm", elem_id="to-compare", min_width=140
        )
        tab.reuse = gr.Button("Keep this seed", size="sm", elem_id="reuse-seed", min_width=140)


def list_bases(studio: Studio) -> list[tuple[str, str]]:
    return [(choice.label, choice.id) for choice in studio.bases.list()]


def list_sizes(side: int) -> list[str]:
    """Square, portrait and landscape around the base's own side."""
    long = side * 3 // 2 // 8 * 8
    pairs = ((side, side), (side, long), (long, side), (long, long))
    return [f"{w} × {h}" for w, h in pairs]
