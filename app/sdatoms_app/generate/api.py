"""The endpoints for programs: named, typed, described. The page's own events are not among them.

    client = gradio_client.Client("http://127.0.0.1:7860")
    pictures = client.predict("cat face", api_name="/generate")

Types are read from the signatures, so this module keeps its annotations as objects.
"""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.events import api

from sdatoms import AtomError
from sdatoms.diffusion.picture_file import read_embedded_atoms, read_recipe
from sdatoms.pictures import read_mask
from sdatoms.pictures import read_picture as read_upload
from sdatoms_app.generate.api_values import (
    Picture,
    open_picture,
    open_upload,
    read_strengths,
    show_picture,
)
from sdatoms_app.generate.form import restore_recipe
from sdatoms_app.generate.grids import paint_grid, plan_grid
from sdatoms_app.shared.endpoints import add_endpoint
from sdatoms_app.shared.messages import answer_errors
from sdatoms_app.shared.references import find_upload, refer
from sdatoms_app.studio.history import Kept
from sdatoms_app.studio.orders import Order
from sdatoms_app.studio.painting import Job
from sdatoms_app.studio.studio import Studio

__all__ = [
    "build_generate_api",
]


def build_generate_api(studio: Studio) -> None:
    """Add the endpoints; call inside `gr.Blocks`."""

    def generate(
        prompt: str,
        negative_prompt: str = "",
        adapters: dict[str, Any] | None = None,
        seed: int = 0,
        batch: int = 1,
        num_inference_steps: int = 25,
        guidance_scale: float | None = None,
        scheduler: str = "DDIM",
        width: int = 0,
        height: int = 0,
        base: str = "",
        start_from: str = "",
        denoising_strength: float = 0.6,
        embed: bool = False,
        schedule: str = "normal",
        clip_skip: int = 1,
        guidance_rescale: float = 0.0,
        image: FileData | None = None,
        mask_image: FileData | None = None,
        mask_blur: float = 4.0,
        hires_scale: float = 1.0,
        hires_steps: int = 0,
        batch_size: int = 1,
        strength_schedules: dict[str, str] | None = None,
        request: gr.Request = None,  # pyright: ignore[reportArgumentType]
    ) -> list[Picture]:
        """Generate pictures from a prompt, or over a picture, and keep them.

        Args:
            prompt: what to show; (word:1.3) weighs more, long prompts are read in full.
            negative_prompt: what to keep away from.
            adapters: atom file id to strength: a number, or numbers by block (down, mid, up,
                down.1, text_encoder), module path or pattern.
            seed: of the first picture; others have rising seeds.
            batch: number of pictures, 1 to 8.
            num_inference_steps: 1 to 100.
            guidance_scale: 0 to 30; none is the base's own.
            scheduler: one of those that /list_bases names.
            width: px, a multiple of 8; 0 is the base's own, or makes its area with the height.
            height: px, a multiple of 8; 0 is the base's own, or makes its area with the width.
            base: id of a listed base; empty is the default.
            start_from: id of a kept picture to start from.
            denoising_strength: how much of that picture is generated anew; of the second pass too.
            embed: put the atom files inside the PNGs.
            schedule: of the noise, one of those that /list_bases names.
            clip_skip: the text encoder's layer that is read, 1 the last.
            guidance_rescale: 0 to 1, against overexposure.
            image: an uploaded picture to start from.
            mask_image: an uploaded mask; white in it is generated anew, black stays.
            mask_blur: px of the mask's soft edge.
            hires_scale: generate a second time over the picture enlarged so, 1 to 4.
            hires_steps: steps of the second pass; 0 is as many as the first.
            batch_size: pictures generated at once, 1 to 8.
            strength_schedules: atom file id to factors over the steps, such as 0 until 0.2, then 1.
        """
        if image and start_from:
            raise AtomError("image and start_from are both given; one picture is started from")
        order = Order(
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            batch=batch,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            width=width,
            height=height,
            base=base,
            adapters=read_strengths(adapters),
            strength_schedules=strength_schedules or {},
            init_picture=open_upload(image, read_upload) or open_picture(studio, start_from),
            denoising_strength=denoising_strength,
            embed=embed,
            schedule=schedule,
            clip_skip=clip_skip,
            guidance_rescale=guidance_rescale,
            mask=open_upload(mask_image, read_mask),
            mask_blur=mask_blur,
            hires_scale=hires_scale,
            hires_steps=hires_steps,
            batch_size=batch_size,
        )
        kept: list[Kept] = []
        run_job(studio, request, lambda job: kept.extend(studio.paint(order, job)))
        return [show_picture(picture) for picture in kept]

    def compare(
        prompt: str,
        adapters: dict[str, Any],
        seed: int = 0,
        num_inference_steps: int = 25,
        base: str = "",
        request: gr.Request = None,  # pyright: ignore[reportArgumentType]
    ) -> list[Picture]:
        """Generate one seed without and with atom files: two pictures.

        Args:
            prompt: what to show.
            adapters: atom file id to strength.
            seed: of both pictures.
            num_inference_steps: 1 to 100.
            base: id of a listed base; empty is the default.
        """
        chosen = read_strengths(adapters)
        kept: list[Kept] = []

        def work(job: Job) -> None:
            for files in ((), chosen):
                order = Order(
                    prompt,
                    seed=seed,
                    num_inference_steps=num_inference_steps,
                    base=base,
                    adapters=files,
                )
                kept.extend(studio.paint(order, job))

        run_job(studio, request, work)
        return [show_picture(picture) for picture in kept]

    def grid(
        prompt: str,
        files: list[str],
        strengths: list[float],
        seeds: list[int],
        num_inference_steps: int = 25,
        base: str = "",
        request: gr.Request = None,  # pyright: ignore[reportArgumentType]
    ) -> dict[str, Any]:
        """Generate a labelled grid: columns are strengths, rows are atom files or checkpoints and
        seeds.

        Args:
            prompt: what to show.
            files: ids of atom files or checkpoints, each used by itself.
            strengths: one column each.
            seeds: one row each.
            num_inference_steps: 1 to 100.
            base: id of a listed base; empty is the default.
        """
        order = Order(prompt, num_inference_steps=num_inference_steps, base=base)
        done: list[tuple[Path, list[Kept]]] = []

        def work(job: Job) -> None:
            plan = plan_grid(order, strengths, seeds, files)
            done.extend((path, list(kept)) for path, kept in paint_grid(studio, plan, job))

        run_job(studio, request, work)
        path, kept = done[-1]
        return {"grid": refer(path), "pictures": [show_picture(picture) for picture in kept]}

    def cancel(request: gr.Request = None) -> bool:  # pyright: ignore[reportArgumentType]
        """Cancel what this session generates; true when something was running."""
        return studio.desk.cancel(request.session_hash if request else None)

    def list_bases() -> dict[str, list[str]]:
        """The base models, schedulers (samplers) and schedules that can be asked for."""
        from sdatoms.diffusion.samplers import SAMPLERS, SCHEDULES

        return {
            "bases": [choice.id for choice in studio.bases.list()],
            "schedulers": list(SAMPLERS),
            "schedules": list(SCHEDULES),
        }

    def list_atoms() -> list[dict[str, Any]]:
        """The listed atom files and LoRAs, and the checkpoints of runs."""
        return [
            {
                "id": entry.id,
                "trigger": entry.trigger,
                "parameters": entry.parameters,
                "bytes": entry.bytes,
                "sha256": entry.sha256,
                "base_model": entry.base_model,
                "step": entry.step,
                "kind": entry.kind,
                "rank": entry.rank,
                "example": entry.example,
            }
            for entry in [*studio.library.list_adapters(), *studio.library.list_checkpoints()]
        ]

    def list_pictures(search: str = "", limit: int = 20) -> list[Picture]:
        """Kept pictures, newest first.

        Args:
            search: words that prompt, atom files (name or hash), base or seed must hold.
            limit: at most 200.
        """
        return [show_picture(kept) for kept in studio.history.list(search, min(max(limit, 1), 200))]

    def add_atoms(path: FileData) -> dict[str, Any]:
        """Check an uploaded atom file or LoRA and list it; anything else is refused."""
        entry = studio.library.add(find_upload(path))
        return {"id": entry.id, "trigger": entry.trigger, "sha256": entry.sha256}

    def read_picture(path: FileData) -> dict[str, Any]:
        """Read the recipe of an uploaded picture; list atom files that ride inside; tell what would
        make the picture differ here."""
        file = find_upload(path)
        recipe = read_recipe(file)
        if recipe is None:
            raise AtomError("the picture carries no recipe")
        names = {used.sha256: used.name for used in recipe.adapters}
        brought = [
            studio.library.add_file(atoms, names.get(atoms.sha256, "copy")).id
            for atoms in read_embedded_atoms(file)
        ]
        settings, remarks = restore_recipe(recipe, studio)
        return {"settings": settings, "remarks": remarks, "brought": brought}

    painting = {"concurrency_limit": 8, "concurrency_id": "api-painting"}
    for endpoint in (generate, compare, grid):
        api(answer_errors(endpoint), api_name=endpoint.__name__, **painting)
    api(answer_errors(cancel), api_name="cancel", queue=False)
    for endpoint in (list_bases, list_atoms, list_pictures):
        api(answer_errors(endpoint), api_name=endpoint.__name__, concurrency_limit=4)
    for endpoint in (add_atoms, read_picture):
        answer = gr.JSON(visible=False, label="answer")
        add_endpoint(endpoint, {"file": gr.File(render=False)}, answer)


def run_job(studio: Studio, request: gr.Request | None, work: Any) -> None:
    """Run work to its end under the session's name, so that `/cancel` finds it.

    Raises:
        AtomError: the work's own, or it was cancelled.
    """
    session = request.session_hash if request else None
    job = studio.desk.start(session, work)
    try:
        for _ in job.watch():
            pass
    finally:
        studio.desk.forget(session, job)
    if job.cancelled:
        raise AtomError("the generation was cancelled")
