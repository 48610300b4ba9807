"""Open a Stable Diffusion base: a pipeline's folder, a single file or a hub id, placed to work.

Everything that takes a base comes through `load_base`. What a base is can be read before it is
opened: `describe_base` looks at headers and configuration files alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sdatoms.diffusion.placement import (
    Offload,
    choose_placement,
    find_free_memory,
    measure_pipeline,
    place,
)
from sdatoms.errors import AtomError, clip, first_line
from sdatoms.models.autoencoder import open_vae
from sdatoms.models.header import read_header
from sdatoms.models.recognize import DTYPES, FAMILIES, Prediction, read_checkpoint
from sdatoms.models.single_file import open_checkpoint
from sdatoms.storage import find_assets

__all__ = [
    "DEFAULT_RESOLUTION",
    "DTYPE_NAMES",
    "BaseFacts",
    "DtypeName",
    "describe_base",
    "find_base",
    "load_base",
    "pick_device",
    "read_resolution",
    "refuse_inpainting",
]

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
DTYPE_NAMES: tuple[DtypeName, ...] = ("auto", "float32", "float16", "bfloat16")
DEFAULT_RESOLUTION = 512
WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class BaseFacts:
    """What is known of a base before it is opened."""

    label: str
    """Family and form in words."""
    dtype: torch.dtype | None
    """Of the UNet's weights; None where no weights lie here."""
    bytes: int
    """Of all its weights here."""
    side: int
    """Native side in px."""
    inpainting: bool
    missing: tuple[str, ...] = ()
    """Components that a single file lacks."""


def find_base(name_or_path: str | None) -> str:
    """The base to open: the one named, or the bundled one."""
    return name_or_path or str(find_assets() / "emoji-sd")


def pick_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def describe_base(name_or_path: str | None, variant: str | None = None) -> BaseFacts:
    """Family, dtype and size of a base that lies here, from headers and configuration files.

    Raises:
        AtomError: there is no such base here, or it is none of a known form.
    """
    where = Path(find_base(name_or_path))
    if where.is_file():
        found = read_checkpoint(where)
        size = sum(found.part_bytes.values())
        return BaseFacts(
            found.label, found.dtype, size, found.side, found.inpainting, found.missing
        )
    if not (where / "model_index.json").is_file():
        raise AtomError(f"there is no base model in {str(where)!r}: it has no model_index.json")
    return describe_folder(where, variant)


def describe_folder(folder: Path, variant: str | None) -> BaseFacts:
    table = read_table(folder / "unet" / "config.json")
    index = read_table(folder / "model_index.json")
    kind = str(index.get("_class_name"))
    if not table or not kind.startswith("StableDiffusion"):
        raise AtomError(f"{folder.name!r} is no Stable Diffusion: it is a {clip(kind, 60)}")
    width = table.get("cross_attention_dim")
    known = (f.label for f in FAMILIES.values() if f.context == width)
    label = next(known, "Stable Diffusion of its own width")
    scheduler = read_table(folder / "scheduler" / "scheduler_config.json")
    label += " (v)" if scheduler.get("prediction_type") == "v_prediction" else ""
    inpainting = table.get("in_channels") == 9
    files = [p for part in folder.iterdir() if part.is_dir() for p in part.glob(WEIGHTS)]
    mark = f".{variant}." if variant else None
    files = [p for p in files if (mark in p.name if mark else ".fp16." not in p.name)] or files
    dtype = None
    if unet := [p for p in files if p.parent.name == "unet"]:
        entries = read_header(sorted(unet)[0]).tensors.values()
        dtype = next((DTYPES[e.dtype] for e in entries if e.dtype in DTYPES), None)
    label += ", inpainting" if inpainting else ""
    size = sum(path.stat().st_size for path in files)
    return BaseFacts(label, dtype, size, read_side(folder), inpainting)


def read_table(path: Path) -> dict[str, Any]:
    """A JSON table; empty where there is none."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def read_side(folder: Path) -> int:
    """Native side in px, from a pipeline's configuration files; 512 where they do not say."""
    unet, vae = (read_table(folder / part / "config.json") for part in ("unet", "vae"))
    try:
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (KeyError, TypeError, ValueError):
        return DEFAULT_RESOLUTION


def read_resolution(name_or_path: str | None) -> int:
    """The side in px a base was trained at; 512 where that is not known without opening it."""
    try:
        return describe_base(name_or_path).side
    except AtomError:
        return DEFAULT_RESOLUTION


def refuse_inpainting(name_or_path: str | None, what: str) -> None:
    """Refuse a base that lies here and fills in masks, before it is opened.

    Args:
        what: what it was wanted for, as the subject of the sentence.

    Raises:
        AtomError: it is the inpainting form of its family.
    """
    try:
        found = describe_base(name_or_path)
    except AtomError:
        return  # whoever opens it says what is wrong with it
    if found.inpainting:
        raise AtomError(
            f"the base model {Path(find_base(name_or_path)).name!r} is {found.label}, whose UNet "
            f"also takes a mask; {what} takes the plain form of the family"
        )


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
        say: is told in one line what "auto" chose and why.

    Raises:
        AtomError: there is no such directory and the hub cannot be reached, or it holds no
        pipeline, or not one of a known family.
    """
    where = find_base(name_or_path)
    path, target = Path(where), torch.device(device or pick_device())
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise AtomError(
            f"the folder {where!r} is no diffusers pipeline: it has no model_index.json"
        )
    if name_or_path is None and not path.is_dir():
        raise AtomError(f"the bundled base is missing from {where!r}; name a base model")
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
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise AtomError(f"the base model {where!r} cannot be opened: {reason}") from None
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
        AtomError: the name is not one of `DTYPE_NAMES`.
    """
    if isinstance(dtype, torch.dtype):
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


def find_side(pipe: Any) -> int:
    side = getattr(pipe.unet.config, "sample_size", None) if hasattr(pipe, "unet") else None
    side = side if isinstance(side, int) else DEFAULT_RESOLUTION // 8
    return side * getattr(pipe, "vae_scale_factor", 8)


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
    width = read_table(folder / "unet" / "config.json").get("cross_attention_dim")
    return next((key for key, family in FAMILIES.items() if family.context == width), "sd1")


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
