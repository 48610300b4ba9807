"""The Runs tab: every training, and for the chosen one its progress, curves, samples and log."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from sdatoms import AtomError
from sdatoms_app.generate.tab import GenerateTab
from sdatoms_app.queue.queue import Queue
from sdatoms_app.runs.api import build_runs_api
from sdatoms_app.runs.files import open_samples, pack_run, read_curves
from sdatoms_app.runs.view import (
    BAR,
    describe_job,
    draw_curves,
    list_runs,
    offer_buttons,
    read_config,
    read_log,
    stamp,
)
from sdatoms_app.shared.messages import say
from sdatoms_app.shared.plots import PLOT_STYLE
from sdatoms_app.studio.library import name_entry
from sdatoms_app.studio.studio import MAX_ADAPTERS, Studio
from sdatoms_app.train.page import open_queue
from sdatoms_app.train.tab import TrainForm

__all__ = [
    "build_runs_tab",
]

SECONDS = 2.0
"""Between two looks at the runs' files."""


def build_runs_tab(
    studio: Studio, form: TrainForm | None = None, generate: GenerateTab | None = None
) -> None:
    """Lay the tab out; call inside `gr.Blocks`.

    Args:
        studio: names the folder of runs.
        form: the Train tab, for "train again with these settings".
        generate: the Generate tab, for "use in Generate".
    """
    queue = open_queue(studio)
    root = Context.root_block
    assert root is not None

    seen = gr.State({})
    timer = gr.Timer(SECONDS)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            runs = gr.Radio(
                list_runs(queue),
                label="Runs",
                info="Newest first; they go on while this page is closed.",
                elem_id="runs",
                elem_classes="run-list",
            )
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(
                "<p>No run is chosen.</p>", css_template=BAR, elem_id="run-status", js_on_load=None
            )
            with gr.Row():
                stop = gr.Button("Stop and save", variant="stop", elem_id="run-stop", min_width=120)
                resume = gr.Button("Resume", elem_id="run-resume", min_width=120)
                send = gr.Button("Use in Generate", elem_id="run-send", min_width=120)
                again = gr.Button(
                    "Train again with these settings", elem_id="run-again", min_width=320
                )
            samples = gr.Gallery(
                label="Samples by step",
                columns=8,
                height="auto",
                object_fit="contain",
                interactive=False,
                buttons=["fullscreen"],
                format="png",
                elem_id="run-samples",
            )
            with gr.Row():
                log_scale = gr.Checkbox(label="Logarithmic loss", elem_id="run-log-scale")
                smoothing = gr.Slider(
                    0, 0.99, value=0.9, step=0.01, label="Smoothing", elem_id="run-smoothing"
                )
            loss = gr.HTML(css_template=PLOT_STYLE, elem_id="run-loss", js_on_load=None)
            more = gr.HTML(css_template=PLOT_STYLE, elem_id="run-measures", js_on_load=None)
            with gr.Accordion("Log", open=False):
                log = gr.Textbox(
                    label="Last lines", lines=12, max_lines=12, interactive=False, elem_id="run-log"
                )
            with gr.Accordion("Settings of this run", open=False):
                config = gr.Code(
                    label="config.toml",
                    interactive=False,
                    language=None,
                    wrap_lines=True,  # a box that scrolls takes no keyboard focus
                    elem_id="run-config",
                )
            with gr.Accordion("Extend, download, delete", open=False, elem_id="run-more"):
                with gr.Row():
                    steps = gr.Number(
                        100,
                        label="Further steps",
                        precision=0,
                        minimum=1,
                        maximum=20_000,
                        elem_id="run-steps",
                    )
                    extend = gr.Button("Extend", elem_id="run-extend", min_width=120)
                with gr.Row():
                    pack = gr.Button("Pack its results as a zip", elem_id="run-pack", min_width=120)
                    download = gr.DownloadButton(
                        "Download", visible=False, elem_id="run-download", min_width=120
                    )
                with gr.Row():
                    sure = gr.Checkbox(
                        label="Delete this run, its pictures and its atoms", elem_id="run-sure"
                    )
                    delete = gr.Button(
                        "Delete", variant="stop", elem_id="run-delete", min_width=120
                    )

    page = [status, stop, resume, send, again, samples, loss, more, log, config, download]

    def look(id: str | None, log_scale: bool, weight: float, before: dict[str, Any]) -> list[Any]:
        """The list, the page, and what was shown; parts that did not change are left alone."""
        choices = list_runs(queue)
        ids = [value for _, value in choices]
        chosen = id if id in ids else (ids[0] if ids else None)
        now: dict[str, Any] = {"choices": choices, "id": chosen}
        listed = gr.skip()
        if choices != before.get("choices") or chosen != id:
            listed = gr.Radio(choices=choices, value=chosen)
        if chosen is None:
            if before.get("id", "") is None:
                return [now, listed, *[gr.skip()] * len(page)]
            empty = "<p>No training was started yet; the Train tab starts one.</p>"
            off = [gr.Button(interactive=False)] * 4
            return [now, listed, empty, *off, *[gr.skip()] * (len(page) - 5)]
        try:
            job = queue.find(chosen)
        except AtomError:
            return [before, listed, *[gr.skip()] * len(page)]
        marks = {
            name: stamp(job.path / path)
            for name, path in (
                ("metrics", "metrics.jsonl"),
                ("samples", "samples"),
                ("log", "log.txt"),
                ("config", "config.toml"),
            )
        }
        state = (job.state, job.stopping, job.newest is None)
        now |= marks | {"scale": log_scale, "weight": weight, "state": state}
        new = chosen != before.get("id")
        changed = lambda *keys: new or any(now[k] != before.get(k) for k in keys)
        drawn = changed("metrics", "scale", "weight")
        plots, now["pace"] = [gr.skip()] * 2, before.get("pace")
        if drawn:
            curves = read_curves(job.path, weight)
            plots = draw_curves(curves, log_scale)
            now["pace"] = curves.seconds_per_step
        shown = now["shown"] = describe_job(job, now["pace"])
        return [
            now,
            listed,
            shown if changed("shown") else gr.skip(),
            *(offer_buttons(job) if changed("state") else [gr.skip()] * 4),
            open_samples(job.path) if changed("samples") else gr.skip(),
            *plots,
            read_log(job) if changed("log", "state") else gr.skip(),
            read_config(job) if changed("config") else gr.skip(),
            gr.DownloadButton(visible=False) if new else gr.skip(),
        ]

    def refuse(function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except AtomError as error:
            raise say(error) from None

    def press_stop(id: str | None) -> None:
        refuse(queue.stop, id or "")

    def press_resume(id: str | None) -> None:
        refuse(queue.resume, id or "")

    def press_extend(id: str | None, more: float | None) -> None:
        refuse(queue.resume, id or "", int(more or 0))

    def press_delete(id: str | None, sure: bool) -> bool:
        if not sure:
            raise say(AtomError("tick the box first: deleting cannot be undone"))
        refuse(queue.delete, id or "")
        return False

    def show_newest() -> Any:
        choices = list_runs(queue)
        return gr.Radio(choices=choices, value=choices[0][1])

    def press_pack(id: str | None) -> Any:
        job = refuse(queue.find, id or "")
        folder = Path(tempfile.mkdtemp(prefix="sdatoms-"))
        path = folder / f"{job.id}.zip"
        path.write_bytes(pack_run(job.path))
        return gr.DownloadButton(value=str(path), visible=True)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    inputs, outputs = [runs, log_scale, smoothing, seen], [seen, runs, *page]
    gr.on(
        [timer.tick, root.load, runs.input, log_scale.input, smoothing.release],
        look,
        inputs,
        outputs,
        trigger_mode="always_last",
        concurrency_limit=4,
        **quiet,
    )
    for button, press, given in (
        (stop, press_stop, [runs]),
        (resume, press_resume, [runs]),
        (extend, press_extend, [runs, steps]),
    ):
        button.click(press, given, None, **quiet).then(look, inputs, outputs, **quiet)
    delete.click(press_delete, [runs, sure], sure, **quiet).then(look, inputs, outputs, **quiet)
    pack.click(press_pack, runs, download, **quiet)
    if generate is not None:
        wire_generate(studio, queue, generate, send, runs)
    if form is not None:
        again.click(form.page.fill, [runs, form.token], form.outputs, **quiet).success(
            None, None, None, js=go_to("Train"), api_visibility="private"
        )
        form.started.success(show_newest, None, runs, **quiet).then(look, inputs, outputs, **quiet)
    build_runs_api(queue, form.page if form else None)
    queue.wake()


def wire_generate(
    studio: Studio, queue: Queue, generate: GenerateTab, send: gr.Button, runs: gr.Radio
) -> None:
    """Let a button put the chosen run's atoms, or its last checkpoint's, into the Generate tab and
    go there."""
    rows = generate.rows

    def use(id: str | None, *values: Any) -> list[Any]:
        try:
            job = queue.find(id or "")
            if not job.newest:
                raise AtomError(f"the run {job.id!r} has no atoms yet")
        except AtomError as error:
            raise say(error) from None
        listed, _ = name_entry(job.newest.relative_to(studio.library.folder.absolute()))
        ids = [row["id"] for row in rows.read(values) if row["id"] != listed]
        return rows.choose([*ids[: MAX_ADAPTERS - 1], listed], values)

    send.click(
        use, [runs, *rows.inputs], rows.outputs, show_progress="hidden", api_visibility="private"
    ).success(None, None, None, js=go_to("Generate"), api_visibility="private")


def go_to(tab: str) -> str:
    """JavaScript that opens a tab by its title."""
    return (
        "() => { const tabs = [...document.querySelectorAll('button[role=tab]')];"
        f" const tab = tabs.find(t => t.textContent.trim() === '{tab}'); if (tab) tab.click(); }}"
    )
