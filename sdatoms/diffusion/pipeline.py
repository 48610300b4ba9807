"""Open a Stable Diffusion base and paint with it.

The trainer, the commands and the app all paint through here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image, ImageOps

from sdatoms.diffusion.family import check_folder_family, check_pipeline_family, find_base
from sdatoms.diffusion.preview import Previewer
from sdatoms.diffusion.prompts import encode_prompts
from sdatoms.errors import AtomError, clip, first_line

__all__ = [
    "SCHEDULERS",
    "check_seeds",
    "load_base",
    "paint",
    "pick_device",
]

SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
}


def load_base(
    name_or_path: str | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    load_in: str | None = None,
) -> Any:
    """Open a diffusers pipeline from a directory, a single-file checkpoint or the hub; safetensors
    only. None opens the bundled base.

    Args:
        load_in: "8bit" or "4bit" holds the UNet's linear layers so (bitsandbytes).

    Raises:
        AtomError: there is no such directory and the hub cannot be reached, or it holds no
        pipeline.
    """
    where = find_base(name_or_path)
    local = Path(where).is_dir()
    if local and not (Path(where) / "model_index.json").is_file():
        raise AtomError(
            f"the folder {where!r} is no diffusers pipeline: it has no model_index.json"
        )
    if local:
        check_folder_family(Path(where))
    if name_or_path is None and not local:
        raise AtomError(f"the bundled base is missing from {where!r}; name a base model")
    extras: dict[str, Any] = (
        {} if local and not wants_safety_checker(Path(where)) else {"safety_checker": None}
    )
    if load_in:
        extras["unet"] = load_small_unet(where, load_in, dtype, revision=revision, variant=variant)
    try:
        if Path(where).is_file():
            pipe = open_single_file(Path(where), dtype)
        else:
            pipe = DiffusionPipeline.from_pretrained(
                where,
                revision=revision,
                variant=variant,
                dtype=dtype,
                use_safetensors=True,
                **extras,
            )
    except AtomError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise AtomError(f"the base model {where!r} cannot be opened: {reason}") from None
    check_pipeline_family(pipe, where)
    pipe.set_progress_bar_config(disable=True)
    if vae := getattr(pipe, "vae", None):
        vae.enable_slicing()  # pictures of a batch decoded at once would be its peak of memory
    return pipe.to(device or pick_device())


def open_single_file(path: Path, dtype: torch.dtype) -> Any:
    """A Stable Diffusion checkpoint in one safetensors file, judged by its content.

    Its configuration and tokenizer come from the hub or its cache.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file.read(1) != b"{" or length > path.stat().st_size - 8:
            raise AtomError(
                f"the base model {path.name!r} is no safetensors file; other checkpoint files are "
                "never opened"
            )
    return StableDiffusionPipeline.from_single_file(
        str(path), torch_dtype=dtype, safety_checker=None, use_safetensors=True
    )


def load_small_unet(where: str, load_in: str, dtype: torch.dtype, **options: Any) -> Any:
    """The UNet with its linear layers in 8 or 4 bits.

    Raises:
        AtomError: bitsandbytes is missing, or the folder holds no UNet.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    try:
        from sdatoms.layers.quantized import quantize_linears

        unet = UNet2DConditionModel.from_pretrained(
            where, subfolder="unet", use_safetensors=True, torch_dtype=dtype, **options
        )
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise AtomError(
            f"--load_in {load_in} cannot open the UNet of {where!r}: {reason}"
        ) from None
    quantize_linears(unet, load_in)
    return unet


def wants_safety_checker(folder: Path) -> bool:
    return '"safety_checker"' in (folder / "model_index.json").read_text(encoding="utf-8")


def pick_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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
    most = pipe.scheduler.config.get("num_train_timesteps", 1000)
    if not 1 <= num_inference_steps <= most:
        raise AtomError(f"num_inference_steps is {num_inference_steps}; it takes 1 to {most}")
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
