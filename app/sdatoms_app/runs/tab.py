"""The Runs tab: every training, and for the chosen one its progress, curves, samples and log."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from sdatoms import AtomError
from sdatoms_app.generate.form import DEFAULTS
from sdatoms_app.generate.tab import GenerateTab
from sdatoms_app.queue.queue import MOVES, Queue, list_gpus
from sdatoms_app.runs.api import build_runs_api
from sdatoms_app.runs.files import pack_run
from sdatoms_app.runs.look import look_at_runs
from sdatoms_app.runs.view import BAR, EMPTY, list_runs
from sdatoms_app.shared.events import PRIVATE, QUIET, go_to
from sdatoms_app.shared.messages import show_errors
from sdatoms_app.shared.plots import PLOT_STYLE
from sdatoms_app.studio.library import name_entry
from sdatoms_app.studio.orders import MAX_ADAPTERS
from sdatoms_app.studio.studio import Studio
from sdatoms_app.train.tab import TrainForm

__all__ = [
    "build_runs_tab",
]

SECONDS = 2.0
"""Between two looks at the runs' files."""


@dataclass(frozen=True)
class Page:
    """What is shown of the chosen run, in the order that `look_at_runs` fills it."""

    status: gr.HTML
    stop: gr.Button
    sample: gr.Button
    save: gr.Button
    resume: gr.Button
    send: gr.Button
    again: gr.Button
    first: gr.Button
    up: gr.Button
    down: gr.Button
    samples: gr.Gallery
    loss: gr.HTML
    more: gr.HTML
    log: gr.Textbox
    config: gr.Code
    download: gr.DownloadButton

    @property
    def outputs(self) -> list[Any]:
        return list(vars(self).values())


@dataclass(frozen=True)
class Controls:
    """What is set and pressed, and is not filled anew with every look."""

    runs: gr.Radio
    log_scale: gr.Checkbox
    smoothing: gr.Slider
    steps: gr.Number
    extend: gr.Button
    pack: gr.Button
    sure: gr.Checkbox
    delete: gr.Button
    gpu: gr.Dropdown | None
    """Where there are several GPUs."""


def build_runs_tab(studio: Studio, form: TrainForm, generate: GenerateTab) -> None:
    """Lay the tab out; call inside `gr.Blocks`.

    Args:
        studio: names the folder of runs.
        form: the Train tab, for "train again with these settings".
        generate: the Generate tab, for "use in Generate".
    """
    queue = form.page.queue
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            runs = gr.Radio(
                list_runs(queue),
                label="Trainings",
                info="Newest first; they go on while this page is closed.",
                elem_id="runs",
                elem_classes="run-list",
            )
        with gr.Column(scale=3, min_width=320):
            page, controls = build_page(runs)
    look = wire_looks(queue, page, controls)
    wire_buttons(queue, page, controls, look)
    wire_generate(studio, queue, generate, page.send, runs)
    wire_train(form, page.again, runs, look)
    build_runs_api(form.page)
    queue.wake()


def build_page(runs: gr.Radio) -> tuple[Page, Controls]:
    """Everything beside the list of runs."""
    status = gr.HTML(EMPTY, css_template=BAR, elem_id="run-status", js_on_load=None)
    with gr.Row():
        stop = gr.Button("Stop and save", variant="stop", elem_id="run-stop", min_width=120)
        sample = gr.Button("Sample now", elem_id="run-sample", min_width=120)
        save = gr.Button("Save now", elem_id="run-save", min_width=120)
        resume = gr.Button("Resume", elem_id="run-resume", min_width=120)
        send = gr.Button("Use in Generate", elem_id="run-send", min_width=200)
        again = gr.Button("Train again with these settings", elem_id="run-again", min_width=320)
    with gr.Row():
        first, up, down = (
            gr.Button(label, visible=False, elem_id=f"run-{to}", min_width=120)
            for label, to in (("To the front", "first"), ("Up", "up"), ("Down", "down"))
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
    gpus, gpu = list_gpus(), None
    if len(gpus) > 1:
        named = [(f"GPU {k}: {name}", k) for k, name in enumerate(gpus)]
        gpu = gr.Dropdown(
            [("the trainer's choice", -1), *named],
            value=-1,
            label="GPU of the chosen run, while it waits",
            elem_id="run-gpu",
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
            delete = gr.Button("Delete", variant="stop", elem_id="run-delete", min_width=120)
    page = Page(
        *(status, stop, sample, save, resume, send, again, first, up, down),
        *(samples, loss, more, log, config, download),
    )
    return page, Controls(runs, log_scale, smoothing, steps, extend, pack, sure, delete, gpu)


def wire_looks(queue: Queue, page: Page, controls: Controls) -> dict[str, Any]:
    """Look at the runs' files again and again; returns how an event asks for another look."""
    root = Context.root_block
    assert root is not None
    seen, timer = gr.State({}), gr.Timer(SECONDS)

    def look(id: str | None, log_scale: bool, weight: float, before: dict[str, Any]) -> list[Any]:
        return look_at_runs(queue, id, log_scale, weight, before)

    asked: dict[str, Any] = {
        "fn": look,
        "inputs": [controls.runs, controls.log_scale, controls.smoothing, seen],
        "outputs": [seen, controls.runs, *page.outputs],
        **QUIET,
    }
    gr.on(
        [
            timer.tick,
            root.load,
            controls.runs.input,
            controls.log_scale.input,
            controls.smoothing.release,
        ],
        trigger_mode="always_last",
        concurrency_limit=4,
        **asked,
    )
    return asked


def wire_buttons(queue: Queue, page: Page, controls: Controls, look: dict[str, Any]) -> None:
    """What is done to the chosen run."""

    @show_errors
    def press_stop(id: str | None) -> None:
        queue.stop(id or "")

    @show_errors
    def press_move(id: str | None, to: str) -> None:
        queue.move(id or "", to)

    @show_errors
    def press_gpu(id: str | None, gpu: int | None) -> None:
        queue.choose_gpu(id or "", None if gpu == -1 else gpu)

    @show_errors
    def press_sample(id: str | None) -> None:
        queue.ask(id or "", "samples")
        gr.Info("Samples are generated after this step.")

    @show_errors
    def press_save(id: str | None) -> None:
        queue.ask(id or "", "checkpoint")
        gr.Info("A checkpoint is saved after this step.")

    @show_errors
    def press_resume(id: str | None) -> None:
        queue.resume(id or "")

    @show_errors
    def press_extend(id: str | None, more: float | None) -> None:
        queue.extend(id or "", more)

    @show_errors
    def press_delete(id: str | None, sure: bool) -> bool:
        if not sure:
            raise AtomError("tick the box first: deleting cannot be undone")
        queue.delete(id or "")
        return False

    @show_errors
    def press_pack(id: str | None) -> Any:
        training = queue.find(id or "")
        path = Path(tempfile.mkdtemp(prefix="sdatoms-")) / f"{training.id}.zip"
        path.write_bytes(pack_run(training.path))
        return gr.DownloadButton(value=str(path), visible=True)

    runs = controls.runs
    for button, press, given, filled in (
        (page.stop, press_stop, [runs], None),
        (page.sample, press_sample, [runs], None),
        (page.save, press_save, [runs], None),
        *((getattr(page, to), partial(press_move, to=to), [runs], None) for to in MOVES),
        (page.resume, press_resume, [runs], None),
        (controls.extend, press_extend, [runs, controls.steps], None),
        (controls.delete, press_delete, [runs, controls.sure], controls.sure),
    ):
        button.click(press, given, filled, **QUIET).then(**look)
    if controls.gpu:
        controls.gpu.input(press_gpu, [runs, controls.gpu], None, **QUIET).then(**look)
    controls.pack.click(press_pack, runs, page.download, **QUIET)


def wire_generate(
    studio: Studio, queue: Queue, generate: GenerateTab, send: gr.Button, runs: gr.Radio
) -> None:
    """Let a button put the chosen run's atoms, or its last checkpoint's, into the Generate tab and
    go there; its trigger becomes the prompt where nobody has written another."""
    rows, prompt = generate.form.rows, generate.form.fields["prompt"]

    @show_errors
    def use(id: str | None, text: str, *values: Any) -> list[Any]:
        training = queue.find(id or "")
        if not training.newest:
            raise AtomError(f"the run {training.id!r} has no atom file yet")
        listed, _ = name_entry(training.newest.relative_to(studio.library.folder.absolute()))
        ids = [row["id"] for row in rows.read(values) if row["id"] != listed]
        untouched = not text.strip() or text == DEFAULTS["prompt"]
        words = rows.find_trigger(listed) if untouched else ""
        return [words or gr.skip(), *rows.choose([*ids[: MAX_ADAPTERS - 1], listed], values)]

    send.click(use, [runs, prompt, *rows.inputs], [prompt, *rows.outputs], **QUIET).success(
        None, None, None, js=go_to("Generate"), **PRIVATE
    )


def wire_train(form: TrainForm, again: gr.Button, runs: gr.Radio, look: dict[str, Any]) -> None:
    """Let a button fill the Train tab with the chosen run, and choose the run that was queued."""

    def show_newest() -> Any:
        choices = list_runs(form.page.queue)
        return gr.Radio(choices=choices, value=choices[0][1])

    again.click(form.page.fill, [runs, form.token], form.outputs, **QUIET).success(
        None, None, None, js=go_to("Train"), **PRIVATE
    )
    form.started.success(show_newest, None, runs, **QUIET).then(**look)
