"""Make `assets/subjects/` from npm packages: `python scripts/make_subjects.py` (needs `npm` and
`resvg_py`).

Every set is 8 different pictures with a caption beside each and its licence: two drawing styles by
Microsoft (Fluent Emoji, MIT) and one character by Google (Noto Emoji, Apache-2.0) that the base has
never seen.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
from pathlib import Path

from base_data import clean, fetch_packages
from PIL import Image

HERE = Path(__file__).parent
STYLE_CODES = "1f600 1f436 1f697 1f3e0 1f333 1f355 2615 26bd".split()
CAT_CODES = "1f63a 1f638 1f639 1f63b 1f63c 1f63d 1f640 1f63f".split()
MIT = "MIT License, Copyright (c) Microsoft Corporation, https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE"
APACHE = "Apache License 2.0, Copyright Google LLC, https://github.com/googlefonts/noto-emoji"
SETS = {
    "ink": (
        "Fluent Emoji, high contrast",
        "@iconify-json/fluent-emoji-high-contrast@1.2.6",
        MIT,
        "an emoji in sks style",
        "an emoji",
    ),
    "clay": (
        "Fluent Emoji, 3D",
        "@lobehub/fluent-emoji-3d@1.1.0",
        MIT,
        "an emoji in sks style",
        "an emoji",
    ),
    "cat": (
        "Noto Emoji, cat faces",
        "emoji-datasource-google@16.0.0",
        APACHE,
        "a sks cat",
        "a cat face",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, default=HERE.parent / "runs" / "base" / "packages")
    parser.add_argument("--output_dir", type=Path, default=HERE.parent / "assets" / "subjects")
    args = parser.parse_args()
    google = fetch_packages(args.packages)["emoji-datasource-google"]
    names = {
        e["unified"].lower().removesuffix("-fe0f"): clean(e["name"])
        for e in json.loads((google / "emoji.json").read_text())
    }
    readers = {
        "ink": lambda code: read_ink(fetch(args.packages, SETS["ink"][1]), code),
        "clay": lambda code: Image.open(
            fetch(args.packages, SETS["clay"][1]) / "assets" / f"{code}.webp"
        ),
        "cat": lambda code: Image.open(google / "img" / "google" / "64" / f"{code}.png"),
    }
    for name, (title, package, licence, prompt, class_prompt) in SETS.items():
        folder = args.output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        for code in CAT_CODES if name == "cat" else STYLE_CODES:
            picture = readers[name](code).convert("RGBA").resize((64, 64), Image.Resampling.LANCZOS)
            canvas = Image.new("RGBA", picture.size, "white")
            canvas.alpha_composite(picture)
            stem = names[code].replace(" ", "-")
            canvas.convert("RGB").save(folder / f"{stem}.png", optimize=True)
            caption = (
                f"{names[code]} in sks style" if name != "cat" else f"a sks cat, {names[code]}"
            )
            (folder / f"{stem}.txt").write_text(caption + "\n")
        about = {
            "title": title,
            "package": package,
            "instance_prompt": prompt,
            "class_prompt": class_prompt,
            "licence": licence,
        }
        (folder / "subject.json").write_text(json.dumps(about, indent=2) + "\n")
        (folder / "LICENSE").write_text(f"{title}, from the npm package {package}.\n{licence}\n")


def fetch(folder: Path, package: str) -> Path:
    """Unpack one npm package under `folder` (once)."""
    target = folder / package.rsplit("@", 1)[0].replace("/", "__")
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


def read_ink(package: Path, code: str) -> Image.Image:
    import resvg_py

    icons, chars = (
        json.loads((package / "icons.json").read_text()),
        json.loads((package / "chars.json").read_text()),
    )
    body = icons["icons"][chars.get(code) or chars[f"{code}-fe0f"]]["body"]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="256" height="256">'
    svg = f"{head}{body}</svg>"
    return Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg.replace("currentColor", "black"))))
    )


if __name__ == "__main__":
    main()
