"""How strongly a base's pictures follow their prompt where nobody says.

A base may say so itself, in its model_index.json, where diffusers leaves private entries alone; any
other takes what diffusers paints its family with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdatoms.diffusion.family import find_base
from sdatoms.errors import AtomError, is_finite
from sdatoms.models.recognize import read_checkpoint
from sdatoms.storage import read_table

__all__ = [
    "DEFAULT_GUIDANCE",
    "GUIDANCE_ENTRY",
    "choose_guidance",
    "find_guidance",
    "keep_guidance",
    "read_guidance",
]

GUIDANCE_ENTRY = "_guidance_scale"
"""Of a model_index.json."""
MOST = 30.0
DEFAULT_GUIDANCE, XL_GUIDANCE = 7.5, 5.0
"""What diffusers' pipelines take: of Stable Diffusion 1.x and 2.x, and of XL."""


def find_guidance(pipe: Any) -> float:
    """The guidance scale of an opened pipeline where none is given: what its base says, else 7.5,
    of Stable Diffusion XL 5."""
    return choose_guidance(pipe.config, type(pipe).__name__)


def read_guidance(name_or_path: str | None) -> float:
    """`find_guidance` of a base before it is opened, from its configuration files or header; 7.5
    where they are not here."""
    where = Path(find_base(name_or_path))
    if where.is_file():
        try:
            return choose_guidance({}, read_checkpoint(where).family.key)
        except AtomError:
            return DEFAULT_GUIDANCE
    index = read_table(where / "model_index.json", {})
    return choose_guidance(index, str(index.get("_class_name")))


def keep_guidance(pipe: Any, folder: Path) -> None:
    """Let an opened pipeline know what the model_index.json it was read from says, which diffusers
    passes over; it is written where the pipeline is saved."""
    own = read_table(folder / "model_index.json", {})
    if GUIDANCE_ENTRY in own:
        pipe.register_to_config(**{GUIDANCE_ENTRY: choose_guidance(own, type(pipe).__name__)})


def choose_guidance(config: Mapping[str, Any], family: str) -> float:
    """By a pipeline's own entries, else by the name of its class or family."""
    own = config.get(GUIDANCE_ENTRY)
    if is_finite(own) and 0 <= own <= MOST:
        return float(own)
    return XL_GUIDANCE if "xl" in family.lower() else DEFAULT_GUIDANCE
