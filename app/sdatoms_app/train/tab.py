"""The Train tab: pictures and captions, settings with measured cost, and a place in the queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from sdatoms.settings import read_field_help
from sdatoms.training.config import TrainConfig
from sdatoms_app.shared.events import PRIVATE, QUIET
from sdatoms_app.studio.studio import Studio
from sdatoms_app.train.api import build_train_api
from sdatoms_app.train.concept_table import COLUMNS
from sdatoms_app.train.form import FIRST, build_fields
from sdatoms_app.train.page import TrainPage
from sdatoms_app.train.subjects import SUBJECT_SCRIPT, draw_subjects
from sdatoms_app.train.wiring import CUT_BY, SHOWN, wire_pictures, wire_settings

__all__ = [
    "TrainForm",
    "build_train_tab",
]

PAINT = "rgba(255, 64, 64, 0.6)"
"""Of masks; the picture shows through."""
REMEMBER = """() => {
  const key = 'sdatoms-train-draft';
  let token = localStorage.getItem(key) || '';
  if (!/^[0-9a-f]{32}$/.test(token)) {
    const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
    token = bytes.map((byte) => byte.toString(16).padStart(2, '0')).join('');
    localStorage.setItem(key, token);
  }
  return [token];
}"""
"""The browser's draft, the same after a reload or a restart of the server."""


@dataclass(frozen=True)
class TrainForm:
    """What other tabs need of this one."""

    started: Any
    """The event of a training being queued, to go on from."""
    token: gr.Textbox
    outputs: list[Any]
    """What `page.fill(run, token)` fills."""
    page: TrainPage


def build_train_tab(studio: Studio, roots: Sequence[Path], select: Any) -> TrainForm:
    """Lay the tab out; call inside `gr.Blocks`.

    Args:
        studio: names the base and the folder of runs.
        roots: folders an operator listed, whose pictures visitors may train on; the bundled
            subjects are always among them.
        select: the event of the tab being opened.
    """
    page = TrainPage(studio, roots)
    token = gr.Textbox("", visible="hidden", label="Draft")
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            pictures = build_pictures(page, token)
        with gr.Column(scale=1, min_width=320):
            settings = build_settings(page)
    fields = [settings[name] for name in page.names]
    wire_pictures(page, pictures, token)
    started = wire_settings(page, pictures | settings, fields, token, select)
    shown = [pictures[name] for name in SHOWN]
    build_train_api(page, [pictures["upload"], *shown[:5]])
    gr.on(
        [settings[name].input for name in CUT_BY],
        page.see_crops,
        [pictures["picture"], token, settings["preset"], *fields],
        shown,
        trigger_mode="always_last",
        **QUIET,
    )
    root = Context.root_block
    assert root is not None
    # A page takes its time for every part that an event may change: all settings are asked for
    # where some were filled in alone.
    changed = gr.Textbox("", visible=False, label="Settings that were filled in")
    changed.change(page.restore, token, fields, **QUIET)
    # Known before anybody can add a picture: the browser sets it by itself, and asks afterwards.
    root.load(None, None, token, js=REMEMBER, **PRIVATE).then(
        page.load, token, [*shown, settings["preset"], changed], **QUIET
    )
    return TrainForm(started, token, [*shown, *fields], page)


def build_pictures(page: TrainPage, token: gr.Textbox) -> dict[str, Any]:
    """Steps 1 and 2."""
    gr.Markdown("### 1 · Pictures")
    subjects = gr.HTML(
        draw_subjects(), js_on_load=SUBJECT_SCRIPT, elem_id="train-subjects", padding=False
    )
    upload = gr.File(
        label="Your pictures, or a zip of them",
        file_count="multiple",
        height=150,
        elem_id="train-upload",
    )
    gr.HTML(
        '<p class="hint">Captions (.txt) and masks (.mask.png, -masklabel.png) may come along.</p>',
        js_on_load=None,
        padding=False,
    )
    with gr.Row():
        folder = gr.Dropdown(
            page.list_folders(),
            value=None,
            label="Or a folder on the server",
            elem_id="train-folder",
            scale=3,
            min_width=260,
        )
        take = gr.Button("Add folder", size="sm", elem_id="train-take", scale=1, min_width=120)
    verdict = gr.Textbox(
        label="Check of the pictures", interactive=False, lines=2, elem_id="train-verdict"
    )
    gallery = gr.Gallery(
        label="What the trainer will see",
        columns=4,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        format="png",
        elem_id="train-gallery",
    )
    gr.Markdown("### 2 · Captions")
    picture = gr.Dropdown([], label="Picture", info="Or choose it above.", elem_id="train-picture")
    caption = gr.Textbox(
        value="",
        label="Caption",
        info="Its own prompt, kept as you type; of several lines one is drawn each time. Empty: "
        "the prompt of its concept, or of step 3.",
        lines=2,
        max_length=2000,
        elem_id="train-caption",
    )
    caption_all = gr.Button("Caption those without one", size="sm", elem_id="train-caption-all")
    with gr.Accordion("Mask of this picture", open=False, elem_id="train-masking"):
        gr.Markdown(
            "Brush over what counts; the rest is not learnt. Nothing brushed: all of it counts."
        )
        editor = gr.ImageEditor(
            label="Mask",
            type="pil",
            sources=(),
            transforms=(),
            brush=gr.Brush(colors=[PAINT], color_mode="fixed", default_size=40),
            elem_id="train-editor",
        )
        with gr.Row():
            draw = gr.Button("Open the picture", size="sm", elem_id="train-draw")
            keep = gr.Button("Keep the mask", size="sm", elem_id="train-keep-mask")
        with gr.Row():
            subject = gr.Textbox(
                value="",
                label="What to look for",
                placeholder="dog",
                max_length=200,
                elem_id="train-subject",
            )
            mask_all = gr.Button("Mask those without one", size="sm", elem_id="train-mask-all")
    with gr.Accordion("Several concepts", open=False, elem_id="train-several"):
        concept = gr.Textbox(
            value="",
            label="Concept of this picture",
            info="Where one training learns several things; folders of a zip are concepts already.",
            max_length=60,
            elem_id="train-concept",
        )
        concepts = gr.Dataframe(
            headers=list(COLUMNS),
            datatype="str",
            type="array",
            column_count=len(COLUMNS),
            column_limits=(len(COLUMNS), len(COLUMNS)),
            row_count=0,
            interactive=True,
            static_columns=[0],
            label="Concepts",
            elem_id="train-concepts",
        )
    with gr.Row():
        remove = gr.Button("Remove this picture", size="sm", elem_id="train-remove")
        empty = gr.Button("Remove all", size="sm", elem_id="train-empty")
    return {
        "token": token,
        "subjects": subjects,
        "upload": upload,
        "folder": folder,
        "take": take,
        "verdict": verdict,
        "gallery": gallery,
        "picture": picture,
        "caption": caption,
        "editor": editor,
        "draw": draw,
        "keep": keep,
        "caption_all": caption_all,
        "subject": subject,
        "mask_all": mask_all,
        "concept": concept,
        "concepts": concepts,
        "remove": remove,
        "empty": empty,
    }


def build_settings(page: TrainPage) -> dict[str, Any]:
    """Steps 3 and 4."""
    texts = read_field_help(TrainConfig)
    gr.Markdown("### 3 · Settings")
    instance = gr.Textbox(
        value="",
        label="Instance prompt",
        info="What the pictures show, with a trigger word that means nothing else, such as sks: it "
        "calls your subject later.",
        placeholder="a sks cat, or: an emoji in sks style",
        max_length=2000,
        elem_id="train-instance_prompt",
    )
    preset = gr.Radio(
        page.list_presets(),
        value=FIRST,
        label="Preset",
        elem_id="train-preset",
    )
    cost = gr.Textbox(
        label="What will happen",
        interactive=False,
        lines=3,
        elem_id="train-cost",
    )
    with gr.Row():
        measure = gr.Button("Measure these settings", size="sm", elem_id="train-measure")
        measure_all = gr.Button("Measure all presets", size="sm", elem_id="train-measure-all")
    prior = gr.Checkbox(
        label="Prior preservation: keep the class what it was",
        info=texts["with_prior_preservation"],
        elem_id="train-with_prior_preservation",
    )
    class_prompt = gr.Textbox(
        value="",
        label="Class prompt",
        info=texts["class_prompt"],
        visible=False,
        max_length=2000,
        elem_id="train-class_prompt",
    )
    with gr.Accordion("Advanced", open=False, elem_id="train-advanced"):
        widgets = build_fields()
    gr.Markdown("### 4 · Train")
    start = gr.Button("Start training", variant="primary", elem_id="train-start")
    result = gr.Textbox(label="Queued", interactive=False, elem_id="train-result")
    run = gr.Textbox(visible=False, label="Id of the run")
    return widgets | {
        "instance_prompt": instance,
        "class_prompt": class_prompt,
        "with_prior_preservation": prior,
        "preset": preset,
        "cost": cost,
        "measure": measure,
        "measure_all": measure_all,
        "start": start,
        "result": result,
        "run": run,
    }
