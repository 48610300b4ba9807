"""Pictures that lie in no folder, laid into one: of a zip, or of the `datasets` library."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from sdatoms.errors import AtomError, clip, first_line
from sdatoms.pictures import save_image
from sdatoms.storage import reach_hub, write_whole
from sdatoms.training.archives import is_zip, unpack_zip

__all__ = [
    "open_pictures",
]

MAX_ROWS = 10_000
LAID: dict[tuple[str, str, str], tempfile.TemporaryDirectory[str]] = {}
"""Name and columns of a data set → where its pictures lie; removed when the process ends."""


def open_pictures(
    place: str, *, dataset: str | None = None, image_column: str = "image", text_column: str
) -> tuple[Path, list[str]]:
    """The folder of a place's pictures, and notes on what of it was passed over.

    Args:
        place: folder or zip; not read where a data set is named.
        dataset: name or folder of a data set of the `datasets` library.
        image_column: where the data set has its pictures.
        text_column: where it has their captions.

    Raises:
        AtomError: zip or data set cannot be read.
    """
    if dataset:
        key = (dataset, image_column, text_column)
        if key not in LAID:
            folder = tempfile.TemporaryDirectory(prefix="sdatoms-dataset-")
            try:
                save_rows(load_rows(dataset), Path(folder.name), dataset, image_column, text_column)
            except BaseException:
                folder.cleanup()
                raise
            LAID[key] = folder
        return Path(LAID[key].name), []
    path = Path(place)
    if not is_zip(path):
        return path, []
    folder, passed = unpack_zip(path)
    shown = ", ".join(passed[:10]) + (f" and {len(passed) - 10} more" if passed[10:] else "")
    return folder, [f"left in the zip {clip(path.name)}: {shown}"] if passed else []


def load_rows(name: str) -> Any:
    """The rows of a data set that people train on: `train`, or the only ones there are."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise AtomError(
            f"the data set {clip(name)!r} is read by the library datasets, which is missing; "
            "pip install datasets, or name a folder"
        ) from None
    try:
        folder = Path(name)
        if folder.is_dir() and any((folder / n).exists() for n in SAVED):
            found = datasets.load_from_disk(name)
        else:
            with reach_hub(name):
                found = datasets.load_dataset(name)
    except Exception as error:  # of the network, of the hub, of files: it has many kinds
        raise AtomError(
            f"the data set {clip(name)!r} cannot be read: {first_line(error)}; offline, name a "
            "folder on this machine"
        ) from None
    if isinstance(found, dict):
        if "train" not in found and len(found) > 1:
            raise AtomError(
                f"the data set {clip(name)!r} has no part 'train', but {', '.join(found)}; name a "
                "folder with one of them"
            )
        return found["train"] if "train" in found else next(iter(found.values()))
    return found


SAVED = ("dataset_info.json", "dataset_dict.json")


def save_rows(rows: Any, folder: Path, name: str, image_column: str, text_column: str) -> None:
    """Write rows as pictures with a table of captions."""
    held = list(rows.column_names)
    if image_column not in held:
        raise AtomError(
            f"the data set {clip(name)!r} has the columns {', '.join(map(clip, held))}; it takes "
            f"{image_column!r}, or another --image_column"
        )
    if len(rows) > MAX_ROWS:
        raise AtomError(
            f"the data set {clip(name)!r} has {len(rows)} pictures; at most {MAX_ROWS} are read"
        )
    lines = []
    for number, row in enumerate(rows):
        picture = row[image_column]
        if not hasattr(picture, "save"):
            raise AtomError(
                f"the column {clip(image_column)!r} of {clip(name)!r} holds no pictures; it takes "
                "another --image_column"
            )
        file = f"{number:06d}.png"
        if picture.mode not in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
            picture = picture.convert("RGB")
        save_image(picture, folder / file)
        if text_column in held and row[text_column]:
            lines.append(json.dumps({"file_name": file, text_column: row[text_column]}))
    if lines:
        write_whole(folder / "metadata.jsonl", "\n".join(lines).encode())
