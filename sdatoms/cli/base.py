"""The flags by which every command takes a base, and how it is opened from them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sdatoms.errors import name_full_memory

__all__ = [
    "FLAGS",
    "add_base_flags",
    "explain_full_memory",
    "open_base",
]

FLAGS = ("dtype", "offload", "vae", "text_encoders", "prediction_type")
"""Flags that go to `load_base` under the same name."""


def add_base_flags(
    parser: argparse.ArgumentParser, *, places: bool = True, precision: bool = True
) -> None:
    """`--pretrained_model_name_or_path`, and the flags that say how it is opened.

    Args:
        places: also `--offload`, for commands that paint.
        precision: also `--dtype`; left out where that flag means something else.
    """
    parser.add_argument(
        "--pretrained_model_name_or_path",
        default=None,
        help="base model: a pipeline's folder, a single safetensors file in its original layout "
        "(Stable Diffusion 1.x, 2.x, XL), or a hub id; the bundled one by default",
    )
    if precision:
        parser.add_argument(
            "--dtype",
            choices=("auto", "float32", "float16", "bfloat16"),
            default="auto",
            help="of the base's weights (default: auto, the base's own on a GPU, float32 on a CPU)",
        )
    if places:
        parser.add_argument(
            "--offload",
            choices=("auto", "none", "model", "sequential", "group"),
            default="auto",
            help="what lies on the GPU: all, a component, a layer, or groups of layers at a time "
            "(default: auto, the fastest that fits into free memory)",
        )
    parser.add_argument(
        "--vae",
        default=None,
        metavar="WHERE",
        help="another autoencoder: a folder, a safetensors file or a hub id",
    )
    parser.add_argument(
        "--text_encoders",
        default=None,
        metavar="WHERE",
        help="for single files without text encoders: a pipeline's folder, or a single file of "
        "the same family, to take them from",
    )
    parser.add_argument(
        "--prediction_type",
        choices=("epsilon", "v_prediction"),
        default=None,
        help="what a single file's UNet predicts, where it is not told right",
    )


def open_base(args: argparse.Namespace, **settings: Any) -> Any:
    """The pipeline that the flags of `add_base_flags` name; one line on standard error says what
    "auto" chose."""
    from sdatoms.diffusion.open import load_base

    given = {flag: getattr(args, flag) for flag in FLAGS if hasattr(args, flag)}
    return load_base(
        args.pretrained_model_name_or_path,
        **given | settings,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )


def explain_full_memory(args: argparse.Namespace, error: BaseException) -> str:
    """One sentence for a full memory: whose, and what to try next of the command's own flags."""
    place = name_full_memory(error)
    steps = {"auto": "group", "none": "model", "model": "group", "group": "sequential"}
    offload, dtype = getattr(args, "offload", None), getattr(args, "dtype", None)
    hints = [f"--offload {steps[offload]}"] if place == "GPU" and offload in steps else []
    if dtype == "float32" or (dtype == "auto" and place == "machine"):
        hints.append("--dtype bfloat16")
    if getattr(args, "batch_size", 1) > 1:
        hints.append("--batch_size 1")
    if hasattr(args, "width"):
        hints.append("a smaller --width and --height")
    what = ", or ".join(hints[:2]) or "closing what else uses it"
    return f"the {place}'s memory is full; try {what}"
