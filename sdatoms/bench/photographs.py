"""The bundled base personalized on real photographs, by the whole command, in several ways.

Each way is a process of its own, `sdatoms train` from the command to the atom file, samples and
their measurement included: seconds, peak memory and bytes are the run's, and the figures those of
its `report.json`, before and after.

Three figures say how far to believe them: fidelity of the photographs among themselves, to other
subjects' photographs, and of what the base's autoencoder gives back of them, which is more than
any training of the UNet can reach.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdatoms.bench.process import read_children_seconds
from sdatoms.diffusion.family import find_side
from sdatoms.diffusion.open import load_base
from sdatoms.evaluation.evaluator import Evaluator, load_evaluator
from sdatoms.evaluation.metrics import measure_fidelity
from sdatoms.pictures import draw_grid, find_pictures, read_picture, save_image, to_tensor
from sdatoms.storage import write_whole
from sdatoms.training.buckets import cut_picture, fit_picture
from sdatoms.training.run_folder import name_step

__all__ = ["WAYS", "measure_photographs", "write_table"]

ALIVE = ("cat", "dog")
"""Classes that take the preset `pet`; others take `object`."""
WAYS: dict[str, tuple[str, ...]] = {
    "nothing kept": ("--no-with_prior_preservation",),
    "class kept by prediction": (),
    "class kept by pictures": ("--prior_preservation_mode", "images", "--num_class_images", "24"),
    "new word, text encoder": (
        "--train_text_encoder",
        "--train_text_encoder_ti",
        "--token_abstraction",
        "<it>",
    ),
}
"""Way → what it gives the command beside its preset."""


def measure_photographs(
    photographs: Path,
    subjects: Sequence[str],
    ways: Sequence[str],
    *,
    max_train_steps: int,
    threads: int,
    output: Path,
) -> dict[str, Any]:
    """Every way of every subject that `output` does not hold yet; it is written after each, and a
    PNG beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    asked = {"max_train_steps": max_train_steps, "threads": threads}
    found = json.loads(output.read_text()) if output.is_file() else {}
    facts: dict[str, Any] = found if asked.items() <= found.items() else asked | {"subjects": {}}
    classes = read_classes(photographs)
    evaluator = load_evaluator()
    for subject in subjects:
        folder = photographs / subject
        about = facts["subjects"].setdefault(subject, {"ways": {}})
        about |= {"class": classes.get(subject, name_class(subject))}
        pictures = [read_picture(path) for path in find_pictures(folder)[0]]
        back = give_back(pictures)
        about |= set_bounds(folder, photographs, pictures, back, evaluator)
        for way in ways:
            if way not in about["ways"]:
                about["ways"][way], samples = run_way(
                    folder, about["class"], way, max_train_steps, threads
                )
                rows = {"photographs": pictures[:6], "autoencoder": back[:6], **samples}
                name = f"{output.stem}-{subject}-{list(WAYS).index(way)}.png"
                grid = draw_grid(list(rows.values()), list(rows), cell=96)
                save_image(grid, output.with_name(name))
                print(subject, way, json.dumps(about["ways"][way]), file=sys.stderr)
            write_whole(output, (json.dumps(facts, indent=2) + "\n").encode())
    return facts


def read_classes(folder: Path) -> dict[str, str]:
    """Subject → class, from the lines `subject,class` of DreamBooth's own list."""
    path = folder / "prompts_and_classes.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return dict(re.findall(r"^(\w+),([\w ]+)$", text, re.M))


def name_class(subject: str) -> str:
    return re.sub(r"[\d_]+", " ", subject).strip()


def set_bounds(
    folder: Path,
    others: Path,
    pictures: Sequence[Image.Image],
    back: Sequence[Image.Image],
    evaluator: Evaluator,
) -> dict[str, float]:
    """What fidelity can be: lowest for other subjects, highest for the pictures themselves; `back`
    is what the autoencoder makes of them."""
    styles = evaluator.embed_styles(pictures)
    strange = [
        read_picture(path)
        for place in sorted(others.iterdir())
        if place.is_dir() and place != folder
        for path in find_pictures(place)[0]
    ]
    bounds = {"themselves": measure_fidelity(styles)}
    if strange:
        bounds["other subjects"] = measure_fidelity(evaluator.embed_styles(strange), styles)
    bounds["autoencoder"] = measure_fidelity(evaluator.embed_styles(back), styles)
    return {name: round(float(values.mean()), 4) for name, values in bounds.items()}


@torch.no_grad()
def give_back(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures cut as for training, through the bundled base's autoencoder and back."""
    pipe = load_base(device="cpu")
    side = find_side(pipe)
    found = []
    for picture in pictures:
        cut = cut_picture(picture, fit_picture(*picture.size, [(side, side)]))
        latents = pipe.vae.encode(to_tensor(cut)[None]).latent_dist.mean
        found += pipe.image_processor.postprocess(pipe.vae.decode(latents).sample)
    return found


def run_way(
    folder: Path, kind: str, way: str, steps: int, threads: int
) -> tuple[dict[str, Any], dict[str, list[Image.Image]]]:
    """One run of the command, and its samples: the base's, and the chosen step's."""
    word = "<it>" if "--train_text_encoder_ti" in WAYS[way] else "sks"
    half = str(max(1, steps // 2))
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, "-m", "sdatoms", "train"]
        command += ["--preset", "pet" if kind in ALIVE else "object", *WAYS[way]]
        command += ["--instance_data_dir", str(folder), "--output_dir", run]
        command += ["--instance_prompt", f"a {word} {kind}", "--class_prompt", f"a {kind}"]
        command += ["--max_train_steps", str(steps), "--validation_steps", half]
        if word == "<it>":
            command += ["--initializer_concept", kind]
        limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        began, spent = time.time(), read_children_seconds()
        subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | limits)
        seconds, used = time.time() - began, read_children_seconds() - spent
        report = json.loads((Path(run) / "report.json").read_text())
        step = name_step(report["chosen_step"])
        samples = {
            name: [read_picture(path) for path in sorted((Path(run) / "samples").glob(f"{at}-*"))]
            for name, at in (("base", "base"), (way, step))
        }
    kept = ("parameters", "bytes", "peak_memory_bytes", "chosen_step", "class_pictures")
    row = {"seconds": round(seconds, 1), "core_seconds": round(used, 1)}
    row |= {key: report[key] for key in kept}
    metrics = report["metrics"]
    return row | {"before": metrics["base"], "after": metrics[step]}, samples


def write_table(facts: dict[str, Any]) -> str:
    """The run as a table in Markdown."""
    lines = [
        "| subject | way | core seconds | peak memory | file | fidelity | alignment | drift |",
        "|---" * 8 + "|",
    ]
    for subject, about in facts["subjects"].items():
        for way, row in about["ways"].items():
            moves = " | ".join(
                f"{row['before'][key]:.3f} → {row['after'][key]:.3f}"
                for key in ("fidelity", "alignment")
            )
            lines.append(
                f"| {subject} | {way} | {row['core_seconds']:.0f} | "
                f"{row['peak_memory_bytes'] / 1e9:.2f} GB | {row['bytes'] / 1e6:.1f} MB | {moves} "
                f"| {row['after']['drift']:.3f} |"
            )
        bounds = ", ".join(
            f"{name} {about[name]:.3f}"
            for name in ("themselves", "other subjects", "autoencoder")
            if name in about
        )
        lines.append(f"| {subject} | fidelity of photographs: {bounds} | | | | | | |")
    return "\n".join(lines)
