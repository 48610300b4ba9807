"""`sdatoms inspect` and `sdatoms compose`: what is done with atom files without a model."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdatoms.atoms.strengths import check_number
from sdatoms.cli.outputs import check_output, writing
from sdatoms.errors import AtomError

if TYPE_CHECKING:
    from sdatoms.files.lora_file import LoraFile

__all__ = [
    "add_compose",
    "add_inspect",
    "run_compose",
    "run_inspect",
    "split_strength",
]


def split_strength(text: str) -> tuple[str, float]:
    """`file.safetensors=0.8` → path and strength; 1 where none is given."""
    path, mark, number = text.rpartition("=")
    if not mark:
        return text, 1.0
    try:
        strength = float(number)
    except ValueError:
        if Path(text).exists():
            return text, 1.0
        raise AtomError(
            f"{text!r} ends in {number!r}, which is no strength; it takes FILE or FILE=0.8"
        ) from None
    return path, check_number(strength, f"the strength of {path!r}")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="an atom file, or a LoRA")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_inspect(args: argparse.Namespace) -> None:
    """Show what an atom file holds, layer by layer; needs no model."""
    from sdatoms.errors import clip
    from sdatoms.files.contents import report_file
    from sdatoms.files.lora_file import LoraFile
    from sdatoms.files.sources import read_adapter

    file = read_adapter(args.file)
    if isinstance(file, LoraFile):
        show_facts(describe_lora(args.file, file), as_json=args.json)
        return
    rows = report_file(file)
    size = Path(args.file).stat().st_size
    hidden = ("layers", "base_fingerprints", "config", "modelspec.thumbnail")
    facts: dict[str, Any] = {
        "file": args.file,
        "bytes": size,
        "header_bytes": size - sum(row.bytes for row in rows),
        "parameters": file.num_parameters,
        "components": list(file.components),
        "layers": len({row.layer for row in rows}),
        "sha256": file.sha256,
        "config": file.config.to_dict(),
        "metadata": {k: v for k, v in file.metadata.items() if k not in hidden},
    }
    if args.json:
        print(json.dumps(facts | {"report": [asdict(row) for row in rows]}))
        return
    show_facts(facts, as_json=False)
    width = min(90, max(len(row.layer) for row in rows))
    print(f"\n{'layer':<{width}} {'view':<14} atoms parameters      bytes  change")
    for row in rows:
        change = "–" if row.change is None else f"{row.change:.2%}"
        print(
            f"{clip(row.layer, width):<{width}} {row.view:<14} {row.atoms:>5} "
            f"{row.parameters:>10,} {row.bytes:>10,} {change:>7}"
        )
    header = facts["header_bytes"]
    print(f"{'header':<{width}} {'':<14} {'':>5} {'':>10} {header:>10,}")
    print(f"{'in all':<{width}} {'':<14} {'':>5} {file.num_parameters:>10,} {size:>10,}")


def show_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    """A line a fact, or one JSON object."""
    from sdatoms.errors import clip

    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            for key, entry in value.items():
                print(f"{clip(f'{name}.{key}', 60):<36} {clip(str(entry))}")
        else:
            print(f"{name:<36} {clip(str(value))}")


def describe_lora(path: str, file: LoraFile) -> dict[str, Any]:
    """What is known of a LoRA without a model."""
    least, most = file.ranks
    return {
        "file": path,
        "kind": "LoRA",
        "names": "kohya" if file.kohya else "diffusers",
        "bytes": Path(path).stat().st_size,
        "parameters": file.num_parameters,
        "layers": len(file.pairs),
        "rank": most if least == most else f"{least} to {most}",
        "trigger": file.trigger or "",
        "base": file.base,
        "sha256": file.sha256,
        "metadata": {k: v for k, v in file.metadata.items() if k != "modelspec.thumbnail"},
    }


def add_compose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE[=STRENGTH]", help="atom files of one base"
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="the atom file to write")
    parser.add_argument("--title", default=None, help="title of the new file")


def run_compose(args: argparse.Namespace) -> None:
    """Sum atom files into one file of bounded size; exact, needs no model."""
    from sdatoms.files.compose import compose
    from sdatoms.files.reader import read_atoms

    wanted = [split_strength(text) for text in args.files]
    check_output(args.output, [path for path, _ in wanted])
    files = [read_atoms(path) for path, _ in wanted]
    sizes = [Path(path).stat().st_size for path, _ in wanted]
    summed = compose(files, [strength for _, strength in wanted], title=args.title)
    for (path, strength), file, size in zip(wanted, files, sizes, strict=True):
        print(f"{path} at {strength:g}: {file.num_parameters:,} parameters, {size:,} bytes")
    with writing(args.output):
        summed.save(args.output)
    after = Path(args.output).stat().st_size
    share = after / sum(sizes)
    print(
        f"{args.output}: {summed.num_parameters:,} parameters, {after:,} bytes, {share:.0%} of the "
        f"{len(files)} files together ({sum(sizes):,} bytes)"
    )
