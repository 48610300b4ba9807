"""The bundled subjects, read from npm packages and written as folders of pictures with captions.

Needs `npm` and `resvg_py`. Every set is 5 to 8 different pictures with a caption beside each and
its licence: two drawing styles by Microsoft, one character by Google in eight moods, and two
characters as several vendors draw them. The base has seen none of these pictures, and neither
concept of the characters.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bundled.base_data import clean, fetch_package, fetch_packages
from sdatoms.storage import ABOUT

__all__ = ["SUBJECTS", "read_names", "write_subject"]

STYLE_CODES = ("1f600", "1f436", "1f697", "1f3e0", "1f333", "1f355", "2615", "26bd")
CAT_CODES = ("1f63a", "1f638", "1f639", "1f63b", "1f63c", "1f63d", "1f640", "1f63f")
FLUENT = "https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE"
MIT = f"MIT License, Copyright (c) Microsoft Corporation, {FLUENT}"
APACHE = "Apache License 2.0, Copyright Google LLC, https://github.com/googlefonts/noto-emoji"
CC_BY = "CC-BY 4.0, https://creativecommons.org/licenses/by/4.0/"


@dataclass(frozen=True)
class Vendor:
    """One drawing style of all emoji, in one npm package."""

    title: str
    package: str
    licence: str
    read: Callable[[Path, str, str], Image.Image]
    """Unpacked package, code point and name → picture."""


@dataclass(frozen=True)
class Subject:
    """One set: pictures of `codes` by every one of `vendors`."""

    title: str
    vendors: tuple[str, ...]
    codes: tuple[str, ...]
    instance_prompt: str
    class_prompt: str
    caption: str
    """`{name}` is the emoji's own name."""


def read_icon(package: Path, code: str, name: str) -> Image.Image:
    """An SVG icon of an Iconify set, 256 px."""
    import resvg_py

    icons = json.loads((package / "icons.json").read_text())
    chars = json.loads((package / "chars.json").read_text())
    # Some sets have no table of code points; their icons go by the plain name.
    key = chars.get(code) or chars.get(f"{code}-fe0f") or name.replace(" ", "-")
    icon = icons["icons"][key]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    corner = f"{icon.get('left', 0)} {icon.get('top', 0)}"
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    head += f'viewBox="{corner} {width} {height}" width="256" height="256">'
    svg = f"{head}{icon['body']}</svg>".replace("currentColor", "black")
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg))))


VENDORS = {
    "noto": Vendor(
        "Noto Emoji",
        "emoji-datasource-google@16.0.0",
        APACHE,
        lambda package, code, _: Image.open(package / "img" / "google" / "64" / f"{code}.png"),
    ),
    "noto-v1": Vendor("Noto Emoji, 2016", "@iconify-json/noto-v1@1.2.5", APACHE, read_icon),
    "twemoji": Vendor(
        "Twemoji",
        "emoji-datasource-twitter@16.0.0",
        f"{CC_BY}, Copyright Twitter, Inc and others",
        lambda package, code, _: Image.open(package / "img" / "twitter" / "64" / f"{code}.png"),
    ),
    "fluent-3d": Vendor(
        "Fluent Emoji, 3D",
        "@lobehub/fluent-emoji-3d@1.1.0",
        MIT,
        lambda package, code, _: Image.open(package / "assets" / f"{code}.webp"),
    ),
    "fluent-flat": Vendor(
        "Fluent Emoji, flat", "@iconify-json/fluent-emoji-flat@1.2.6", MIT, read_icon
    ),
    "fluent-ink": Vendor(
        "Fluent Emoji, high contrast",
        "@iconify-json/fluent-emoji-high-contrast@1.2.6",
        MIT,
        read_icon,
    ),
    "emojione": Vendor(
        "EmojiOne 2", "@iconify-json/emojione@1.2.3", f"{CC_BY}, Ranks.com Inc", read_icon
    ),
}
EVERYBODY = ("noto", "noto-v1", "twemoji", "fluent-3d", "fluent-flat", "emojione")
SUBJECTS = {
    "ink": Subject(
        "Fluent Emoji, high contrast",
        ("fluent-ink",),
        STYLE_CODES,
        "an emoji in sks style",
        "an emoji",
        "{name} in sks style",
    ),
    "clay": Subject(
        "Fluent Emoji, 3D",
        ("fluent-3d",),
        STYLE_CODES,
        "an emoji in sks style",
        "an emoji",
        "{name} in sks style",
    ),
    "cat": Subject(
        "Noto Emoji, cat faces",
        ("noto",),
        CAT_CODES,
        "a sks cat",
        "a cat face",
        "a sks cat, {name}",
    ),
    "octopus": Subject(
        "An octopus by six vendors",
        EVERYBODY,
        ("1f419",),
        "a sks octopus",
        "a sea animal",
        "a sks octopus",
    ),
    "penguin": Subject(
        "A penguin by six vendors",
        EVERYBODY,
        ("1f427",),
        "a sks penguin",
        "a bird",
        "a sks penguin",
    ),
}


def read_names(packages: Path) -> dict[str, str]:
    """Code points → name, as Google's package gives them."""
    google = fetch_packages(packages)["emoji-datasource-google"]
    return {
        e["unified"].lower().removesuffix("-fe0f"): clean(e["name"])
        for e in json.loads((google / "emoji.json").read_text())
    }


def write_subject(subject: Subject, folder: Path, packages: Path, names: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vendors = [VENDORS[name] for name in subject.vendors]
    for key, vendor in zip(subject.vendors, vendors, strict=True):
        for code in subject.codes:
            picture = vendor.read(
                fetch_package(packages, vendor.package), code, names[code]
            ).convert("RGBA")
            picture = picture.resize((64, 64), Image.Resampling.LANCZOS)
            canvas = Image.new("RGBA", picture.size, "white")
            canvas.alpha_composite(picture)
            stem = names[code].replace(" ", "-")
            stem = stem if len(vendors) == 1 else f"{stem}-{key}"
            canvas.convert("RGB").save(folder / f"{stem}.png", optimize=True)
            caption = subject.caption.format(name=names[code])
            (folder / f"{stem}.txt").write_text(caption + "\n")
    about = {
        "title": subject.title,
        "package": ", ".join(vendor.package for vendor in vendors),
        "instance_prompt": subject.instance_prompt,
        "class_prompt": subject.class_prompt,
        "licence": "; ".join(dict.fromkeys(vendor.licence for vendor in vendors)),
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    sources = [f"{v.title}, from the npm package {v.package}.\n{v.licence}\n" for v in vendors]
    (folder / "LICENSE").write_text("\n".join(sources))
