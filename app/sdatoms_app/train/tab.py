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
from sdatoms_app.train.concept_table import COLUMNS
from sdatoms_app.train.form import build_fields
from sdatoms_app.train.measure import describe_source, name_machine
from sdatoms_app.train.page import TrainPage

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


def build_train_tab(studio: Studio, roots: Sequence[Path] = ()) -> TrainForm:
    """Lay the tab out; call inside `gr.Blocks`.

    Args:
        studio: names the base and the folder of runs.
        roots: folders an operator listed, whose pictures visitors may train on; the bundled
            subjects are always among them.
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
    started = wire_settings(page, settings, fields, token)
    shown = [pictures[name] for name in SHOWN]
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
    # Known before anybody can add a picture: the browser sets it by itself, and asks afterwards.
    root.load(None, None, token, js=REMEMBER, **PRIVATE).then(
        page.load, token, [*shown, settings["preset"], *fields], **QUIET
    )
    return TrainForm(started, token, [*shown, *fields], page)


SHOWN = ("token", "gallery", "verdict", "picture", "caption", "concept", "concepts")
"""The widgets that `TrainPage.show` fills."""
CUT_BY = ("resolution", "aspect_ratio_buckets", "crop_style", "alpha_mask")
"""Settings that change the crops."""


def build_pictures(page: TrainPage, token: gr.Textbox) -> dict[str, Any]:
    """Steps 1 and 2."""
    gr.Markdown("### 1 · Pictures")
    upload = gr.File(
        label="Drop pictures, with captions (.txt) and masks (.mask.png, -masklabel.png), or a zip",
        file_count="multiple",
        height=150,
        elem_id="train-upload",
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
    verdict = gr.Textbox(label="Pre-flight", interactive=False, lines=2, elem_id="train-verdict")
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
        label="Caption",
        info="Its own prompt, kept as you type; of several lines one is drawn each time. Empty: "
        "the prompt of its concept, or of step 3.",
        lines=2,
        max_length=2000,
        elem_id="train-caption",
    )
    caption_all = gr.Button("Caption those without one", size="sm", elem_id="train-caption-all")
    with gr.Accordion("Mask of this picture", open=False, elem_id="train-masking"):
        gr.Markdown("Paint what counts; the rest is not learnt. Nothing painted: all of it counts.")
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
                label="What to look for", placeholder="dog", max_length=200, elem_id="train-subject"
            )
            mask_all = gr.Button("Mask those without one", size="sm", elem_id="train-mask-all")
    with gr.Accordion("Several concepts", open=False, elem_id="train-several"):
        concept = gr.Textbox(
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
        label="Prompt of the pictures",
        info=texts["instance_prompt"],
        placeholder="an emoji in sks style",
        max_length=2000,
        elem_id="train-instance_prompt",
    )
    preset = gr.Radio(
        page.list_presets(),
        value="Balanced",
        label="Preset",
        info=None if page.studio.base else describe_source(),
        elem_id="train-preset",
    )
    cost = gr.Textbox(
        label=f"Cost on {name_machine()}",
        value="not measured yet",
        interactive=False,
        lines=2,
        elem_id="train-cost",
    )
    with gr.Row():
        measure = gr.Button("Measure these settings", size="sm", elem_id="train-measure")
        measure_all = gr.Button("Measure all presets", size="sm", elem_id="train-measure-all")
    prior = gr.Checkbox(
        label="Keep the class what it was",
        info=texts["with_prior_preservation"],
        elem_id="train-with_prior_preservation",
    )
    class_prompt = gr.Textbox(
        label="Prompt of the class",
        info=texts["class_prompt"],
        visible=False,
        max_length=2000,
        elem_id="train-class_prompt",
    )
    with gr.Accordion("Advanced", open=False, elem_id="train-advanced"):
        widgets = build_fields()
    gr.Markdown("### 4 · Train")
    start = gr.Button("Start training", variant="primary", elem_id="train-start")
    result = gr.Textbox(label="Queue", interactive=False, elem_id="train-result")
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


def wire_pictures(page: TrainPage, w: dict[str, Any], token: gr.Textbox) -> None:
    shown = [w[name] for name in SHOWN]
    w["upload"].upload(
        page.add_pictures,
        [w["upload"], token],
        [w["upload"], *shown[:5]],
        api_name="check_pictures",
        api_description=page.add_pictures.__doc__,
    ).then(page.see_concepts, [w["picture"], token], shown[5:], **QUIET)
    w["take"].click(
        page.add_folder,
        [w["folder"], token],
        shown,
        **PRIVATE,
    )
    edited = [w["picture"], w["caption"], w["concept"]]
    # Every change is sent by itself and in order, with the picture of that moment, and the caption
    # is covered while another picture's is fetched: no text reaches a picture it was not meant for.
    # (A text field's `input` event knows key presses alone, not what is pasted.)
    w["picture"].input(page.choose, [w["picture"], token], edited[1:], **PRIVATE)
    w["gallery"].select(page.choose_crop, token, edited, **PRIVATE)
    w["caption"].change(
        page.keep_caption,
        [*edited[:2], token],
        None,
        trigger_mode="multiple",
        concurrency_limit=1,
        **QUIET,
    )
    w["draw"].click(page.open_mask, [w["picture"], token], w["editor"], **PRIVATE)
    w["keep"].click(page.keep_mask, [w["picture"], w["editor"], token], shown, **PRIVATE)
    slow: dict[str, Any] = {"concurrency_id": "label", "concurrency_limit": 1}
    w["caption_all"].click(page.caption_all, [w["picture"], token], shown, **PRIVATE, **slow)
    w["mask_all"].click(
        page.mask_all, [w["picture"], w["subject"], token], shown, **PRIVATE, **slow
    )
    one: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": 1}
    w["concept"].input(
        page.keep_concept, [w["picture"], w["concept"], token], w["concepts"], **one, **QUIET
    )
    w["concepts"].input(page.keep_described, [w["concepts"], token], None, **one, **QUIET)
    w["remove"].click(page.remove, [w["picture"], token], shown, **QUIET)
    w["empty"].click(page.remove_all, token, shown, **QUIET)


def wire_settings(page: TrainPage, w: dict[str, Any], fields: list[Any], token: gr.Textbox) -> Any:
    folded = [w[name] for name in page.folded]
    w["with_prior_preservation"].change(
        lambda on: gr.Textbox(visible=on), w["with_prior_preservation"], w["class_prompt"], **QUIET
    )
    kept = [w["with_prior_preservation"], w["class_prompt"]]
    w["preset"].input(
        page.use_preset, [w["preset"], w["instance_prompt"]], [*folded, *kept], **QUIET
    )
    gr.on(
        [field.change for field in [w["preset"], *fields]],
        page.keep_form,
        [token, w["preset"], *fields],
        [token, w["cost"]],
        trigger_mode="always_last",
        **QUIET,
    )
    one: dict[str, Any] = {"concurrency_id": "measure", "concurrency_limit": 1}
    w["measure"].click(
        page.measure,
        [token, *fields],
        w["cost"],
        **PRIVATE,
        **one,
    )
    w["measure_all"].click(
        page.measure_presets,
        token,
        w["preset"],
        **PRIVATE,
        **one,
    )
    return w["start"].click(
        page.start,
        [token, *fields],
        [w["result"], w["run"]],
        **PRIVATE,
        concurrency_id="enqueue",
        concurrency_limit=1,
    )
