"""Whether a training may write into its output folder: nothing that it did not write is lost."""

from __future__ import annotations

import os
from pathlib import Path

from sdatoms.errors import AtomError
from sdatoms.storage import read_table

__all__ = ["check_output_folder"]

FILES = (
    "README.md",
    "atoms.safetensors",
    "config.toml",
    "data.toml",
    "metrics.jsonl",
    "report.json",
    "samples.png",
)
"""Written over by every training, or by some."""
KEPT = ("log.txt", "status.json")
"""Those that say of a folder that it is a run's, or that lines are added to."""
FOLDERS = ("checkpoints", "earlier", "samples")


def check_output_folder(folder: Path) -> None:
    """Refuse a folder in which a training would write over what no training wrote, or could not
    write at all.

    Raises:
        AtomError: it is a file; one of the run's files is a folder there, or the other way round;
            or it is no run's folder and holds files that are called as a run's are.
    """
    if not os.path.lexists(folder):
        return
    place = f"the output folder {str(folder)!r}"
    if not folder.is_dir():
        raise AtomError(f"{place} is a file; name a folder")
    for name in (*FILES, *KEPT):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise AtomError(f"{place} holds {name!r}, which is no file; name another folder")
    for name in FOLDERS:
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise AtomError(f"{place} holds {name!r}, which is no folder; name another folder")
    found = [name for name in FILES if os.path.lexists(folder / name)]
    if found and not is_run(folder):
        raise AtomError(
            f"{place} holds {', '.join(found)}, which no training wrote; name another folder"
        )


def is_run(folder: Path) -> bool:
    """Whether a training wrote here before, or the app made the folder for one."""
    told = "phase" in read_table(folder / "status.json", {}) or (folder / "job.json").is_file()
    return told or any((folder / "checkpoints").glob("step-*/*"))
