"""`sdatoms evaluate --report FILE`: a row to send back, as Markdown to read and JSON to collect.

It says what a training on a real base gave: base, settings, measures, card and minutes. Prompts,
pictures, folders and names of people or machines are not in it.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from sdatoms.cli.outputs import check_folder
from sdatoms.errors import AtomError, check_text, clip, is_finite
from sdatoms.storage import read_table, write_whole
from sdatoms.version import __version__

if TYPE_CHECKING:
    from sdatoms.evaluation.rows import Row
    from sdatoms.files.atom_file import AtomFile

__all__ = [
    "check_report",
    "describe_file",
    "name_model",
    "read_settings",
    "write_report",
]

WORDS = ("optimizer", "lr_scheduler", "lr_step_rules", "best_metric", "aspect_ratio_buckets")
"""Settings of free words that name nobody's things."""
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+?)/")
COUNTS = ("steps", "chosen_step", "class_pictures")
MEASURES = ("fidelity", "likeness", "alignment", "diversity", "drift")


def check_report(text: str) -> tuple[Path, Path]:
    """The two files of a report.

    Raises:
        AtomError: one of them is there already, or their folder is not.
    """
    path = Path(check_text(text, "--report"))
    if path.name in ("", ".."):
        raise AtomError(f"--report {clip(text)!r} is a folder; name a file in it")
    stem = path.with_suffix("") if path.suffix in (".md", ".json") else path
    found = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.json")
    if not stem.parent.is_dir():
        raise AtomError(f"--report {text!r}: there is no folder {str(stem.parent)!r}")
    check_folder(stem.parent)
    for file in found:
        if os.path.lexists(file):
            raise AtomError(f"--report: {str(file)!r} is there already; name another file")
    return found


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings those that differ from the defaults and tell nothing of anybody: numbers,
    choices and a few words; no prompts, names and folders."""
    from sdatoms.training.config import TrainConfig

    hints, shown = get_type_hints(TrainConfig), {}
    for field in fields(TrainConfig):
        value = config.get(field.name, field.default)
        kinds = (hints[field.name], *get_args(hints[field.name]))
        choices = {c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)}
        told = isinstance(value, bool | int | float) or field.name in WORDS
        told = told or (isinstance(value, str) and value in choices)
        if told and value != field.default:
            shown[field.name] = value if not isinstance(value, str) else clip(value, 60)
    return shown


def name_model(where: str) -> str:
    """A model without the folders of the machine: its hub id, or the last part of its path."""
    if cached := CACHED.search(where):
        return f"{cached[1]}/{cached[2]}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", where) and not Path(where).exists():
        return where
    return clip(Path(where).name, 60)


def describe_file(path: Path, file: AtomFile, row: Row) -> dict[str, Any]:
    """One atom file, the run that it lies in, where it lies in one, and what was measured."""
    metadata = file.metadata
    prints = metadata.get("base_fingerprints", "")
    report = read_table(path.parent / "report.json", {})
    try:
        config = tomllib.loads((path.parent / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    told = {k: report[k] for k in COUNTS if is_finite(report.get(k))}
    if report:
        count = lambda key: report[key] if is_finite(report.get(key)) else 0
        names, versions = report.get("instance_pictures"), report.get("versions")
        peak = max(count("peak_memory_bytes"), count("peak_gpu_bytes"))
        told |= {
            "pictures": len(names) if isinstance(names, list) else 0,
            "minutes": round(count("seconds") / 60, 1),
            "peak_memory_gib": round(peak / 2**30, 2),
            "card": clip(str(report.get("device", "unknown")), 80),
            "versions": versions if isinstance(versions, dict) else {},
        }
    return {
        "base": name_model(metadata.get("base_model", "unknown")),
        "base_fingerprint": sha256(prints.encode()).hexdigest()[:16] if prints else None,
        "variant": file.config.variant,
        "numbers": file.num_parameters,
        "settings": read_settings(config),
        "training": told,
        "measures": {k: v for k, v in asdict(row).items() if k != "name" and v is not None},
    }


def write_report(
    places: tuple[Path, Path],
    files: Sequence[tuple[Path, AtomFile]],
    rows: Sequence[Row],
    *,
    evaluator: str,
    prompts: int,
    seeds: int,
    card: str,
) -> None:
    """Write both files of a report.

    Args:
        files: where each atom file lies, and what is in it.
        rows: of the files, in their order, then those to check them by.
        evaluator: name of what measured.
        prompts: how many there were.
        card: the device that painted.
    """
    facts = {
        "sdatoms": __version__,
        "evaluator": " and ".join(name_model(name) for name in evaluator.split(" and ")),
        "prompts": prompts,
        "seeds": seeds,
        "card": card,
        "rows": [
            describe_file(path, file, row) for (path, file), row in zip(files, rows, strict=False)
        ],
        "checks": [
            {"name": clip(row.name, 60)} | {k: getattr(row, k) for k in MEASURES}
            for row in rows[len(files) :]
        ],
    }
    text, table = places
    write_whole(table, (json.dumps(facts, indent=1) + "\n").encode())
    write_whole(text, draw_report(facts).encode())


def draw_report(facts: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    columns = ("base", "steps", "pictures", *MEASURES, "card", "minutes")
    lines = [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for row in facts["rows"]:
        told = row["training"] | row["measures"] | {"base": row["base"]}
        told["pictures"] = row["training"].get("pictures", "–")
        lines.append(f"| {' | '.join(show(told.get(name)) for name in columns)} |")
    for row in facts["checks"]:
        values = [row["name"], "", "", *(show(row[name]) for name in MEASURES), "", ""]
        lines.append(f"| {' | '.join(values)} |")
    lines += [
        "",
        f"By {facts['evaluator']}, {facts['prompts']} prompts, {facts['seeds']} seeds each, "
        f"generated on {facts['card']}; sdatoms {facts['sdatoms']}.",
        "",
    ]
    for row in facts["rows"]:
        settings = ", ".join(f"`{k} = {v}`" for k, v in row["settings"].items()) or "not known"
        lines += [
            f"- {row['base']}, fingerprint `{row['base_fingerprint']}`, {row['variant']}, "
            f"{row['numbers']:,} numbers; settings: {settings}.",
        ]
    return "\n".join([*lines, ""])


def show(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "/")
