"""What is known of a base before it is opened: where it is, its family, dtype, size and resolution.

Headers and configuration files are read, no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdatoms.errors import AtomError, clip
from sdatoms.models.recognize import FAMILIES, choose_files, find_dtype, read_checkpoint
from sdatoms.storage import find_assets, read_table

__all__ = [
    "DEFAULT_RESOLUTION",
    "PIPELINES",
    "BaseFacts",
    "check_folder_family",
    "check_pipeline_family",
    "describe_base",
    "find_base",
    "find_side",
    "read_resolution",
    "read_units",
    "refuse_inpainting",
]

DEFAULT_RESOLUTION = 512
WEIGHTS = "*.safetensors"
PIPELINES = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x and 2.x",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
}
"""Pipelines that can be painted with and trained on."""
MASKED = {kind.replace("Pipeline", "InpaintPipeline"): label for kind, label in PIPELINES.items()}
"""Their forms that fill in masks, which can be painted with."""


def find_base(name_or_path: str | None) -> str:
    """The base to open: the one named, or the bundled one."""
    return name_or_path or str(find_assets() / "emoji-sd")


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


def check_folder_family(folder: Path, *, inpainting: bool = False) -> None:
    """Refuse a pipeline directory that is no Stable Diffusion, by its configuration files.

    Args:
        inpainting: take forms that fill in masks too.

    Raises:
        AtomError: names the pipeline, and the families that are known.
    """
    where = str(folder)
    kind = read_table(folder / "model_index.json", {}).get("_class_name")
    check_family(where, kind, inpainting=inpainting)
    unet, vae = (read_table(folder / part / "config.json", {}) for part in ("unet", "vae"))
    channels, latents = unet.get("in_channels"), vae.get("latent_channels")
    check_channels(where, channels, latents, inpainting=inpainting)


def check_pipeline_family(pipe: Any, where: str, *, inpainting: bool = False) -> None:
    """Refuse an opened pipeline that is no Stable Diffusion, as `check_folder_family`."""
    check_family(where, type(pipe).__name__, inpainting=inpainting)
    channels, latents = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    check_channels(where, channels, latents, inpainting=inpainting)


def check_family(where: str, kind: Any, *, inpainting: bool = False) -> None:
    """Refuse pipelines that are no Stable Diffusion.

    Raises:
        AtomError: names the pipeline, and the families that are known.
    """
    if not isinstance(kind, str):
        raise AtomError(
            f"the model_index.json of the base model {where!r} names no pipeline; bases are "
            f"{list_families()}"
        )
    if kind in MASKED and not inpainting:
        raise AtomError(
            f"the base model {where!r} generates from a picture and a mask alone, as inpainting "
            f"models do; bases that generate from text are {list_families()}"
        )
    if kind not in PIPELINES and kind not in MASKED:
        raise AtomError(
            f"the base model {where!r} is a {clip(str(kind), 60)}; bases are {list_families()}"
        )


def check_channels(
    where: str, channels: int | None, latents: int | None, *, inpainting: bool = False
) -> None:
    """Refuse UNets that take more than a picture, such as inpainting models.

    Raises:
        AtomError: names the channels, and the families that are known.
    """
    if channels is None or latents is None:
        return
    if channels != latents and not (inpainting and channels == 2 * latents + 1):
        raise AtomError(
            f"the base model {where!r} takes {channels} channels where its pictures have "
            f"{latents}, as inpainting models do, which generate from a picture and a mask alone; "
            f"bases that generate from text are {list_families()}"
        )


def list_families() -> str:
    return " or ".join(f"{family} ({kind})" for kind, family in PIPELINES.items())


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
    table = read_table(folder / "unet" / "config.json", {})
    index = read_table(folder / "model_index.json", {})
    kind = str(index.get("_class_name"))
    if not table or not kind.startswith("StableDiffusion"):
        raise AtomError(f"{folder.name!r} is no Stable Diffusion: it is a {clip(kind, 60)}")
    width = table.get("cross_attention_dim")
    known = (f.label for f in FAMILIES.values() if f.context == width)
    label = next(known, "Stable Diffusion of its own width")
    scheduler = read_table(folder / "scheduler" / "scheduler_config.json", {})
    label += " (v)" if scheduler.get("prediction_type") == "v_prediction" else ""
    inpainting = table.get("in_channels") == 9
    files = [p for part in folder.iterdir() if part.is_dir() for p in part.glob(WEIGHTS)]
    files = choose_files(files, variant)
    dtype = find_dtype([p for p in files if p.parent.name == "unet"])
    label += ", inpainting" if inpainting else ""
    size = sum(path.stat().st_size for path in files)
    return BaseFacts(label, dtype, size, read_side(folder), inpainting)


def read_side(folder: Path) -> int:
    """Native side in px, from a pipeline's configuration files; 512 where they do not say."""
    unet, vae = (read_table(folder / part / "config.json", {}) for part in ("unet", "vae"))
    try:
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (KeyError, TypeError, ValueError):
        return DEFAULT_RESOLUTION


def find_side(pipe: Any) -> int:
    """Native side in px of an opened pipeline; 512 px where its UNet does not say."""
    side = getattr(pipe.unet.config, "sample_size", None) if hasattr(pipe, "unet") else None
    side = side if isinstance(side, int) else DEFAULT_RESOLUTION // 8
    return side * getattr(pipe, "vae_scale_factor", 8)


def read_resolution(name_or_path: str | None) -> int:
    """The side in px a base was trained at; 512 where that is not known without opening it."""
    try:
        return describe_base(name_or_path).side
    except AtomError:
        return DEFAULT_RESOLUTION


def read_units(name_or_path: str | None) -> tuple[int, int]:
    """Px that one latent pixel spans, and one of the UNet's deepest map; 8 and 64 where a base does
    not say."""
    folder = Path(find_base(name_or_path))
    unet, vae = (read_table(folder / part / "config.json", {}) for part in ("unet", "vae"))
    try:
        unit = 2 ** (len(vae["block_out_channels"]) - 1)
        return unit, unit * 2 ** (len(unet["block_out_channels"]) - 1)
    except (KeyError, TypeError):
        return 8, 64


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
            f"also takes a mask; {what} takes the plain form of its family, {list_families()}"
        )
