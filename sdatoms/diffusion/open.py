"""Open a Stable Diffusion base: a pipeline's folder, a single file or a hub id, placed to work.

Everything that takes a base comes through `load_base`. What a base is can be read before it is
opened, see `family.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sdatoms.diffusion.family import (
    check_folder_family,
    check_pipeline_family,
    describe_base,
    find_base,
    find_side,
)
from sdatoms.diffusion.guidance import keep_guidance
from sdatoms.diffusion.placement import (
    Offload,
    choose_placement,
    find_free_memory,
    measure_pipeline,
    place,
)
from sdatoms.errors import AtomError, check_text, clip, first_line
from sdatoms.models.autoencoder import open_vae
from sdatoms.models.header import UNOPENED
from sdatoms.models.recognize import FAMILIES, Prediction, read_checkpoint
from sdatoms.models.single_file import open_checkpoint
from sdatoms.storage import check_place, reach_hub, read_table

__all__ = [
    "DTYPE_NAMES",
    "DtypeName",
    "load_base",
    "pick_device",
]

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
DTYPE_NAMES: tuple[DtypeName, ...] = ("auto", "float32", "float16", "bfloat16")


def pick_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_base(
    name_or_path: str | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | DtypeName = "auto",
    device: str | torch.device | None = None,
    offload: Offload = "auto",
    vae: str | None = None,
    text_encoders: str | None = None,
    prediction_type: Prediction | None = None,
    load_in: str | None = None,
    inpainting: bool = False,
    say: Callable[[str], None] | None = None,
) -> Any:
    """Open a diffusers pipeline from a directory, a single file or the hub; safetensors only.

    None opens the bundled base. Single files open offline, see `sdatoms.models.recognize`.

    Args:
        dtype: of all weights; "auto" is the base's own on a GPU and float32 on a CPU.
        offload: "none", "model", "group" or "sequential", see `sdatoms.diffusion.placement`;
            "auto" decides from free memory.
        vae: another autoencoder: a folder, a file or a hub id.
        text_encoders: a pipeline's folder, or a single file of the same family, whose text
            encoders are taken; for single files that lack theirs.
        prediction_type: what a single file's UNet predicts, where it is not told right.
        load_in: "8bit" or "4bit" holds the UNet's linear layers so (bitsandbytes).
        inpainting: take bases that fill in masks too; whoever paints with one gives it a mask.
        say: is told in one line what "auto" chose and why.

    Raises:
        AtomError: there is no such directory and the hub cannot be reached, or it holds no
            pipeline, or not one of a known family.
    """
    where = find_base(name_or_path)
    check_place(where, "base model")
    check_place(vae, "autoencoder")
    check_text(text_encoders or "", "the path of the text encoders")
    path, target = Path(where), torch.device(device or pick_device())
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise AtomError(
            f"the folder {where!r} is no diffusers pipeline: it has no model_index.json"
        )
    if name_or_path is None and not path.is_dir():
        raise AtomError(f"the bundled base is missing from {where!r}; name a base model")
    if path.is_dir():
        check_folder_family(path, inpainting=inpainting)
        closed = next((p for p in path.rglob("*") if not os.access(p, os.R_OK)), None)
        if closed:
            raise AtomError(f"the base model {where!r} cannot be opened: {str(closed)!r} is closed")
    chosen = choose_dtype(where, dtype, target, variant)
    try:
        if path.is_file():
            if load_in:
                raise AtomError(
                    f"--load_in takes a pipeline's folder; {path.name!r} is a single file"
                )
            pipe = open_single_file(path, chosen, vae, text_encoders, prediction_type)
        else:
            refuse_extras(where, text_encoders, prediction_type)
            extras: dict[str, Any] = {}
            if not path.is_dir() or wants_safety_checker(path):
                extras["safety_checker"] = None
            if load_in:
                extras["unet"] = load_small_unet(
                    where, load_in, chosen, revision=revision, variant=variant
                )
            if vae:
                extras["vae"] = open_vae(vae, chosen, guess_family(path))
            with reach_hub(where):
                pipe = DiffusionPipeline.from_pretrained(
                    where,
                    revision=revision,
                    variant=variant,
                    dtype=chosen,
                    use_safetensors=True,
                    **extras,
                )
    except AtomError:
        raise
    except UNOPENED as error:
        reason = first_line(error)
        raise AtomError(f"the base model {where!r} cannot be opened: {reason}") from None
    check_pipeline_family(pipe, where, inpainting=inpainting)
    keep_guidance(pipe, path)
    pipe.set_progress_bar_config(disable=True)
    size = measure_pipeline(pipe, find_side(pipe))
    wanted: Offload = "none" if load_in and offload == "auto" else offload
    placement = choose_placement(size, find_free_memory(target), wanted)
    if say and "auto" in (dtype, offload):
        say(f"{Path(where).name}: {name_dtype(chosen)} on the {target.type}; {placement.reason}")
    return place(pipe, placement, target)


def choose_dtype(
    where: str, dtype: torch.dtype | DtypeName, device: torch.device, variant: str | None
) -> torch.dtype:
    """The dtype to open a base in.

    Raises:
        AtomError: the name is not one of `DTYPE_NAMES`, or the dtype has 8 bits.
    """
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point or dtype.itemsize == 1:
            raise AtomError(f"dtype is {dtype}; a base is opened in 16 or 32 bits")
        return dtype
    if dtype not in DTYPE_NAMES:
        raise AtomError(f"dtype is {clip(str(dtype))!r}; it takes {', '.join(DTYPE_NAMES)}")
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cpu":
        return torch.float32
    try:
        own = describe_base(where, variant).dtype
    except AtomError:
        own = None
    # Weights that lie on the hub alone are of an unknown dtype; 16 bits hold all known ones.
    return own or torch.float16


def name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def open_single_file(
    path: Path,
    dtype: torch.dtype,
    vae: str | None,
    text_encoders: str | None,
    prediction_type: Prediction | None,
) -> Any:
    checkpoint = read_checkpoint(path, prediction_type)
    other = open_vae(vae, dtype, checkpoint.family.key) if vae else None
    if text_encoders is not None and not Path(text_encoders).exists():
        raise AtomError(f"there is no folder and no file {clip(text_encoders)!r} of text encoders")
    source = Path(text_encoders) if text_encoders else None
    return open_checkpoint(checkpoint, dtype, vae=other, text_encoders=source)


def refuse_extras(where: str, text_encoders: str | None, prediction_type: str | None) -> None:
    given = "--text_encoders" if text_encoders else "--prediction_type" if prediction_type else None
    if given:
        raise AtomError(
            f"{given} is for single files; the pipeline {clip(where)!r} has its own in its folder"
        )


def guess_family(folder: Path) -> str:
    """Key of the family whose autoencoder fits a pipeline's folder."""
    width = read_table(folder / "unet" / "config.json", {}).get("cross_attention_dim")
    return next((key for key, family in FAMILIES.items() if family.context == width), "sd1")


def load_small_unet(where: str, load_in: str, dtype: torch.dtype, **options: Any) -> Any:
    """The UNet with its linear layers in 8 or 4 bits.

    Raises:
        AtomError: bitsandbytes is missing, or the folder holds no UNet.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    try:
        from sdatoms.layers.quantized import quantize_linears

        with reach_hub(where):
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
