"""The tab "Atoms" among the extra networks: a card for every file, with its picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modules import shared, ui_extra_networks  # the web UI's own  # pyright: ignore

from sdatoms_webui.library import find_files, read_metadata

__all__ = ["ExtraNetworksPageAtoms", "find_thumbnail", "read_description", "read_trigger"]

PICTURE = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+=*")
SHOWN = ("trigger", "base_model", "sdatoms_version", "step", "modelspec.architecture")
"""Words of the header that the card's info button shows, besides title and description."""


def read_trigger(metadata: dict[str, str]) -> str:
    """The trigger on one line, without what cannot be seen; from a stranger's file."""
    words = metadata.get("trigger") or metadata.get("modelspec.trigger_phrase") or ""
    return "".join(c for c in words if c.isprintable())[:200]


def read_description(metadata: dict[str, str]) -> str:
    """What the file is, in plain words: web UIs put search terms, and some descriptions, into their
    pages as they are."""
    words = metadata.get("modelspec.description") or read_trigger(metadata)
    return "".join(c for c in words if c.isprintable() and c not in "<>&")[:500]


def find_thumbnail(metadata: dict[str, str]) -> str | None:
    """The header's own picture, if it is nothing but a picture."""
    picture = metadata.get("modelspec.thumbnail") or ""
    return picture if PICTURE.fullmatch(picture) else None


class ExtraNetworksPageAtoms(ui_extra_networks.ExtraNetworksPage):
    """Lists the files of the folder; a click puts the file and its trigger into the prompt."""

    def __init__(self) -> None:
        super().__init__("Atoms")

    def refresh(self) -> None:
        """Nothing is kept between listings."""

    def create_item(
        self, name: str, index: int | None = None, enable_filter: bool = True
    ) -> dict[str, Any] | None:
        """The card of one file; None where there is no such file."""
        path = find_files(shared.cmd_opts.atoms_dir).get(name)
        return None if path is None else self.describe(name, path, index)

    def describe(self, name: str, path: Path, index: int | None) -> dict[str, Any]:
        metadata, stem = read_metadata(path), str(path.with_suffix(""))
        quote = ui_extra_networks.quote_js
        call = f"{quote(f'<atoms:{name}:')} + opts.extra_networks_default_multiplier + {quote('>')}"
        trigger = read_trigger(metadata)
        described = read_description(metadata)
        return {
            "name": name,
            "filename": str(path),
            "shorthash": None,
            "preview": self.find_preview(stem) or find_thumbnail(metadata),
            "description": self.find_description(stem) or described,
            "search_terms": [self.search_terms_from_path(str(path)), described],
            "local_preview": f"{stem}.{shared.opts.samples_format}",
            "metadata": {key: metadata[key] for key in SHOWN if metadata.get(key)},
            "sort_keys": {"default": index, **self.get_sort_keys(str(path))},
            "prompt": call + (f" + {quote(' ' + trigger)}" if trigger else ""),
        }

    def list_items(self) -> Iterator[dict[str, Any]]:
        """The cards of all files."""
        for index, (name, path) in enumerate(find_files(shared.cmd_opts.atoms_dir).items()):
            yield self.describe(name, path, index)

    def allowed_directories_for_previews(self) -> list[str]:
        """The folder of atoms; it is made where it is missing."""
        os.makedirs(shared.cmd_opts.atoms_dir, exist_ok=True)
        return [shared.cmd_opts.atoms_dir]
