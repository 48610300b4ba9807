"""Prompts of single pictures: from tables in their folder, or from text files beside them.

A table is `metadata.jsonl` or `metadata.csv`, as in Hugging Face's imagefolder; text files are
`dog.txt`, `dog.caption` and `dog.png.txt`, and ai-toolkit's `dog.json`. Tables count first. A
picture has several captions where its text has several lines, or its row a list of texts.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdatoms.errors import AtomError, clip
from sdatoms.pictures import CAPTION_LIMIT, find_sidecars
from sdatoms.storage import decode_text

__all__ = [
    "TABLES",
    "Captions",
]

TABLES = ("metadata.jsonl", "metadata.csv")
LINE_LIMIT = 200
"""Captions of one picture."""


class Captions:
    """The captions of one folder, and what a person should know about them.

    Args:
        folder: pictures lie in it; a table may also name those of its subfolders.
        files: the folder's files that are no pictures.
        column: where a table has its captions.

    Raises:
        AtomError: a line of a table cannot be read.
    """

    def __init__(self, folder: Path, files: Iterable[Path], column: str) -> None:
        self.files = list(files)
        self.used: set[Path] = set()
        self.guessed: list[str] = []
        """Files that are not Unicode, and how they were read."""
        self.cut: list[str] = []
        """Pictures whose caption is longer than the limit."""
        self.rows: dict[Path, tuple[str, ...]] = {}
        """Picture → captions of a table."""
        self.tables = [p for p in self.files if p.name.lower() in TABLES]
        for path in self.tables:
            self.used.add(path)
            read = read_jsonl if path.suffix.lower() == ".jsonl" else read_csv
            for name, caption in read(self.decode(path), path, column):
                inside = posixpath.normpath(name.replace("\\", "/"))
                self.rows.setdefault(folder / inside, caption)

    def decode(self, path: Path) -> str:
        text, encoding = decode_text(path.read_bytes())
        if not encoding.startswith("utf"):
            self.guessed.append(f"{clip(path.name)} ({encoding})")
        return text.lstrip("\ufeff")

    def find(self, picture: Path, given: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A picture's own captions, where a table has not given them; none where it has none."""
        lines, beside = given, find_sidecars(picture, self.files)
        self.used |= set(beside if given else ())
        for path in [] if given else beside:
            self.used.add(path)
            lines = split_lines(self.decode(path))
            if lines:
                break
        if not lines:
            lines = self.find_json(picture)
        if len(lines) > LINE_LIMIT or any(len(line) > CAPTION_LIMIT for line in lines):
            self.cut.append(clip(picture.name))
        return tuple(line[:CAPTION_LIMIT].strip() for line in lines[:LINE_LIMIT])

    def find_json(self, picture: Path) -> tuple[str, ...]:
        """The caption of ai-toolkit's `dog.json`; none where the file is of another kind."""
        for path in self.files:
            if path.suffix.lower() == ".json" and path.stem == picture.stem:
                try:
                    text = json.loads(self.decode(path))["caption"]
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
                if isinstance(text, str):
                    self.used.add(path)
                    return split_lines(text)
        return ()


def split_lines(text: str) -> tuple[str, ...]:
    """Captions of a text, one a line; a caption may hold other line ends than these."""
    return tuple(line for part in text.split("\n") if (line := part.strip()))


def read_jsonl(text: str, path: Path, column: str) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # a caption may hold other line ends
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row[column]
        except (ValueError, KeyError, TypeError, RecursionError):
            name = caption = None
        texts: Any = [caption] if isinstance(caption, str) else caption
        is_list = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if not isinstance(name, str) or not is_list:
            raise AtomError(
                f"line {number} of {str(path)!r} is no JSON object with the texts 'file_name' and "
                f"{column!r}"
            )
        found.append((name, tuple(line for text in texts for line in split_lines(text))))
    return found


def read_csv(text: str, path: Path, column: str) -> list[tuple[str, tuple[str, ...]]]:
    head = text.split("\n", 1)[0]
    mark = max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    try:
        names, *lines = [row for row in rows if any(cell.strip() for cell in row)]
    except (ValueError, csv.Error):
        names, lines = [], []
    names = [name.strip() for name in names]
    if "file_name" not in names or column not in names:
        held = ", ".join(clip(name, 40) for name in names[:10]) or "nothing"
        raise AtomError(
            f"{str(path)!r} has the columns {held}; it takes 'file_name' and {column!r}, or "
            "another --caption_column"
        )
    place, words = names.index("file_name"), names.index(column)
    short = [row for row in lines if len(row) <= max(place, words)]
    if short:
        raise AtomError(f"a row of {str(path)!r} is cut short: {clip(mark.join(short[0]))!r}")
    return [(row[place].strip(), split_lines(row[words])) for row in lines]
