"""Every vendor's emoji at 64 px, by concept: what the bundled evaluator is trained and tested on.

Noto and its earlier, blob-shaped form (Apache-2.0, Google), Twemoji (CC-BY 4.0, Twitter and
contributors), three styles of Fluent Emoji (MIT, Microsoft) and Emoji One 2 (CC-BY 4.0). All come
from npm packages; the vector ones are drawn with `resvg_py`. Drawn once, kept in the run directory.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bundled.base_data import (
    Concept,
    fetch_package,
    fetch_packages,
    load_concepts,
    read_held_out,
    read_over_white,
)

__all__ = ["VENDORS", "Collection", "load_collection"]

SIZE = 64
VENDORS = {
    "noto": "emoji-datasource-google@16.0.0",
    "twemoji": "emoji-datasource-twitter@16.0.0",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-ink": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "blob": "@iconify-json/noto-v1@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
}
"""Vendor → npm package. The first one is the vendor that the base paints like."""


@dataclass(frozen=True)
class Collection:
    """Pictures `(n, 3, 64, 64)` uint8 over white, with their vendor and concept by index."""

    concepts: list[Concept]
    pictures: Tensor
    vendor: Tensor
    concept: Tensor

    @property
    def held_out(self) -> Tensor:
        """Which pictures show a held-out concept, `(n,)` bool."""
        return torch.tensor([c.held_out for c in self.concepts])[self.concept]

    def take(self, mask: Tensor) -> Collection:
        """The pictures where `mask` holds; concepts keep their numbers."""
        return Collection(self.concepts, self.pictures[mask], self.vendor[mask], self.concept[mask])


def load_collection(packages_dir: Path, cache: Path) -> Collection:
    """Read `cache`, or fetch and draw every vendor's pictures and write it.

    Pictures that two vendors share to within a grey level (flags, mostly) are kept once, with the
    vendor named first.
    """
    concepts = load_concepts(fetch_packages(packages_dir), read_held_out())
    if not cache.exists():
        draw_collection(packages_dir, concepts, cache)
    stored = torch.load(cache, weights_only=True)
    return Collection(concepts, stored["pictures"], stored["vendor"], stored["concept"])


def draw_collection(packages_dir: Path, concepts: list[Concept], cache: Path) -> None:
    names = read_slugs(fetch_package(packages_dir, VENDORS["fluent-flat"]))
    pictures, vendor, concept, seen = [], [], [], {}
    for v, (title, package) in enumerate(VENDORS.items()):
        read = open_vendor(title, fetch_package(packages_dir, package), names)
        for c, entry in enumerate(concepts):
            if title == "fluent-3d" and entry.category == "flags":
                continue  # Fluent draws no flags; this package fills in Noto's
            picture = read(entry.key)
            if picture is None:
                continue
            small = picture[:, ::8, ::8].int()
            if any((small - other).abs().max() <= 2 for other in seen.get(c, [])):
                continue
            seen.setdefault(c, []).append(small)
            pictures.append(picture)
            vendor.append(v)
            concept.append(c)
        print(f"{title}: {vendor.count(v)} of {len(concepts)} concepts", flush=True)
    cache.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        "pictures": torch.stack(pictures),
        "vendor": torch.tensor(vendor),
        "concept": torch.tensor(concept),
    }
    torch.save(stored, cache.with_suffix(".tmp"))
    os.replace(cache.with_suffix(".tmp"), cache)


def read_slugs(package: Path) -> dict[str, str]:
    """Code points → the Unicode name as iconify writes it, for instance `1f436` → `dog-face`."""
    chars = json.loads((package / "chars.json").read_text())
    return {trim(code): name for code, name in chars.items()}


def trim(code: str) -> str:
    """Code points without the variation selector, which vendors write or leave out at will."""
    return "-".join(p for p in code.lower().split("-") if p != "fe0f")


def open_vendor(title: str, package: Path, slugs: dict[str, str]):
    """A function from a concept's key to its picture `(3, 64, 64)`, or None where the vendor has
    none."""
    if package.parent.name.startswith("@iconify"):
        return open_vectors(package, slugs)
    folder = next(p for p in (package / "assets", *package.glob("img/*/64")) if p.is_dir())
    files = {trim(p.stem): p for p in folder.iterdir() if p.suffix in (".png", ".webp")}
    return lambda key: read_over_white(files[trim(key)]) if trim(key) in files else None


def open_vectors(package: Path, slugs: dict[str, str]):
    import resvg_py

    icons = json.loads((package / "icons.json").read_text())
    drawn = icons["icons"]
    own = read_slugs(package) or slugs  # the older sets give names alone

    def read(key: str) -> Tensor | None:
        name = own.get(trim(key), "")
        if name not in drawn:
            return None
        w, h = (drawn[name].get(side, icons.get(side, 16)) for side in ("width", "height"))
        body = drawn[name]["body"].replace("currentColor", "black")
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="256">'
        data = bytes(resvg_py.svg_to_bytes(svg_string=f"{head}{body}</svg>"))
        picture = Image.open(io.BytesIO(data)).convert("RGBA")
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        canvas = Image.new("RGBA", picture.size, "white")
        canvas.alpha_composite(picture)
        return torch.from_numpy(np.array(canvas.convert("RGB"))).permute(2, 0, 1)

    return read
