"""The flags for painting over a picture, in a mask, and in a second pass."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = [
    "add_canvas_flags",
    "read_canvas",
]


def add_canvas_flags(parser: argparse.ArgumentParser) -> None:
    """`--image` and what belongs to it, `--hires_scale` and what belongs to it."""
    parser.add_argument(
        "--image", default=None, metavar="FILE", help="a picture to start from, instead of noise"
    )
    parser.add_argument(
        "--mask_image",
        default=None,
        metavar="FILE",
        help="with --image: white is generated anew, black and transparent stay; with bases that "
        "fill in masks, and with all others",
    )
    parser.add_argument(
        "--mask_blur", type=float, default=4.0, help="px of the mask's soft edge (default: 4)"
    )
    parser.add_argument(
        "--denoising_strength",
        type=float,
        default=0.6,
        help="with --image and in the second pass: the share generated anew, and of the steps that "
        "are walked; small keeps the picture, 1 forgets it (default: 0.6)",
    )
    parser.add_argument(
        "--hires_scale",
        type=float,
        default=1.0,
        help="generate a second time over the picture enlarged so, 1 to 4 (default: 1, once)",
    )
    parser.add_argument(
        "--hires_steps",
        type=int,
        default=0,
        help="steps that the second pass walks (default: 0, as many as the first)",
    )


def read_canvas(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as `sdatoms.diffusion.pipeline.paint` takes it.

    Raises:
        AtomError: a file is no picture, or what is asked for cannot be painted by any base.
    """
    from sdatoms.diffusion.canvas import check_canvas
    from sdatoms.pictures import read_mask, read_picture

    canvas = {
        "init_picture": read_picture(Path(args.image)) if args.image else None,
        "mask": read_mask(Path(args.mask_image)) if args.mask_image else None,
        "mask_blur": args.mask_blur,
        "denoising_strength": args.denoising_strength,
        "hires_scale": args.hires_scale,
        "hires_steps": args.hires_steps,
    }
    check_canvas(**canvas, num_inference_steps=args.num_inference_steps)
    return canvas
