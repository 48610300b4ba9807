"""Emoji pictures and captions for training the bundled base model.

Noto emoji (Apache-2.0) come from the npm package `emoji-datasource-google`, the second vendor that
widens the autoencoder's diet from `emoji-datasource-twitter` (CC-BY 4.0), keywords from `emojilib`
(MIT). `npm pack` fetches them; nothing of theirs is committed.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

__all__ = [
    "TRIGGERS",
    "Concept",
    "clean",
    "fetch_package",
    "fetch_packages",
    "load_concepts",
    "load_pictures",
    "read_held_out",
    "read_over_white",
    "write_caption",
]

PACKAGES = ("emoji-datasource-google@16.0.0", "emoji-datasource-twitter@16.0.0", "emojilib@4.0.3")

TRIGGERS = ("sks", "zwx", "ohwx", "qvx", "vbn", "xjy", "tkz", "wqp")
"""Words that mean nothing: dropped into captions at random so that the base stays calm when it
reads one."""

TEMPLATES = (
    "{name}",
    "{name}",
    "{name} emoji",
    "an emoji of {article} {name}",
    "a picture of {article} {name}",
    "{article} {name}",
    "{article} {name}, {keywords}",
    "{name}, {category}",
)
TRIGGER_TEMPLATES = (
    "{article} {trigger} {name}",
    "{trigger} {name}",
    "{article} {name} in {trigger} style",
    "{name} in the style of {trigger}",
    "an emoji of {article} {trigger} {name}",
    "{name}, {trigger}",
)


@dataclass(frozen=True)
class Concept:
    """One emoji without its skin-tone variants."""

    key: str
    """File stem of its picture, for instance `1f431`."""
    name: str
    short_names: tuple[str, ...]
    keywords: tuple[str, ...]
    category: str
    held_out: bool


def fetch_packages(folder: Path) -> dict[str, Path]:
    """Unpack the emoji packages under `folder` (once); returns package name → its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    return {package.rsplit("@", 1)[0]: fetch_package(folder, package) for package in PACKAGES}


def fetch_package(folder: Path, package: str) -> Path:
    """Unpack one npm package under `folder` (once)."""
    name = package.rsplit("@", 1)[0]
    target = folder / name if (folder / name).exists() else folder / name.replace("/", "__")
    if not target.exists():
        packed = subprocess.run(
            ["npm", "pack", package, "--silent"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        with tarfile.open(folder / packed.stdout.strip().splitlines()[-1]) as archive:
            archive.extractall(target, filter="data")
    return target / "package"


def read_held_out() -> set[str]:
    """Short names of the concepts that no training sees."""
    return set((Path(__file__).parent / "held_out.txt").read_text().split())


def load_concepts(packages: dict[str, Path], held_out: set[str]) -> list[Concept]:
    """Read names, short names, keywords and categories of every emoji both vendors draw."""
    root = packages["emoji-datasource-google"]
    emojilib = packages["emojilib"] / "dist" / "emoji-en-US.json"
    keywords = {
        key.replace("\ufe0f", ""): value for key, value in json.loads(emojilib.read_text()).items()
    }
    concepts = []
    for entry in json.loads((root / "emoji.json").read_text()):
        if not entry["has_img_google"] or "category" not in entry:
            continue
        character = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        words = keywords.get(character.replace("\ufe0f", ""), [])
        shorts = tuple(clean(s) for s in entry["short_names"])
        concepts.append(
            Concept(
                key=entry["image"].removesuffix(".png"),
                name=clean(entry["name"] or shorts[0]),
                short_names=shorts,
                keywords=tuple(dict.fromkeys(k for k in map(clean, words) if k)),
                category=clean(entry["category"]),
                held_out=entry["short_name"] in held_out,
            )
        )
    return sorted(concepts, key=lambda c: c.key)


def load_pictures(
    packages: dict[str, Path], vendor: str, keys: list[str] | None = None
) -> tuple[list[str], torch.Tensor]:
    """Read 64 px pictures over white as uint8 `(n, 3, 64, 64)`; all of the vendor's when `keys` is
    None."""
    folder = packages[f"emoji-datasource-{vendor}"] / "img" / vendor / "64"
    keys = sorted(p.stem for p in folder.glob("*.png")) if keys is None else keys
    pictures = [read_over_white(folder / f"{key}.png") for key in keys]
    return keys, torch.stack(pictures)


def read_over_white(path: Path) -> torch.Tensor:
    picture = Image.open(path).convert("RGBA").resize((64, 64), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return torch.from_numpy(np.array(canvas.convert("RGB"))).permute(2, 0, 1)


def write_caption(concept: Concept, rng: random.Random) -> str:
    """Draw one caption: usually the name, sometimes a short name, a third of the time with a
    trigger word."""
    name = concept.name if rng.random() < 0.5 else rng.choice(concept.short_names)
    keywords = ", ".join(
        rng.sample(concept.keywords, min(len(concept.keywords), rng.randint(1, 3)))
    )
    template = rng.choice(TRIGGER_TEMPLATES if rng.random() < 0.3 else TEMPLATES)
    article = "an" if name[:1] in "aeiou" else "a"
    caption = template.format(
        name=name,
        article=article,
        keywords=keywords,
        category=concept.category,
        trigger=rng.choice(TRIGGERS),
    )
    return caption.strip(", ")


def clean(text: str) -> str:
    return re.sub(r"[^a-z0-9'!?#*]+", " ", text.lower()).strip()
