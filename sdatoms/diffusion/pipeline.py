"""Paint with a Stable Diffusion base.

The trainer, the commands and the app all paint through here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image, ImageOps

from sdatoms.diffusion.preview import Previewer
from sdatoms.diffusion.prompts import encode_prompts
from sdatoms.diffusion.samplers import check_sampler, seed_noise, swap_scheduler
from sdatoms.diffusion.sizes import choose_size
from sdatoms.errors import AtomError

__all__ = [
    "check_seeds",
    "paint",
]


def paint(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompt: str | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    height: int | None = None,
    width: int | None = None,
    scheduler: str | None = None,
    schedule: str | None = None,
    clip_skip: int = 1,
    guidance_rescale: float = 0.0,
    batch_size: int = 1,
    init_picture: Image.Image | None = None,
    denoising_strength: float = 0.6,
    callback: Callable[[int, int], None] | None = None,
    previewer: Previewer | None = None,
) -> list[Image.Image]:
    """One picture for each pair of prompt and seed.

    Noise is drawn on the CPU from each picture's own seed. With `batch_size` 1 a picture is the
    same, pixel for pixel, whatever is painted beside it; larger batches are faster and may differ
    from it by a grey level. Prompts may weigh words and be longer than the text encoder's window,
    see `sdatoms.diffusion.prompts`.

    Args:
        scheduler: one of `sdatoms.diffusion.samplers.SAMPLERS`; the base's own if not given.
        schedule: one of `SCHEDULES` there.
        clip_skip: the layer of the text encoder that is read, counted from its end as A1111 does:
            1 is the last, see `sdatoms.diffusion.prompts`.
        guidance_rescale: how far guided noise is brought back to the spread of noise without
            guidance, 0 to 1 (https://huggingface.co/papers/2305.08891, section 3.4).
        init_picture: a picture to start from instead of noise, scaled to `width`×`height` px.
        denoising_strength: how much of it is painted anew, above 0 to 1.
        callback: is told `(done, total)` denoising steps and may raise to cancel.
        previewer: looks on, and has drawn each step before `callback` is told of it.

    Raises:
        AtomError: prompts and seeds differ in number, or a number is out of range.
    """
    if len(prompts) != len(seeds):
        raise AtomError(
            f"{len(prompts)} prompts came with {len(seeds)} seeds; each prompt takes one seed"
        )
    check_seeds(seeds)
    most = pipe.scheduler.config.get("num_train_timesteps", 1000)
    if not 1 <= num_inference_steps <= most:
        raise AtomError(f"num_inference_steps is {num_inference_steps}; it takes 1 to {most}")
    width, height = choose_size(pipe, width, height)
    if init_picture is not None and not 0 < denoising_strength <= 1:
        raise AtomError(f"denoising_strength is {denoising_strength}; it goes from above 0 to 1")
    if not 0 <= guidance_rescale <= 1:
        raise AtomError(f"guidance_rescale is {guidance_rescale}; it goes from 0 to 1")
    if scheduler is not None:
        check_sampler(scheduler, schedule or "normal", num_inference_steps)
    pipe.unet.eval()
    with swap_scheduler(pipe, scheduler, schedule):
        settings: dict[str, Any] = {"height": height, "width": width}
        painter = pipe
        if init_picture is not None:
            painter, settings = start_from(pipe, init_picture, width, height, denoising_strength)
        if guidance_rescale:
            settings["guidance_rescale"] = guidance_rescale
            if "guidance_rescale" not in inspect.signature(painter.__call__).parameters:
                raise AtomError(
                    f"guidance_rescale is {guidance_rescale:g}; a {type(painter).__name__} takes 0"
                )
        pictures: list[Image.Image] = []
        batches = -(-len(prompts) // batch_size)
        for index in range(batches):
            part = slice(index * batch_size, (index + 1) * batch_size)
            seed_noise(painter.scheduler, seeds[part])

            def report(
                running: Any, step: int, _time: Any, kwargs: dict[str, Any], index: int = index
            ) -> dict[str, Any]:
                steps = running.num_timesteps
                if callback:
                    callback(index * steps + step + 1, batches * steps)
                return kwargs

            with previewer.watch(painter.scheduler) if previewer else nullcontext():
                result = painter(
                    **encode_prompts(pipe, prompts[part], negative_prompt, clip_skip),
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    generator=[torch.Generator("cpu").manual_seed(int(s)) for s in seeds[part]],
                    callback_on_step_end=report,
                    **settings,
                )
            pictures.extend(result.images)
    return pictures


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that no generator takes.

    Raises:
        AtomError: names the first.
    """
    for seed in seeds:
        if not -(1 << 63) <= int(seed) < 1 << 64:
            raise AtomError(f"the seed is {seed}; seeds go from {-(1 << 63)} to {(1 << 64) - 1}")


def start_from(
    pipe: Any, picture: Image.Image, width: int | None, height: int | None, strength: float
) -> tuple[Any, dict[str, Any]]:
    """The image-to-image pipeline over the same modules, and its arguments.

    Raises:
        AtomError: this pipeline has no image-to-image form.
    """
    import diffusers

    name = type(pipe).__name__
    cls = getattr(diffusers, name.replace("Pipeline", "Img2ImgPipeline"), None)
    if cls is None or "Img2Img" in name:
        raise AtomError(f"a {name} cannot start from a picture")
    painter = cls.from_pipe(pipe)
    painter.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    size = (width or side, height or side)
    fitted = ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
    return painter, {"image": fitted, "strength": strength}
