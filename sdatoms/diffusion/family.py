"""What is known of a base before it is opened: where it is, its family and its resolution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdatoms.errors import AtomError, clip
from sdatoms.storage import find_assets

__all__ = [
    "DEFAULT_RESOLUTION",
    "FAMILIES",
    "check_folder_family",
    "check_pipeline_family",
    "find_base",
    "read_resolution",
]

DEFAULT_RESOLUTION = 512
FAMILIES = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x and 2.x",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
}
"""Pipelines that can be painted with and trained on."""


def find_base(name_or_path: str | None) -> str:
    """The base to open: the one named, or the bundled one."""
    return name_or_path or str(find_assets() / "emoji-sd")


def check_folder_family(folder: Path) -> None:
    """Refuse a pipeline directory that is no Stable Diffusion, by its configuration files.

    Raises:
        AtomError: names the pipeline, and the families that are known.
    """
    where = str(folder)
    check_family(where, read_json(folder / "model_index.json").get("_class_name"))
    unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    check_channels(where, unet.get("in_channels"), vae.get("latent_channels"))


def check_pipeline_family(pipe: Any, where: str) -> None:
    """Refuse an opened pipeline that is no Stable Diffusion, as `check_folder_family`."""
    check_family(where, type(pipe).__name__)
    check_channels(where, pipe.unet.config.in_channels, pipe.vae.config.latent_channels)


def check_family(where: str, kind: Any) -> None:
    """Refuse pipelines that are no Stable Diffusion.

    Raises:
        AtomError: names the pipeline, and the families that are known.
    """
    if kind not in FAMILIES:
        raise AtomError(
            f"the base model {where!r} is a {clip(str(kind), 60)}; bases are {list_families()}"
        )


def check_channels(where: str, channels: int | None, latents: int | None) -> None:
    """Refuse UNets that take more than a picture, such as inpainting models.

    Raises:
        AtomError: names the channels, and the families that are known.
    """
    if channels is not None and latents is not None and channels != latents:
        raise AtomError(
            f"the base model {where!r} takes {channels} channels where its pictures have "
            f"{latents}, as inpainting models do; bases are {list_families()} that paint from text "
            "alone"
        )


def list_families() -> str:
    return " or ".join(f"{family} ({kind})" for kind, family in FAMILIES.items())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table; an empty one where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_resolution(name_or_path: str | None) -> int:
    """The side in px a local base was trained at, from its configuration files; 512 where that is
    not known without opening the model."""
    folder = Path(find_base(name_or_path))
    try:
        unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (ValueError, KeyError, TypeError):
        return DEFAULT_RESOLUTION
