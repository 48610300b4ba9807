"""Atom files written for other tools, with a sentence on how exact each form is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdatoms import AtomError, AtomFile
from sdatoms.adapters.export import Conversion, convert_to_diff, convert_to_lora
from sdatoms.adapters.load import AdapterSet
from sdatoms.adapters.pipelines import save_pipeline
from sdatoms.errors import clip

__all__ = [
    "FORMATS",
    "MAX_RANK",
    "Exported",
    "export_file",
]

FORMATS = {
    "LoRA (diffusers)": "lora-diffusers",
    "LoRA (kohya)": "lora-kohya",
    "Full difference (LyCORIS)": "diff",
    "Baked pipeline": "baked",
}
FREE_BYTES = 1 << 30
MAX_RANK = 128


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    text: str
    download: str | None
    """The file to offer; none for a folder."""


def export_file(
    file: AtomFile, pipe: Any, form: str, rank: int, folder: Path, name: str
) -> Exported:
    """Write a file in another form below `folder`.

    Args:
        file: an atom file.
        pipe: the base it is for; adapters on it are taken off.
        form: a key of `FORMATS`.
        rank: of a LoRA, 1 to `MAX_RANK`.
        folder: where exports go.
        name: a plain name for what is written.

    Raises:
        AtomError: the form is unknown, the file does not fit the base, or the disk is full.
    """
    if form not in FORMATS:
        raise AtomError(f"the format {clip(form)!r} is unknown; known are {', '.join(FORMATS)}")
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < FREE_BYTES:
        raise AtomError(f"less than {FREE_BYTES >> 30} GiB of the disk are free")
    AdapterSet(pipe).clear()
    stem = f"{name}-{FORMATS[form]}"
    if form == "Baked pipeline":
        return bake_pipeline(file, pipe, folder / stem)
    if FORMATS[form] == "diff":
        done = convert_to_diff(file, pipe)
    else:
        names = "kohya" if FORMATS[form] == "lora-kohya" else "diffusers"
        done = convert_to_lora(file, pipe, rank, names=names)
        stem += f"-rank-{rank}"
    path = done.save(folder / f"{stem}.safetensors")
    return Exported(path, describe(done, path), str(path))


def describe(done: Conversion, path: Path) -> str:
    worst, error = max(done.errors.items(), key=lambda pair: pair[1])
    exact = (
        "exact" if done.total_error == 0 else f"{100 * done.total_error:.1f} % of the change lost"
    )
    least = f", most in {worst} ({100 * error:.1f} %)" if error else ""
    word = "; its new word has no place here, a baked pipeline keeps it" if done.left_out else ""
    others = "".join(
        f"; {reading.program} skips {len(reading.skipped)} of {len(done.errors)} layers "
        f"({100 * reading.total_error:.1f} % lost there)"
        for reading in done.readings
    )
    return f"{path.name}: {path.stat().st_size:,} bytes, {exact}{least}{word}{others}"


def bake_pipeline(file: AtomFile, pipe: Any, target: Path) -> Exported:
    """The whole pipeline with the atoms in its weights, as a folder diffusers opens."""
    shutil.rmtree(target, ignore_errors=True)  # an earlier export of the same file
    lost = save_pipeline(file, pipe, target).total_error
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    exact = "exact in float32" if lost < 1e-4 else f"{100 * lost:.2g} % of the change rounded off"
    return Exported(target, f"{target.name}: a pipeline of {size:,} bytes, {exact}", None)
