"""What the methods learn: scenes, drawings, styles and photographs, and which of them choose rates.

The true picture of a scene's prompt is known. A style is trained on some drawings by a hand and
asked for things that this hand drew too, and which were left out. Rates and steps are chosen on
validation tasks and reported on test tasks.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms.diffusion.triggers import write_prompts
from sdatoms.errors import AtomError
from sdatoms.evaluation.truth import Wish, choose_prompts, find_truth
from sdatoms.pictures import find_pictures, list_pictures, read_picture, read_sidecar
from sdatoms.storage import list_subjects, read_subject, read_table, write_whole

__all__ = ["Task", "list_tasks", "open_task", "split_tasks"]

HELD_OUT = 3
"""Drawings of a style that are not trained on."""
VALIDATION = ("bell", "cactus", "hedgehog", "koala", "monkey", "octopus", "tractor")
"""The bundled tasks by which rates, steps and defaults were chosen."""


@dataclass(frozen=True)
class Task:
    """Pictures to learn from, and prompts to be asked about them."""

    name: str
    kind: str
    """`scenes`, `drawings`, `styles` or `photographs`."""
    folder: Path
    instance_prompt: str
    class_prompt: str
    prompts: tuple[str, ...]
    wishes: tuple[Wish, ...] = ()
    """Of each prompt, where its true picture is known in full."""
    true: tuple[Image.Image, ...] = ()
    """The true picture of each prompt, where there is one."""

    def digest(self) -> str:
        """Names the pictures, captions and true pictures."""
        found = hashlib.sha256()
        for path in sorted(p for p in self.folder.iterdir() if p.is_file()):
            found.update(path.name.encode() + b"\0" + path.read_bytes())
        for picture in self.true:
            found.update(picture.convert("RGB").tobytes())
        return found.hexdigest()[:16]


def list_tasks(photographs: Path | None = None) -> dict[str, str]:
    """Name → kind of all tasks: bundled subjects, and the folders in `photographs`."""
    found = {}
    for name in list_subjects():
        folder, about = read_subject(name)
        style = "style" in about["instance_prompt"]
        found[name] = "scenes" if find_truth(folder) else "styles" if style else "drawings"
    for folder in sorted(photographs.iterdir()) if photographs else ():
        if folder.is_dir() and list_pictures(folder)[0]:
            found[f"photographs/{folder.name}"] = "photographs"
    return found


def split_tasks(tasks: dict[str, str], path: Path, seed: int = 0) -> dict[str, list[str]]:
    """`validation` and `test` → names, written to `path` once and read from there afterwards.

    Of the bundled tasks those of `VALIDATION` choose, of photographs a third that is drawn. A kind
    without one takes what was chosen on the other kinds. Tasks that came since are test tasks.
    """
    kept = read_table(path, {}).get("validation")
    if kept is None:
        own = sorted(name for name, kind in tasks.items() if kind == "photographs")
        kept = random.Random(f"{seed}:photographs").sample(own, len(own) // 3)
        kept += [name for name in VALIDATION if name in tasks]
    known = [name for name in tasks if name in kept]
    split = {"validation": known, "test": [name for name in tasks if name not in kept]}
    if not path.is_file():
        write_whole(path, (json.dumps({"seed": seed} | split, indent=1) + "\n").encode())
    return split


def open_task(name: str, output_dir: Path, photographs: Path | None = None) -> Task:
    """Open a task by its name.

    Args:
        output_dir: where the drawings of a style that are trained on are copied to.

    Raises:
        AtomError: there is no such task.
    """
    kind = list_tasks(photographs).get(name)
    if kind is None:
        raise AtomError(
            f"there is no task {name!r}; there are {', '.join(list_tasks(photographs))}"
        )
    if kind == "photographs":
        assert photographs
        folder = photographs / name.removeprefix("photographs/")
        noun = read_classes(photographs).get(folder.name, folder.name.rstrip("0123456789"))
        noun = noun.replace("_", " ")
        prompt = f"a sks {noun}"
        return Task(name, kind, folder, prompt, f"a {noun}", tuple(write_prompts(prompt)))
    folder, about = read_subject(name)
    prompt = about["instance_prompt"]
    class_prompt = about.get("class_prompt") or " ".join(prompt.replace("sks", "").split())
    if kind == "styles":
        return open_style(name, folder, prompt, class_prompt, output_dir)
    truth = find_truth(folder)
    prompts = choose_prompts(truth, prompt)
    known: list[Any] = [n for n in truth.find(prompts) if n is not None] if truth else []
    wishes = tuple(truth.wishes[n] for n in known) if truth and len(known) == len(prompts) else ()
    true = tuple(wish.picture for wish in wishes)
    return Task(name, kind, folder, prompt, class_prompt, tuple(prompts), wishes, true)


def open_style(name: str, folder: Path, prompt: str, class_prompt: str, output_dir: Path) -> Task:
    paths = find_pictures(folder)[0]
    held = random.Random(f"held out of {name}").sample(paths, min(HELD_OUT, len(paths) - 1))
    given = output_dir / "tasks" / name
    for path in paths:
        for file in (path, path.with_suffix(".txt")):
            if path not in held and file.is_file():
                write_whole(given / file.name, file.read_bytes())
    prompts = tuple(read_sidecar(path) or prompt for path in held)
    true = tuple(read_picture(path) for path in held)
    return Task(name, "styles", given, prompt, class_prompt, prompts, true=true)


def read_classes(folder: Path) -> dict[str, str]:
    """Folder → its class, from the list that lies beside DreamBooth's photographs."""
    path = folder / "prompts_and_classes.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows: Sequence[list[str]] = list(csv.reader(io.StringIO(text.partition("Prompts")[0])))
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
