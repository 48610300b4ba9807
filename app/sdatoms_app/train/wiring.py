"""The events of the Train tab: what its widgets ask of the page, and what they show of it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdatoms_app.shared.events import PRIVATE, QUIET
from sdatoms_app.train.page import TrainPage

__all__ = [
    "CUT_BY",
    "SHOWN",
    "wire_pictures",
    "wire_settings",
]

SHOWN = ("token", "gallery", "verdict", "picture", "caption", "concept", "concepts")
"""The widgets that `TrainPage.show` fills."""
CUT_BY = ("resolution", "aspect_ratio_buckets", "crop_style", "alpha_mask")
"""Settings that change the crops."""
SECONDS = 2.0
"""Between two looks at what is measured."""


def wire_pictures(page: TrainPage, w: dict[str, Any], token: gr.Textbox) -> None:
    shown = [w[name] for name in SHOWN]
    w["upload"].upload(
        page.add_pictures, [w["upload"], token], [w["upload"], *shown[:5]], **PRIVATE
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


def wire_settings(
    page: TrainPage, w: dict[str, Any], fields: list[Any], token: gr.Textbox, select: Any
) -> Any:
    """Presets, costs, a bundled subject by one click, and Start, whose event is returned; `select`
    is that of the tab being opened."""
    folded = [w[name] for name in page.folded]
    w["with_prior_preservation"].change(
        lambda on: gr.Textbox(visible=on), w["with_prior_preservation"], w["class_prompt"], **QUIET
    )
    kept = [w["with_prior_preservation"], w["class_prompt"]]
    filled = w["preset"].input(
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
    timer = gr.Timer(SECONDS, active=False)
    cost = [w["cost"], w["preset"], timer]
    for opened in (select, filled.success):
        opened(page.measure_quietly, [token, *fields], cost, **QUIET)
    timer.tick(page.look_measured, [token, *fields], cost, **QUIET)
    tried = [*(w[name] for name in SHOWN), w["instance_prompt"]]
    w["subjects"].select(page.try_subject, token, tried, **QUIET).success(
        page.look_measured, [token, *fields], cost, **QUIET
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
