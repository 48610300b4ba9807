"""Paint with a Stable Diffusion base.

The trainer, the commands and the app all paint through here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image, ImageOps

from sdatoms.diffusion.preview import Previewer
from sdatoms.diffusion.prompts import encode_prompts
from sdatoms.errors import AtomError, clip

__all__ = [
    "SCHEDULERS",
    "check_seeds",
    "paint",
]

SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
}


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
    for prompt in (*prompts, negative_prompt or ""):
        if not isinstance(prompt, str):
            raise AtomError(f"a prompt is a {type(prompt).__name__}; it takes text")
    most = pipe.scheduler.config.get("num_train_timesteps", 1000)
    if not 1 <= num_inference_steps <= most or num_inference_steps % 1:
        raise AtomError(f"num_inference_steps is {num_inference_steps}; it takes 1 to {most}")
    if not math.isfinite(guidance_scale):
        raise AtomError(f"guidance_scale is {guidance_scale}; it takes a finite number")
    width, height = choose_size(pipe, width, height)
    if init_picture is not None and not 0 < denoising_strength <= 1:
        raise AtomError(f"denoising_strength is {denoising_strength}; it goes from above 0 to 1")
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    pipe.unet.eval()
    settings: dict[str, Any] = {"height": height, "width": width}
    painter = pipe
    if init_picture is not None:
        painter, settings = start_from(pipe, init_picture, width, height, denoising_strength)
    pictures: list[Image.Image] = []
    batches = -(-len(prompts) // batch_size)
    for index in range(batches):
        part = slice(index * batch_size, (index + 1) * batch_size)

        def report(
            running: Any, step: int, _time: Any, kwargs: dict[str, Any], index: int = index
        ) -> dict[str, Any]:
            steps = running.num_timesteps
            if callback:
                callback(index * steps + step + 1, batches * steps)
            return kwargs

        with previewer.watch(painter.scheduler) if previewer else nullcontext():
            result = painter(
                **encode_prompts(pipe, prompts[part], negative_prompt),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds[part]],
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
        if not hasattr(seed, "__int__") or (isinstance(seed, float) and seed % 1):
            raise AtomError(f"the seed is {seed}; it takes a whole number")
        if not -(1 << 63) <= int(seed) < 1 << 64:
            raise AtomError(f"the seed is {seed}; seeds go from {-(1 << 63)} to {(1 << 64) - 1}")


def choose_size(pipe: Any, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """Width and height in px; where one is given, the other makes the base's own area.

    Raises:
        AtomError: a side is no multiple of what the base takes.
    """
    unit = math.lcm(8, pipe.vae_scale_factor)
    for name, side in (("width", width), ("height", height)):
        if side is not None and (side < unit or side % unit):
            raise AtomError(f"the {name} is {side} px; this base takes multiples of {unit} px")
    area = (pipe.unet.config.sample_size * pipe.vae_scale_factor) ** 2
    fit = lambda side: max(unit, round(area / side / unit) * unit)
    if width is not None and height is None:
        return width, fit(width)
    if height is not None and width is None:
        return fit(height), height
    return width, height


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


def set_scheduler(pipe: Any, name: str) -> None:
    """Swap the sampler, keeping the base's noise schedule.

    Raises:
        AtomError: the name is not one of `SCHEDULERS`.
    """
    import diffusers

    if name not in SCHEDULERS:
        raise AtomError(
            f"the scheduler {clip(name)!r} is unknown; known are {', '.join(SCHEDULERS)}"
        )
    cls = getattr(diffusers, SCHEDULERS[name])
    if type(pipe.scheduler) is not cls:
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
