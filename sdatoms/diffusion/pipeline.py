"""Paint with a Stable Diffusion base.

The trainer, the commands and the app all paint through here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from sdatoms.adapters.scheduled import follow_schedules
from sdatoms.atoms.schedules import Schedule
from sdatoms.diffusion.canvas import (
    Canvas,
    build_painter,
    check_canvas,
    fills_masks,
    finish_picture,
    fit_canvas,
    list_canvas_settings,
    protect_outside,
)
from sdatoms.diffusion.guidance import find_guidance
from sdatoms.diffusion.preview import Previewer
from sdatoms.diffusion.prompts import encode_prompts
from sdatoms.diffusion.samplers import check_sampler, seed_noise, swap_scheduler
from sdatoms.diffusion.sizes import enlarge_size, fit_size
from sdatoms.errors import AtomError, clip, is_finite

__all__ = [
    "check_seeds",
    "paint",
]

SIDES = ("width", "height")


def paint(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompt: str | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    scheduler: str | None = None,
    schedule: str | None = None,
    clip_skip: int = 1,
    guidance_rescale: float = 0.0,
    batch_size: int = 1,
    init_picture: Image.Image | None = None,
    mask: Image.Image | None = None,
    mask_blur: float = 4.0,
    denoising_strength: float = 0.6,
    hires_scale: float = 1.0,
    hires_steps: int = 0,
    callback: Callable[[int, int], None] | None = None,
    previewer: Previewer | None = None,
    strength_schedules: Mapping[str, Schedule] | None = None,
) -> list[Image.Image]:
    """One picture for each pair of prompt and seed.

    Noise is drawn on the CPU from each picture's own seed. With `batch_size` 1 a picture is the
    same, pixel for pixel, whatever is painted beside it; larger batches are faster and may differ
    from it by a grey level. Prompts may weigh words and be longer than the text encoder's window,
    see `sdatoms.diffusion.prompts`.

    Args:
        guidance_scale: how far noise goes from that of `negative_prompt` to the prompt's, and
            beyond above 1; what `sdatoms.diffusion.guidance.find_guidance` finds if not given.
        scheduler: one of `sdatoms.diffusion.samplers.SAMPLERS`; the base's own if not given.
        schedule: one of `SCHEDULES` there.
        clip_skip: the layer of the text encoder that is read, counted from its end as A1111 does:
            1 is the last, see `sdatoms.diffusion.prompts`.
        guidance_rescale: how far guided noise is brought back to the spread of noise without
            guidance, 0 to 1 (https://huggingface.co/papers/2305.08891, section 3.4).
        init_picture: a picture to start from instead of noise, scaled to `width`×`height` px, or,
            with neither given, to its own proportions in the base's area.
        mask: of `init_picture`'s proportions; white is painted anew, black stays pixel for pixel.
        mask_blur: width in px of the mask's soft edge.
        denoising_strength: how much of the picture is painted anew, above 0 to 1; that share of the
            steps is walked. The second pass takes it too.
        hires_scale: paint a second time over the first picture enlarged so, 1 to 4; for pictures
            painted from text.
        hires_steps: steps that the second pass walks; 0: as many as the first.
        callback: is told `(done, total)` denoising steps and may raise to cancel.
        previewer: looks on, and has drawn each step before `callback` is told of it.
        strength_schedules: how the strengths of loaded adapters go over the steps of each pass, by
            adapter; afterwards they are what they were, also where the painting is cancelled.

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
    if batch_size < 1:
        raise AtomError(f"batch_size is {batch_size}; it takes at least 1")
    check_canvas(
        init_picture=init_picture,
        mask=mask,
        mask_blur=mask_blur,
        denoising_strength=denoising_strength,
        hires_scale=hires_scale,
        hires_steps=hires_steps,
        num_inference_steps=num_inference_steps,
    )
    if fills_masks(pipe) and mask is None:
        raise AtomError("this base fills in masks: it takes a picture and a mask to start from")
    size = fit_size(pipe, width, height, init_picture.size if init_picture else None)
    larger = enlarge_size(pipe, size, hires_scale)
    more = second_steps = 0
    if larger != size:
        more = hires_steps or num_inference_steps
        second_steps = choose_second_steps(pipe, more, denoising_strength)
    check_rescale(pipe, guidance_rescale, {init_picture is not None, larger != size})
    if guidance_scale is None:
        guidance_scale = find_guidance(pipe)
    if not is_finite(guidance_scale):
        raise AtomError(f"guidance_scale is {clip(str(guidance_scale))}; it takes a finite number")
    if scheduler is not None:
        for steps in (num_inference_steps, second_steps or 1):
            check_sampler(scheduler, schedule or "normal", steps)
    pipe.unet.eval()
    over = {"blur": mask_blur, "strength": denoising_strength}
    canvas = fit_canvas(init_picture, mask, size, **over) if init_picture else None
    batches = [slice(start, start + batch_size) for start in range(0, len(prompts), batch_size)]
    progress = Progress(callback or (lambda done, total: None), len(batches), more)
    rescale = {"guidance_rescale": guidance_rescale} if guidance_rescale else {}
    pictures: list[Image.Image] = []
    with swap_scheduler(pipe, scheduler, schedule):
        for progress.batch, part in enumerate(batches):
            walk = partial(
                paint_batch,
                pipe,
                prompts[part],
                seeds[part],
                negative_prompt=negative_prompt,
                clip_skip=clip_skip,
                sampling={"guidance_scale": guidance_scale, **rescale},
                strength_schedules=strength_schedules or {},
                previewer=previewer,
            )
            blank = [canvas] * len(seeds[part])
            painted = walk(blank, size, num_inference_steps, progress.tell_first)
            if larger != size:
                canvases = [fit_canvas(picture, None, larger, **over) for picture in painted]
                painted = walk(canvases, larger, second_steps, progress.tell_second)
            pictures.extend(painted)
    return pictures


@dataclass
class Progress:
    """Denoising steps of all batches, each in one pass or two."""

    callback: Callable[[int, int], None]
    """Is told `(done, total)`."""
    batches: int
    more: int
    """Steps of a batch's second pass."""
    batch: int = 0
    """The one under way."""
    first: int = 0
    """Steps of a batch's first pass."""

    def tell_first(self, done: int, steps: int) -> None:
        self.first = steps
        self.tell(done)

    def tell_second(self, done: int, steps: int) -> None:
        self.more = steps
        self.tell(self.first + done)

    def tell(self, done: int) -> None:
        whole = self.first + self.more
        self.callback(self.batch * whole + done, self.batches * whole)


def paint_batch(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    canvases: Sequence[Canvas | None],
    size: tuple[int, int],
    steps: int,
    tell: Callable[[int, int], None],
    *,
    negative_prompt: str | None,
    clip_skip: int,
    sampling: Mapping[str, Any],
    strength_schedules: Mapping[str, Schedule],
    previewer: Previewer | None,
) -> list[Image.Image]:
    """Pictures that are painted at once.

    Args:
        canvases: what each is painted over, of one size; None: nothing.
        size: width and height in px.
        tell: is told of each step: its number from 1, and how many there are.
        sampling: further arguments of the pipeline.

    Raises:
        AtomError: what came out are no finite numbers.
    """
    painter = build_painter(pipe, over=canvases[0] is not None)
    seed_noise(painter.scheduler, seeds)
    given = [canvas for canvas in canvases if canvas is not None]
    settings = list_canvas_settings(pipe, given) if given else dict(zip(SIDES, size, strict=True))
    watched = previewer.watch(painter.scheduler) if previewer else nullcontext()
    with (
        watched,
        follow_schedules(pipe, strength_schedules) as follow,
        protect_outside(painter, canvases[0]) as restore,
    ):

        def see(running: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step + 1 == running.num_timesteps and not tensors["latents"].isfinite().all():
                raise AtomError(
                    f"no finite numbers came out at guidance_scale {sampling['guidance_scale']:g}: "
                    "lower it or the adapters' strengths, or open the base in float32"
                )
            tell(step + 1, running.num_timesteps)
            return restore(step, follow(running, step, _time, tensors))

        try:
            result = painter(
                **encode_prompts(pipe, prompts, negative_prompt, clip_skip),
                **sampling,
                **settings,
                num_inference_steps=steps,
                generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds],
                callback_on_step_end=see,
            )
        finally:
            if painter is not pipe:  # whose hooks fetch the modules that both share
                pipe.maybe_free_model_hooks()
    return [finish_picture(p, c) for p, c in zip(result.images, canvases, strict=True)]


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


def check_rescale(pipe: Any, guidance_rescale: float, over: set[bool]) -> None:
    """Refuse to rescale guidance where a pipeline does not.

    Args:
        over: whether pictures are painted over, of each pass.

    Raises:
        AtomError: it does not, or the number is out of range.
    """
    if not 0 <= guidance_rescale <= 1:
        raise AtomError(f"guidance_rescale is {guidance_rescale}; it goes from 0 to 1")
    for painter in (build_painter(pipe, over=one) for one in over if guidance_rescale):
        if "guidance_rescale" not in inspect.signature(painter.__call__).parameters:
            raise AtomError(
                f"guidance_rescale is {guidance_rescale:g}; a {type(painter).__name__} takes 0"
            )


def choose_second_steps(pipe: Any, steps: int, strength: float) -> int:
    """How many steps a second pass has, of which `strength` leaves the `steps` that are walked.

    Raises:
        AtomError: the schedule has not so many.
    """
    total = math.ceil(steps / strength)
    total += int(total * strength) < steps
    most = pipe.scheduler.config.get("num_train_timesteps", 1000)
    if total > most:
        raise AtomError(
            f"{steps} steps of a second pass at denoising_strength {strength:g} are {total} in "
            f"all; the base has {most}: raise the strength or lower hires_steps"
        )
    return total
