"""Pictures in a zip: unpacked to a folder of their own, no path out of it, and no more than fits.

Links, programs and whatever else trains nothing stay in the zip; what is passed over is named.
"""

from __future__ import annotations

import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from sdatoms.errors import AtomError, clip, first_line
from sdatoms.pictures import PICTURE_SUFFIXES, SIDECARS

__all__ = [
    "extract_zip",
    "is_zip",
    "unpack_zip",
]

MAX_BYTES = 8 << 30
"""Of all files together, unpacked."""
MAX_FILES = 50_000
TAKEN = {*PICTURE_SUFFIXES, *SIDECARS, ".json", ".jsonl", ".csv"}
"""What files are unpacked end in."""
DESCRIPTION = "data.toml"
UNPACKED: dict[tuple[str, int, int], tuple[tempfile.TemporaryDirectory[str], list[str]]] = {}
"""Zip and its date and size → where it lies; removed when the process ends."""


def is_zip(path: Path) -> bool:
    """Whether a file is to be read as a zip."""
    return path.suffix.lower() == ".zip" and path.is_file()


def unpack_zip(path: Path) -> tuple[Path, list[str]]:
    """Unpack once and return the folder, which lasts as long as the process, and what of the zip
    was passed over.

    Raises:
        AtomError: it is no zip, is locked by a password, holds a path that leads out of it, or is
            too large.
    """
    state = path.stat()
    key = (str(path.resolve()), state.st_mtime_ns, state.st_size)
    if key not in UNPACKED:
        folder = tempfile.TemporaryDirectory(prefix="sdatoms-zip-")
        try:
            passed = extract_zip(path, Path(folder.name))
        except BaseException:
            folder.cleanup()
            raise
        UNPACKED[key] = (folder, passed)
    folder, passed = UNPACKED[key]
    return Path(folder.name), passed


def extract_zip(path: Path, folder: Path, max_bytes: int | None = None) -> list[str]:
    """Unpack into a folder that is empty; returns what was passed over.

    Args:
        max_bytes: of all files together; as much as any training takes when not given.

    Raises:
        AtomError: as `unpack_zip`.
    """
    try:
        return extract(path, folder, max_bytes or MAX_BYTES)
    except (AtomError, MemoryError):
        raise
    except Exception as error:  # zipfile and its decompressors raise many kinds for what is no zip
        raise AtomError(
            f"the zip {clip(path.name)!r} cannot be read: {first_line(error)}"
        ) from None


def extract(path: Path, folder: Path, most: int) -> list[str]:
    left, passed = most, []
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) > MAX_FILES:
            raise AtomError(
                f"the zip {clip(path.name)!r} holds {len(members)} files; at most {MAX_FILES} are "
                "read"
            )
        for member in members:
            inside = check_name(path, member.filename)
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in inside.parts)
            link = stat.S_ISLNK(member.external_attr >> 16)
            taken = inside.suffix.lower() in TAKEN or inside.name == DESCRIPTION
            if hidden or link or not taken:
                passed += [] if hidden else [clip(inside.as_posix())]
                continue
            if member.flag_bits & 1:
                raise AtomError(
                    f"the zip {clip(path.name)!r} is locked by a password; unpack it first"
                )
            target = folder.joinpath(*inside.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("xb") as file:
                # Counted as it is read: what the zip says of its own sizes may be wrong.
                while data := source.read(min(1 << 20, left + 1)):
                    left -= len(data)
                    if left < 0:
                        raise AtomError(
                            f"the zip {clip(path.name)!r} unpacks to more than {most >> 20} MB"
                        )
                    file.write(data)
    return passed


def check_name(path: Path, name: str) -> PurePosixPath:
    """A member's path inside the zip.

    Raises:
        AtomError: it leads out of it.
    """
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or PureWindowsPath(name).drive:
        raise AtomError(
            f"the zip {clip(path.name)!r} holds a path that leads out of it, {clip(name)!r}; "
            "nothing of it is read"
        )
    return inside
