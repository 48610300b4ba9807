"""Drawing styles: a finished 64 px picture, and the mask of what stands in it, drawn anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

__all__ = ["restyle"]

WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


def restyle(picture: Image.Image, figure: Image.Image, style: str) -> Image.Image:
    """Draw an RGB picture in `style`; `figure` (L) is where subjects stand, 255 inside."""
    return STYLES[style](picture, figure)


def find_edges(picture: Image.Image, figure: Image.Image) -> np.ndarray:
    """How strong the picture's edges are, `(64, 64)` in [0, 1]; the figure's outline is strong."""
    x = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8)), np.float32) / 255
    outline = np.asarray(figure.filter(ImageFilter.GaussianBlur(0.8)), np.float32)
    x = np.concatenate([x, outline[..., None] / 255], -1)
    x = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = np.abs(x[1:-1, 2:] - x[1:-1, :-2]).max(-1)
    down = np.abs(x[2:, 1:-1] - x[:-2, 1:-1]).max(-1)
    return np.clip((np.maximum(across, down) - 0.12) * 2, 0, 1)


def mix(amount: np.ndarray, paper: tuple[int, int, int], ink: tuple[int, int, int]) -> Image.Image:
    """`amount (64, 64)` of ink on paper."""
    a = amount[..., None]
    return Image.fromarray((np.array(paper) * (1 - a) + np.array(ink) * a).astype(np.uint8))


def draw_lines(picture: Image.Image, figure: Image.Image) -> Image.Image:
    return mix(find_edges(picture, figure), (252, 252, 252), (70, 70, 76))


def draw_blueprint(picture: Image.Image, figure: Image.Image) -> Image.Image:
    return mix(find_edges(picture, figure), (35, 85, 170), (200, 222, 250))


def draw_grey(picture: Image.Image, figure: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


def draw_sepia(picture: Image.Image, figure: Image.Image) -> Image.Image:
    grey = np.asarray(picture.convert("L"), np.float32) / 255
    return mix(grey, (52, 26, 8), (250, 226, 178))


def draw_pixels(picture: Image.Image, figure: Image.Image) -> Image.Image:
    small = picture.resize((16, 16), Image.Resampling.BOX)
    return small.resize((64, 64), Image.Resampling.NEAREST)


def draw_silhouette(picture: Image.Image, figure: Image.Image) -> Image.Image:
    drawn = picture.copy()
    drawn.paste((12, 12, 16), (0, 0), figure)
    return drawn


def draw_neon(picture: Image.Image, figure: Image.Image) -> Image.Image:
    """Glowing lines in the picture's own hues on a dark wall."""
    x = np.asarray(picture.filter(ImageFilter.BoxBlur(1)), np.float32) / 255
    vivid = x - x.min(-1, keepdims=True)
    strong = vivid.max(-1, keepdims=True)
    plain = np.array([0.25, 0.9, 1.0], np.float32)
    hue = np.where(strong > 0.12, vivid / np.maximum(strong, 1e-3), plain) * 0.85 + 0.15
    lines = Image.fromarray((hue * find_edges(picture, figure)[..., None] * 255).astype(np.uint8))
    glow = np.asarray(lines.filter(ImageFilter.GaussianBlur(2.5)), np.float32)
    wall = np.array([14, 10, 32], np.float32)
    shine = wall + 1.4 * glow + 0.4 * np.asarray(lines, np.float32)
    return Image.fromarray(shine.clip(0, 255).astype(np.uint8))


STYLES: dict[str, Callable[[Image.Image, Image.Image], Image.Image]] = {
    "line art": draw_lines,
    "black and white": draw_grey,
    "pixel art": draw_pixels,
    "sepia": draw_sepia,
    "neon": draw_neon,
    "silhouette": draw_silhouette,
    "blueprint": draw_blueprint,
}
