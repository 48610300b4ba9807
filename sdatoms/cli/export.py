"""`sdatoms export`: an atom file as other programs read it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdatoms.cli.base import add_base_flags, open_base
from sdatoms.cli.outputs import check_folder, check_output, writing
from sdatoms.errors import AtomError, check_text

__all__ = ["add_export", "run_export"]

WORST = 5
"""Layers whose errors `export` prints."""
RANK = 16
"""Of a LoRA for a named program, where no rank is given."""


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
        pipelines.check_new_folder(Path(check_text(args.output, "--output")))
        check_folder(Path(args.output).absolute().parent)
    else:
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
