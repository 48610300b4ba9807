"""Pictures to paint over: as a whole, or where a mask says.

diffusers' image-to-image pipeline starts from a picture with noise added. With a mask, the part
outside of it is put back after every step, with as much noise as the step has left: what diffusers'
inpainting pipeline does for UNets of four channels, for UNets of any number. UNets that are shown
the mask themselves (nine channels) are painted with by that inpainting pipeline. In the end, pixels
outside of the mask are the picture's own.

The pipelines share the modules of the one at hand: adapters stay baked, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from torch.nn.functional import adaptive_max_pool2d

from sdatoms.errors import AtomError

__all__ = [
    "Canvas",
    "build_painter",
    "check_canvas",
    "fills_masks",
    "finish_picture",
    "fit_canvas",
    "list_canvas_settings",
    "protect_outside",
    "shape_latent_mask",
]


@dataclass(frozen=True)
class Canvas:
    """A picture to paint over, and where."""

    picture: Image.Image
    """RGB."""
    strength: float
    """How much of the noise is added before it is painted, above 0 to 1."""
    mask: Image.Image | None = None
    """Grey, of the picture's size; its light part is painted anew. None: the whole is."""
    blur: float = 0.0
    """Width in px of the mask's soft edge."""


def fills_masks(pipe: Any) -> bool:
    """Whether the pipeline's UNet is shown a mask beside its latents, as inpainting models are."""
    return pipe.unet.config.in_channels != pipe.vae.config.latent_channels


def check_canvas(
    *,
    init_picture: Image.Image | None,
    mask: Image.Image | None,
    mask_blur: float,
    denoising_strength: float,
    hires_scale: float,
    hires_steps: int,
    num_inference_steps: int,
) -> None:
    """Refuse what cannot be painted over, by any base; arguments as those of `paint`.

    Raises:
        AtomError: says what is missing, or which number is out of range.
    """
    if not 1 <= hires_scale <= 4:  # NaN is refused too
        raise AtomError(f"hires_scale is {hires_scale:g}; it goes from 1 to 4")
    if hires_steps < 0:
        raise AtomError(f"hires_steps is {hires_steps}; it takes at least 0")
    if not 0 < denoising_strength <= 1:
        raise AtomError(f"denoising_strength is {denoising_strength}; it goes from above 0 to 1")
    if not 0 <= mask_blur <= 256:
        raise AtomError(f"mask_blur is {mask_blur} px; it goes from 0 to 256")
    if init_picture is None:
        if mask is not None:
            raise AtomError("a mask came without a picture; give the picture it belongs to")
        return
    if hires_scale != 1:
        raise AtomError("hires_scale is for pictures generated from text; give width and height")
    if int(num_inference_steps * denoising_strength) < 1:
        raise AtomError(
            f"of {num_inference_steps} steps, denoising_strength {denoising_strength:g} leaves "
            "none; raise either"
        )
    if mask is None:
        return
    shape, wanted = mask.width / mask.height, init_picture.width / init_picture.height
    if abs(shape - wanted) > 0.02 * wanted:
        raise AtomError(
            f"the mask is {mask.width}×{mask.height} px where its picture is "
            f"{init_picture.width}×{init_picture.height}; they have the same proportions"
        )
    if max(mask.convert("L").tobytes()) < 128:
        raise AtomError("the mask is black everywhere; what is white in it is generated anew")


def fit_canvas(
    picture: Image.Image,
    mask: Image.Image | None,
    size: tuple[int, int],
    *,
    blur: float,
    strength: float,
) -> Canvas:
    """Picture and mask scaled to width × height px and cut where the proportions differ."""
    fitted = ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
    if mask is not None:
        mask = mask.convert("L").resize(picture.size, Image.Resampling.BILINEAR)
        mask = ImageOps.fit(mask, size, Image.Resampling.BILINEAR)
        mask = mask.point([0] * 128 + [255] * 128)
    return Canvas(fitted, strength, mask, blur)


def build_painter(pipe: Any, *, over: bool) -> Any:
    """The pipeline that paints, over the same modules and with the same scheduler.

    Args:
        over: it paints over pictures.

    Raises:
        AtomError: this pipeline has no such form.
    """
    form = "Inpaint" if fills_masks(pipe) else "Img2Img" if over else ""
    kind = type(pipe).__name__
    if form == next((other for other in ("Inpaint", "Img2Img") if other in kind), ""):
        return pipe
    from diffusers.pipelines import auto_pipeline

    tasks = {"Inpaint": "Inpainting", "Img2Img": "Image2Image", "": "Text2Image"}
    try:
        # Unlike the classes' own `from_pipe`, this leaves the modules' dtype as it is.
        painter = getattr(auto_pipeline, f"AutoPipelineFor{tasks[form]}").from_pipe(pipe)
    except ValueError:
        raise AtomError(f"a {kind} does not start from pictures") from None
    painter.set_progress_bar_config(disable=True)
    return painter


def list_canvas_settings(pipe: Any, canvases: Sequence[Canvas]) -> dict[str, Any]:
    """Arguments of `build_painter`'s pipeline for one picture on each canvas."""
    pictures = [canvas.picture for canvas in canvases]
    settings: dict[str, Any] = {"image": pictures, "strength": canvases[0].strength}
    if fills_masks(pipe):
        width, height = pictures[0].size
        masks = [canvas.mask for canvas in canvases]
        settings |= {"mask_image": masks, "width": width, "height": height}
    return settings


def shape_latent_mask(mask: Image.Image, factor: int) -> torch.Tensor:
    """`(1, 1, h, w)` of 0 and 1: 1 for latents that a pixel to be painted anew lies in."""
    pixels = torch.tensor(list(mask.tobytes()), dtype=torch.float32)
    pixels = (pixels >= 128).float().reshape(1, 1, mask.height, mask.width)
    return adaptive_max_pool2d(pixels, (mask.height // factor, mask.width // factor))


@contextmanager
def protect_outside(
    painter: Any, canvas: Canvas | None
) -> Iterator[Callable[[int, dict[str, Any]], dict[str, Any]]]:
    """While an image-to-image pipeline runs in a `with` block, hold what lies outside of the mask.

    Yields:
        What is to be called after each step, with its number and the pipeline's tensors; it returns
        the tensors to go on with.
    """
    if canvas is None or canvas.mask is None or fills_masks(painter):
        yield lambda _, tensors: tensors
        return
    scheduler, add_noise = painter.scheduler, painter.scheduler.add_noise
    inside = shape_latent_mask(canvas.mask, painter.vae_scale_factor)
    clean: list[tuple[torch.Tensor, torch.Tensor]] = []

    def see(latents: torch.Tensor, noise: torch.Tensor, time: Any) -> torch.Tensor:
        clean.append((latents, noise))
        return add_noise(latents, noise, time)

    def restore(step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        latents, (outside, noise) = tensors["latents"], clean[0]
        times = scheduler.timesteps[-painter.num_timesteps :]
        if step + 1 < len(times):
            outside = add_noise(outside, noise, times[step + 1 : step + 2])
        here = inside.to(latents.device, latents.dtype)
        return tensors | {"latents": here * latents + (1 - here) * outside}

    scheduler.add_noise = see
    try:
        yield restore
    finally:
        del scheduler.add_noise


def finish_picture(painted: Image.Image, canvas: Canvas | None) -> Image.Image:
    """The painted picture inside of the mask, the canvas's own pixels outside."""
    if canvas is None or canvas.mask is None:
        return painted
    soft = canvas.mask.filter(ImageFilter.GaussianBlur(canvas.blur))
    return Image.composite(painted, canvas.picture, soft)
