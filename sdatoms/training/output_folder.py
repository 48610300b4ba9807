"""Whether a training may write into its output folder: nothing that it did not write is lost."""

from __future__ import annotations

import os
from pathlib import Path

from sdatoms.errors import AtomError
from sdatoms.storage import read_table

__all__ = ["check_output_folder", "keep_given"]

FILES = (
    "README.md",
    "atoms.safetensors",
    "before-after.png",
    "demo.json",
    "metrics.jsonl",
    "report.json",
    "samples.png",
    "status.json",
)
"""Written over by every training, or by some."""
GIVEN = ("config.toml", "data.toml")
"""What a person may have written for this very run: `keep_given` lays it aside."""
FOLDERS = ("checkpoints", "earlier", "samples")


def check_output_folder(folder: Path) -> None:
    """Refuse a folder in which a training would write over what no training wrote, or could not
    write at all.

    Raises:
        AtomError: it is a file; one of the run's files is a folder there, or the other way round;
            or it is no run's folder and holds things that are called as a run's are.
    """
    if not os.path.lexists(folder):
        return
    place = f"the output folder {str(folder)!r}"
    if not folder.is_dir():
        raise AtomError(f"{place} is a file; name a folder")
    for name in (*FILES, *GIVEN, "log.txt"):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise AtomError(f"{place} holds {name!r}, which is no file; name another folder")
    for name in FOLDERS:
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise AtomError(f"{place} holds {name!r}, which is no folder; name another folder")
    found = [name for name in FILES if os.path.lexists(folder / name)]
    found += [n for n in FOLDERS if (folder / n).is_dir() and any((folder / n).iterdir())]
    if found and not is_run(folder):
        raise AtomError(
            f"{place} holds {', '.join(found)}, and nothing there says that a training wrote it; "
            "move it away or name another folder"
        )


def keep_given(folder: Path) -> None:
    """Lay settings aside that a person wrote into the folder, as `config.given.toml`."""
    if is_run(folder):
        return
    for name in GIVEN:
        kept = folder / name.replace(".", ".given.")
        if (folder / name).is_file() and not os.path.lexists(kept):
            (folder / name).rename(kept)


def is_run(folder: Path) -> bool:
    """Whether a training wrote here before, or the app made the folder for one; a copy of a run may
    lack any of its files."""
    told = {
        "status.json": "phase",
        "job.json": "state",
        "report.json": "chosen_step",
    }
    if any(entry in read_table(folder / name, {}) for name, entry in told.items()):
        return True
    return any((folder / "checkpoints").glob("step-*/state.safetensors"))
