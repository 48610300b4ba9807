"""The Generate tab: a prompt, a seed, atom files with a strength each, and base and adapted picture
side by side."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gradio as gr

from sdatoms import AtomError
from sdatoms.pipeline import SCHEDULERS
from sdatoms_app.studio import MAX_STEPS, Studio

__all__ = ["build_generate_tab"]

MAX_ADAPTERS = 5
MAX_SEED = 2**32 - 1


def build_generate_tab(studio: Studio) -> None:
    """Lay the tab out and wire it to the studio; call inside `gr.Blocks`."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(
                label="Prompt", value="cat face in sks style", lines=2, elem_id="prompt"
            )
            chosen = gr.Dropdown(
                label="Atom files",
                info="Found in the adapters folder or dropped in below; at most five at once.",
                choices=list_choices(studio),
                multiselect=True,
                max_choices=MAX_ADAPTERS,
                elem_id="atoms",
            )
            sliders = [
                gr.Slider(
                    -1,
                    2,
                    value=1,
                    step=0.05,
                    label="Strength",
                    visible=False,
                    elem_id=f"strength-{k}",
                )
                for k in range(MAX_ADAPTERS)
            ]
            upload = gr.File(label="Drop an atom file", height=140, elem_id="upload")
            refresh = gr.Button("Refresh list", size="sm", elem_id="refresh")
            with gr.Accordion("Settings", open=False):
                negative = gr.Textbox(label="Negative prompt", elem_id="negative")
                steps = gr.Slider(1, MAX_STEPS, value=25, step=1, label="Steps", elem_id="steps")
                guidance = gr.Slider(1, 15, value=5, step=0.5, label="Guidance", elem_id="guidance")
                scheduler = gr.Dropdown(
                    list(SCHEDULERS), value="DDIM", label="Scheduler", elem_id="scheduler"
                )
            with gr.Row():
                seed = gr.Number(
                    label="Seed", value=0, precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed"
                )
                shuffle = gr.Checkbox(label="Random seed", value=False, elem_id="random-seed")
            paint = gr.Button("Paint", variant="primary", elem_id="paint")
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                base = gr.Image(
                    label="Base",
                    format="png",
                    interactive=False,
                    elem_id="base-picture",
                    elem_classes="picture",
                    height=384,
                )
                adapted = gr.Image(
                    label="With atoms",
                    format="png",
                    interactive=False,
                    elem_id="adapted-picture",
                    elem_classes="picture",
                    height=384,
                )
            note = gr.Textbox(label="Result", interactive=False, elem_id="note")
    order = gr.State([])

    def show_sliders(picked: list[str], before: list[str], *values: float) -> list[Any]:
        """Show one slider per chosen file; a file that stays keeps its strength."""
        kept = dict(zip(before, values, strict=False))
        updates = [
            gr.Slider(visible=True, label=f"Strength of {id}", value=kept.get(id, 1.0))
            for id in picked[:MAX_ADAPTERS]
        ]
        hidden = [gr.Slider(visible=False, value=1.0) for _ in range(MAX_ADAPTERS - len(updates))]
        return [picked[:MAX_ADAPTERS], *updates, *hidden]

    def take_upload(path: str | None, picked: list[str]) -> Any:
        """Check a dropped file, list it and choose it."""
        if not path:
            return gr.skip()
        try:
            entry = studio.library.add(Path(path))
        except AtomError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return gr.Dropdown(choices=list_choices(studio), value=[*picked, entry.id][-MAX_ADAPTERS:])

    def run(
        prompt: str,
        negative: str,
        steps: int,
        guidance: float,
        scheduler: str,
        seed: int,
        shuffle: bool,
        picked: list[str],
        *values: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, Any, str, int]:
        """Paint the prompt with the base and with the chosen atom files, from the same seed."""
        seed = random.randint(0, MAX_SEED) if shuffle else int(seed)
        strengths = dict(zip(picked, map(float, values), strict=False))

        def tell(done: int, total: int) -> None:
            progress((done, total), unit="steps")

        try:
            painted = studio.paint(
                prompt,
                negative_prompt=negative,
                seed=seed,
                num_inference_steps=int(steps),
                guidance_scale=guidance,
                scheduler=scheduler,
                strengths=strengths,
                callback=tell,
            )
        except AtomError as error:
            raise gr.Error(str(error), print_exception=False) from None
        files = (
            ", ".join(f"{id} at {strength:g}" for id, strength in strengths.items()) or "no atoms"
        )
        note = f"seed {seed}, {files}, {painted.seconds:.1f} s"
        return painted.base, painted.adapted, note, seed

    chosen.change(
        show_sliders, [chosen, order, *sliders], [order, *sliders], api_visibility="private"
    )
    upload.upload(take_upload, [upload, chosen], chosen, api_name="upload", concurrency_limit=1)
    refresh.click(
        lambda: gr.Dropdown(choices=list_choices(studio)),
        None,
        chosen,
        api_name="refresh",
        api_description="List the atom files of the adapters folder anew.",
    )
    gr.on(
        [paint.click, prompt.submit],
        run,
        [prompt, negative, steps, guidance, scheduler, seed, shuffle, chosen, *sliders],
        [base, adapted, note, seed],
        api_name="generate",
        concurrency_limit=1,
        concurrency_id="pipeline",
    )


def list_choices(studio: Studio) -> list[tuple[str, str]]:
    return [(entry.label, entry.id) for entry in studio.library.list()]
