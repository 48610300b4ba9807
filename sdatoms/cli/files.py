"""`sdatoms inspect`, `sdatoms compose` and `sdatoms export`: what is done with atom files."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdatoms.atoms.strengths import check_number
from sdatoms.cli.base import add_base_flags, open_base
from sdatoms.errors import AtomError, check_text

if TYPE_CHECKING:
    from sdatoms.files.lora_file import LoraFile

__all__ = [
    "add_compose",
    "add_export",
    "add_inspect",
    "check_folder",
    "run_compose",
    "run_export",
    "run_inspect",
    "split_strength",
    "writing",
]

WORST = 5
"""Layers whose errors `export` prints."""
RANK = 16
"""Of a LoRA for a named program, where no rank is given."""


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


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="an atom file")
    parser.add_argument(
        "--for",
        dest="client",
        choices=("comfyui", "a1111", "kohya", "diffusers", "lycoris"),
        default=None,
        help="the program that will read it: chooses names, and the format where none is given",
    )
    parser.add_argument(
        "--format",
        choices=("pipeline", "diff", "lora"),
        default=None,
        help="a diffusers directory with the atoms baked in (exact), every weight's difference as "
        "LyCORIS has it (exact), or the nearest LoRA",
    )
    parser.add_argument(
        "--rank", type=int, default=None, help="of the LoRA (default with --for: 16)"
    )
    parser.add_argument(
        "--names",
        choices=("diffusers", "kohya"),
        default=None,
        help="key names of the LoRA (default: those of --for, else diffusers)",
    )
    add_base_flags(parser, places=False, precision=False)
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of the numbers written (default: float32)",
    )
    parser.add_argument(
        "--output", required=True, metavar="OUT", help="the file, or the directory, to write"
    )


def run_export(args: argparse.Namespace) -> None:
    """Turn an atom file into a baked pipeline, a full difference or a LoRA; says what is lost."""
    import torch

    from sdatoms.adapters import export, pipelines
    from sdatoms.files.reader import read_atoms

    form, names, rank = choose_form(args)
    if form == "pipeline":
        check_text(args.output, "--output")
    check_output(args.output, [args.file])
    file, dtype = read_atoms(args.file), getattr(torch, args.dtype)
    pipe = open_base(args, device="cpu", dtype="float32", offload="none")
    if form == "lora":
        size = export.measure_lora(file, pipe, rank, names=names, dtype=dtype)
    elif form == "diff":
        size = export.measure_diff(file, pipe, dtype=dtype)
    else:
        size = pipelines.measure_pipeline(pipe, dtype=dtype)
    print(f"{args.output} takes {size:,} bytes of tensors; the atom file has", end=" ")
    print(f"{Path(args.file).stat().st_size:,} bytes", flush=True)
    with writing(args.output), counting("layers") as progress:
        if form == "lora":
            made = export.convert_to_lora(
                file, pipe, rank, names=names, dtype=dtype, progress=progress
            )
        elif form == "diff":
            made = export.convert_to_diff(file, pipe, names=names, dtype=dtype, progress=progress)
        else:
            made = pipelines.save_pipeline(file, pipe, args.output, dtype=dtype, progress=progress)
        if made.tensors:
            made.save(args.output)
    print_losses(made, args.client)


def choose_form(args: argparse.Namespace) -> tuple[str, Any, int]:
    """Format, key names and rank from the flags.

    Raises:
        AtomError: flags that do not fit each other.
    """
    from sdatoms.adapters.names import CLIENTS, find_client

    client = find_client(args.client) if args.client else None
    if client is None and args.format is None:
        raise AtomError(f"--format is missing; or say --for {' | '.join(CLIENTS)}")
    form = args.format or (client.formats[0] if client else "lora")
    if client and form not in client.formats:
        raise AtomError(
            f"--format {form} came with --for {args.client}; {client.title} opens "
            f"{' and '.join(client.formats)}"
        )
    if form != "lora" and (args.rank is not None or args.names is not None):
        flag = "--rank" if args.rank is not None else "--names"
        raise AtomError(f"{flag} came with --format {form}; it fits --format lora only")
    if client and args.names not in (None, client.names):
        raise AtomError(
            f"--names {args.names} came with --for {args.client}; {client.title} takes the names "
            f"of {client.names}"
        )
    if form == "lora" and args.rank is None and client is None:
        raise AtomError("--rank is missing; --format lora takes one, such as --rank 16")
    rank = RANK if args.rank is None else args.rank
    names = args.names or (client.names if client else "diffusers")
    return form, ("kohya" if form == "diff" and client is None else names), rank


def print_losses(made: Any, client: str | None) -> None:
    """What the form has no place for, and what is lost: of the file, and of programs that skip
    some layers of it."""
    from sdatoms.adapters.names import find_client
    from sdatoms.errors import clip

    if made.left_out:
        print(made.left_out)
    readings = [made.reading(find_client(client))] if client else list(made.readings)
    skipped = readings[0].skipped if client else ()
    errors = made.errors | dict.fromkeys(skipped, 1.0)
    total = readings[0].total_error if client else made.total_error
    worst = sorted(errors.items(), key=lambda pair: -pair[1])[:WORST]
    print(f"share of the change that is lost: {total:.3%} in all, by layer at most")
    for layer, error in worst:
        print(f"  {error:8.3%}  {clip(layer)}")
    for reading in readings:
        if reading.skipped:
            print(
                f"{reading.program} skips {len(reading.skipped)} of {len(made.errors)} layers, "
                f"{clip(reading.skipped[0])} first: {reading.total_error:.3%} lost there in all"
            )


@contextmanager
def counting(unit: str) -> Iterator[Any]:
    """A progress bar on standard error, moved by calls with how many of how many are done."""
    from tqdm import tqdm

    with tqdm(unit=unit.removesuffix("s"), leave=False, delay=1) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def check_output(output: str, sources: Sequence[str]) -> None:
    """Refuse, before any work, an output that cannot be written, or that one of its sources is.

    Raises:
        AtomError: names it.
    """
    for source in sources:
        if os.path.exists(output) and os.path.exists(source) and os.path.samefile(output, source):
            raise AtomError(f"--output is {output!r}, which is read here too; name another file")
    check_folder(Path(output).parent)


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be written to; it need not be there yet.

    Raises:
        AtomError: it is a file, lies below one, or is closed to the user.
    """
    places = (folder, *folder.absolute().parents)
    place = next((path for path in places if os.path.lexists(path)), folder)
    try:
        folder.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise AtomError(f"{str(folder)!r} cannot be written: {error.strerror}") from None
    if not place.is_dir():
        raise AtomError(f"{str(folder)!r} cannot be written: {str(place)!r} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise AtomError(f"{str(folder)!r} cannot be written: {str(place)!r} is closed to you")


@contextmanager
def writing(path: str) -> Iterator[None]:
    """One sentence for a disk that is full, or a folder that cannot be written to."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise AtomError(f"{path!r} cannot be written: {reason}") from None
