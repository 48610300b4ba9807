"""The widgets of the Generate tab: the prompt with its buttons, the form, the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sdatoms.diffusion.samplers import SAMPLERS, SCHEDULES
from sdatoms.diffusion.sizes import list_sizes, name_shape
from sdatoms_app.generate.canvas import Canvas, build_canvas
from sdatoms_app.generate.form import DEFAULTS, clean_settings
from sdatoms_app.generate.rows import AdapterRows
from sdatoms_app.studio.orders import LIMITS, MAX_SEED
from sdatoms_app.studio.studio import Studio

__all__ = [
    "Form",
    "PromptBox",
    "ResultBox",
    "build_form",
    "build_prompt",
    "build_result",
    "list_presets",
    "list_schedules",
]


@dataclass(frozen=True)
class PromptBox:
    """What is always in sight."""

    prompt: gr.Textbox
    paint: gr.Button
    cancel: gr.Button


def build_prompt() -> PromptBox:
    """Lay the prompt and its buttons out."""
    prompt = gr.Textbox(
        label="Prompt",
        info="What the picture shows, with the trigger word of the adapter. (word:1.3) weighs "
        "more, [word] less. Shift+Enter generates.",
        value=DEFAULTS["prompt"],
        lines=2,
        max_lines=8,
        elem_id="prompt",
    )
    with gr.Row():
        paint = gr.Button("Generate", variant="primary", elem_id="paint", scale=3, min_width=120)
        cancel = gr.Button(
            "Cancel", variant="stop", interactive=False, elem_id="cancel", scale=1, min_width=80
        )
    return PromptBox(prompt, paint, cancel)


@dataclass(frozen=True)
class Form:
    """All that an order is made of, and how it is read and filled."""

    studio: Studio
    fields: dict[str, Any]
    """Setting → widget, for every name of `DEFAULTS` and in its order."""
    rows: AdapterRows
    canvas: Canvas
    """The picture to start from and its mask; they are no settings, and nothing remembers them."""
    start_from: gr.Accordion
    sizes: gr.Dropdown
    drop: gr.File

    @property
    def inputs(self) -> list[Any]:
        """What `read` reads."""
        return [*self.fields.values(), *self.rows.inputs]

    @property
    def outputs(self) -> list[Any]:
        """What `fill` updates."""
        return [*self.fields.values(), *self.rows.outputs]

    @property
    def lists(self) -> list[Any]:
        """What `relist` updates."""
        return [self.fields["base"], self.rows.chosen, self.rows.cards]

    def relist(self) -> list[Any]:
        """Updates of `lists` that show what there is now, nothing of it in use."""
        adapters = gr.Dropdown(choices=self.rows.list_choices())
        return [gr.Dropdown(choices=list_bases(self.studio)), adapters, self.rows.draw([])]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """Settings from the values of `inputs`."""
        settings = dict(zip(self.fields, values, strict=False))
        return settings | {"adapters": self.rows.read(values[len(self.fields) :])}

    def fill(self, settings: dict[str, Any]) -> tuple[list[Any], list[str]]:
        """Updates of `outputs`, and remarks on what could not be taken over."""
        clean, remarks = clean_settings(settings, self.studio)
        side = self.studio.bases.find_side(clean["base"])
        clean["width"], clean["height"] = clean["width"] or side, clean["height"] or side
        values = {name: clean[name] for name in self.fields}
        values["base"] = gr.Dropdown(choices=list_bases(self.studio), value=clean["base"])
        values["schedule"] = gr.Dropdown(
            choices=list_schedules(clean["scheduler"]), value=clean["schedule"]
        )
        return [*values.values(), *self.rows.show(clean["adapters"])], remarks


def build_form(studio: Studio, prompt: gr.Textbox) -> Form:
    """Lay atom files and settings out."""
    rows = AdapterRows(studio)
    drop = gr.File(
        label="Drop an atom file, a LoRA or a picture made here", height=160, elem_id="drop"
    )
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        fields = build_settings(studio)
    start_from = gr.Accordion("Start from a picture", open=False, elem_id="start-from")
    with start_from:
        canvas = build_canvas(fields)
    with gr.Accordion("Second pass", open=False, elem_id="second-pass"):
        build_second_pass(fields)
    sizes = fields.pop("sizes")
    fields["prompt"] = prompt
    named = {name: fields[name] for name in DEFAULTS}
    return Form(studio, named, rows, canvas, start_from, sizes, drop)


def build_second_pass(fields: dict[str, Any]) -> None:
    """Add the widgets of the second pass to `fields`."""
    with gr.Row():
        fields["hires_scale"] = gr.Slider(
            *LIMITS["hires_scale"],
            value=DEFAULTS["hires_scale"],
            step=0.25,
            label="Enlarge and generate again",
            info="1: once; the denoising strength is the one above.",
            elem_id="hires-scale",
            min_width=140,
        )
        fields["hires_steps"] = gr.Slider(
            *LIMITS["hires_steps"],
            value=DEFAULTS["hires_steps"],
            step=1,
            label="Steps of the second pass",
            info="0: as many as the first.",
            elem_id="hires-steps",
            min_width=140,
        )


def build_settings(studio: Studio) -> dict[str, Any]:
    """Setting → widget, and `sizes`, which fills two of them."""
    fields: dict[str, Any] = {}
    first = studio.bases.list()[0].id
    side = studio.bases.find_side(first)
    fields["negative_prompt"] = gr.Textbox(
        value="", label="Negative prompt", lines=1, max_lines=4, elem_id="negative"
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
            *LIMITS["num_inference_steps"],
            value=DEFAULTS["num_inference_steps"],
            step=1,
            label="Steps",
            elem_id="steps",
            min_width=140,
        )
        fields["guidance_scale"] = gr.Slider(
            0,
            20,
            value=studio.bases.find_guidance(first),
            step=0.5,
            label="Guidance scale",
            elem_id="guidance",
            min_width=140,
        )
    with gr.Row():
        fields["scheduler"] = gr.Dropdown(
            list(SAMPLERS),
            value=DEFAULTS["scheduler"],
            label="Sampler",
            elem_id="scheduler",
            min_width=140,
        )
        fields["schedule"] = gr.Dropdown(
            list_schedules(DEFAULTS["scheduler"]),
            value=DEFAULTS["schedule"],
            label="Schedule",
            elem_id="schedule",
            min_width=140,
        )
    fields["sizes"] = gr.Dropdown(
        list_presets(side, studio.max_side),
        value=None,
        label="Size presets",
        elem_id="size-presets",
    )
    with gr.Row():
        fields["width"] = pick_side("Width (px)", side, "width", studio.max_side)
        fields["height"] = pick_side("Height (px)", side, "height", studio.max_side)
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
    with gr.Row():
        fields["batch"] = gr.Slider(
            *LIMITS["batch"],
            value=1,
            step=1,
            label="Number of pictures",
            elem_id="batch",
            min_width=140,
        )
        fields["batch_size"] = gr.Slider(
            *LIMITS["batch_size"],
            value=1,
            step=1,
            label="Batch size",
            info="More is faster on a GPU.",
            elem_id="batch-size",
            min_width=140,
        )
    with gr.Row():
        fields["clip_skip"] = gr.Slider(
            *LIMITS["clip_skip"],
            value=DEFAULTS["clip_skip"],
            step=1,
            label="CLIP skip",
            info="1 reads the text encoder's last layer.",
            elem_id="clip-skip",
            min_width=140,
        )
        fields["guidance_rescale"] = gr.Slider(
            *LIMITS["guidance_rescale"],
            value=DEFAULTS["guidance_rescale"],
            step=0.05,
            label="Guidance rescale",
            info="Against overexposure; 0 is off.",
            elem_id="guidance-rescale",
            min_width=140,
        )
    fields["random_seed"] = gr.Checkbox(
        label="Random seed",
        info="A new seed each time; the last one stays in the field.",
        value=False,
        elem_id="random-seed",
    )
    fields["embed"] = gr.Checkbox(
        label="Put the adapters inside the pictures",
        info="A picture alone then brings its atom files along.",
        value=False,
        elem_id="embed",
    )
    return fields


def pick_side(label: str, value: int, elem_id: str, most: int) -> gr.Number:
    return gr.Number(
        label=label,
        value=value,
        precision=0,
        minimum=LIMITS["width"][0],
        maximum=most,
        step=8,
        elem_id=elem_id,
        min_width=120,
    )


@dataclass(frozen=True)
class ResultBox:
    """The pictures and what can be done with them."""

    live: gr.Image
    gallery: gr.Gallery
    note: gr.HTML
    kept: gr.State
    """Ids of the pictures in the gallery, in order."""
    selected: gr.State
    """Which of them was clicked last."""
    send: gr.Button
    compare: gr.Button
    reuse: gr.Button


def build_result() -> ResultBox:
    """Lay the result out."""
    live = gr.Image(
        label="Preview",
        format="jpeg",
        interactive=False,
        visible=False,
        height=420,
        buttons=[],
        alt_text="The picture while it is generated",
        elem_id="live",
        elem_classes="picture",
    )
    gallery = gr.Gallery(
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
    note = gr.HTML(elem_id="note")
    with gr.Row():
        send = gr.Button("Start from this picture", size="sm", elem_id="send", min_width=140)
        compare = gr.Button(
            "Compare without adapters", size="sm", elem_id="to-compare", min_width=140
        )
        reuse = gr.Button("Reuse this seed", size="sm", elem_id="reuse-seed", min_width=140)
    return ResultBox(live, gallery, note, gr.State([]), gr.State(0), send, compare, reuse)


def list_bases(studio: Studio) -> list[tuple[str, str]]:
    """Label and id; the label says family, dtype and size too."""
    return [
        (" · ".join(filter(None, (choice.label, choice.about))), choice.id)
        for choice in studio.bases.list()
    ]


def list_presets(side: int, most: int) -> list[tuple[str, str]]:
    """Label and value of square, portrait and landscape sizes around the base's own side, px."""
    return [
        (f"{w} × {h}, {name_shape(w, h)}", f"{w} × {h}")
        for w, h in list_sizes(side)
        if max(w, h) <= most
    ]


def list_schedules(scheduler: str) -> list[tuple[str, str]]:
    """Label and name of the schedules that a sampler takes."""
    return [(SCHEDULES[name].label, name) for name in SAMPLERS[scheduler].schedules]
