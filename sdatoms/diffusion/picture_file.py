"""Pictures that carry how they were made: a PNG from which the same picture can be painted again.

Three things are in the file:

- `parameters`: the text that A1111 and the tools around it write and read;
- `sdatoms`: a JSON table with the base and its fingerprint, the hash and strength of every atom
  file, scheduler, seed and versions;
- on request `saTm` chunks: the atom files themselves, which are small. They are validated by
  `read_atoms` on the way out, like any file from a stranger.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save as save_tensors

from sdatoms.atoms.schedules import parse_schedule
from sdatoms.atoms.strengths import check_strength
from sdatoms.diffusion.recipe import (
    Recipe,
    UsedAtoms,
    format_parameters,
    parse_parameters,
)
from sdatoms.errors import AtomError, clip, first_line, is_finite, mark_bytes
from sdatoms.files.atom_file import AtomFile
from sdatoms.files.reader import read_atoms
from sdatoms.pictures import save_image

__all__ = [
    "read_embedded_atoms",
    "read_recipe",
    "save_picture",
]

CHUNK = b"saTm"
"""Ancillary, private, safe to copy: programs that do not know it keep it or drop it."""
MAX_EMBEDDED = 16 << 20
MAX_FILE = 64 << 20
MAX_TEXT = 1 << 20
MAX_ADAPTERS = 16
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def save_picture(
    picture: Image.Image, path: Path, recipe: Recipe, embedded: Iterable[AtomFile] = ()
) -> Path:
    """Write the picture as PNG with its recipe, whole or not at all.

    Args:
        embedded: atom files to put inside; at most 16 MB in all.

    Raises:
        AtomError: the files are too large to put inside.
    """
    info = PngInfo()
    texts = {
        "parameters": format_parameters(recipe),
        "sdatoms": json.dumps(asdict(recipe), ensure_ascii=False),
    }
    for key, text in texts.items():  # names of files may be no text
        info.add_itxt(key, text.encode(errors="replace").decode())
    total = 0
    for file in embedded:
        data = save_tensors(file.tensors, file.metadata)
        total += len(data)
        if total > MAX_EMBEDDED:
            raise AtomError(
                f"the atom files have {total / 1e6:.0f} MB; at most {MAX_EMBEDDED >> 20} MB go "
                "inside a picture"
            )
        info.add(CHUNK, data)
    return save_image(picture, path, "PNG", pnginfo=info)


def read_recipe(path: Path) -> Recipe | None:
    """The recipe in a picture: ours, or what can be read from another tool's `parameters`.

    Returns:
        None where the picture carries neither.

    Raises:
        AtomError: the file is no PNG, or its recipe is damaged.
    """
    where = f"the picture {clip(path.name)!r}"
    texts = {k: v for k, v in open_texts(path, where).items() if k in ("sdatoms", "parameters")}
    for text in texts.values():
        if len(text) > MAX_TEXT:
            raise AtomError(f"{where} has a recipe of {len(text)} characters; no recipe is so long")
    if "sdatoms" in texts:
        try:
            table = json.loads(texts["sdatoms"])
            table = json.loads(mark_bytes(json.dumps(table, ensure_ascii=False)))
        except (ValueError, RecursionError):
            raise AtomError(f"{where} has a recipe that is not JSON") from None
        return build_recipe(table, where)
    return parse_parameters(texts["parameters"]) if "parameters" in texts else None


def open_texts(path: Path, where: str) -> dict[str, str]:
    try:
        if path.stat().st_size > MAX_FILE:
            raise AtomError(f"{where} is larger than {MAX_FILE >> 20} MB")
        with Image.open(path, formats=["PNG"]) as opened:
            opened.load()  # text may stand after the pixels
            return {str(k): str(v) for k, v in getattr(opened, "text", {}).items()}
    except AtomError:
        raise
    except Exception as error:  # Pillow raises many kinds for what is no picture
        raise AtomError(f"{where} is no PNG that opens: {first_line(error)}") from None


def build_recipe(table: Any, where: str) -> Recipe:
    """A recipe from untrusted JSON; unknown entries are passed over.

    Raises:
        AtomError: an entry is of another type or out of range.
    """
    if not isinstance(table, dict) or not isinstance(table.get("prompt"), str):
        raise AtomError(f"{where} has a recipe without a prompt")
    kinds: dict[str, tuple[type, ...]] = {
        "prompt": (str,),
        "negative_prompt": (str,),
        "seed": (int,),
        "num_inference_steps": (int,),
        "guidance_scale": (int, float),
        "scheduler": (str,),
        "width": (int,),
        "height": (int,),
        "base_model": (str,),
        "denoising_strength": (int, float, type(None)),
        "init_sha256": (str, type(None)),
        "schedule": (str,),
        "clip_skip": (int,),
        "guidance_rescale": (int, float),
        "mask_sha256": (str, type(None)),
        "mask_blur": (int, float, type(None)),
        "hires_scale": (int, float),
        "hires_steps": (int,),
        "batch_size": (int,),
        "batch_position": (int,),
    }
    values: dict[str, Any] = {}
    for name, accepted in kinds.items():
        if name in table:
            value = table[name]
            if not isinstance(value, accepted) or isinstance(value, bool) or not finite(value):
                raise AtomError(f"{where} has a recipe whose {name} is {clip(repr(value))}")
            values[name] = value
    adapters = table.get("adapters", [])
    if not isinstance(adapters, list) or len(adapters) > MAX_ADAPTERS:
        raise AtomError(f"{where} has a recipe whose adapters are no list of {MAX_ADAPTERS}")
    return Recipe(
        **values,
        base_fingerprint=check_prints(table.get("base_fingerprint", {}), where),
        adapters=tuple(build_used(entry, where) for entry in adapters),
        versions=check_versions(table.get("versions", {}), where),
    )


def build_used(entry: Any, where: str) -> UsedAtoms:
    texts = ("name", "sha256", "trigger", "schedule")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(k, ""), str) for k in texts):
        raise AtomError(f"{where} has a recipe with an adapter that is no table of texts")
    try:
        strength = check_strength(entry.get("strength", 1.0), "its strength")
        schedule = entry.get("schedule", "")
        schedule = str(parse_schedule(schedule)) if schedule else ""
    except AtomError as error:
        raise AtomError(f"{where} has a recipe with an adapter that cannot be: {error}") from None
    return UsedAtoms(
        name=clip(entry.get("name", ""), 200),
        sha256=clip(entry.get("sha256", ""), 64),
        strength=strength,
        trigger=clip(entry.get("trigger", "")),
        schedule=schedule,
    )


def check_prints(prints: Any, where: str) -> dict[str, list[float]]:
    whole = isinstance(prints, dict) and len(prints) <= 64
    if not whole or not all(
        isinstance(v, list) and len(v) == 4 and all(map(is_finite, v)) for v in prints.values()
    ):
        raise AtomError(f"{where} has a recipe whose base_fingerprint is no table of four numbers")
    return prints


def check_versions(versions: Any, where: str) -> dict[str, str]:
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise AtomError(f"{where} has a recipe whose versions are no table of texts")
    return {clip(k, 40): clip(v, 40) for k, v in list(versions.items())[:16]}


def finite(value: Any) -> bool:
    return is_finite(value) if isinstance(value, int | float) else True


def read_embedded_atoms(path: Path) -> list[AtomFile]:
    """The atom files inside a PNG, validated; none where there are none.

    Raises:
        AtomError: the file is no PNG, an embedded file is too large, or no atom file.
    """
    where = f"the picture {clip(path.name)!r}"
    if path.stat().st_size > MAX_FILE:
        raise AtomError(f"{where} is larger than {MAX_FILE >> 20} MB")
    data = path.read_bytes()
    if not data.startswith(SIGNATURE):
        raise AtomError(f"{where} is no PNG")
    files, place, total = [], len(SIGNATURE), 0
    with tempfile.TemporaryDirectory() as folder:
        while place + 8 <= len(data) and len(files) < MAX_ADAPTERS:
            length, kind = (
                int.from_bytes(data[place : place + 4], "big"),
                data[place + 4 : place + 8],
            )
            body = data[place + 8 : place + 8 + length]
            if kind == CHUNK:
                total += length
                if total > MAX_EMBEDDED or len(body) < length:
                    raise AtomError(f"{where} carries an atom file that is cut short or too large")
                copy = Path(folder) / "embedded.safetensors"
                copy.write_bytes(body)
                files.append(read_atoms(copy))
            place += 12 + length
    return files
