"""`sdatoms inject`: what a variant would train in a model, layer by layer, before any training."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from sdatoms.atoms.config import ATOM_FLAGS, AtomConfig, read_atom_flags
from sdatoms.settings import add_flags

if TYPE_CHECKING:
    from sdatoms.layers.inject import LayerReport

__all__ = [
    "add_inject",
    "run_inject",
]


def add_inject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default=None,
        metavar="MODEL",
        help=(
            "a known name such as sd15-unet, clip-l or resnet-50 (published shapes, random "
            "weights; a wrong name lists them all), the folder of a pipeline or a model, or a "
            ".safetensors file; the bundled base by default"
        ),
    )
    add_flags(parser, AtomConfig, ATOM_FLAGS)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_inject(args: argparse.Namespace) -> None:
    """Inject atoms into a model and print what every layer got, and the size of the file."""
    from safetensors.torch import save

    from sdatoms.diffusion.family import find_base
    from sdatoms.files.writer import FileFacts, pack_atoms
    from sdatoms.layers.inject import inject
    from sdatoms.models.open import open_model

    config = AtomConfig(**read_atom_flags(vars(args)))
    opened = open_model(find_base(args.model))
    weights = sum(parameter.numel() for parameter in opened.model.parameters())
    injection = inject(opened.model, config)
    file = pack_atoms({opened.component: injection}, FileFacts(base_model=opened.source))
    rows = injection.report()
    totals = {
        "model": args.model or opened.source,
        "component": opened.component,
        "variant": config.variant,
        "layers": len(injection.layers),
        "parameters": injection.num_parameters,
        "weights": weights,
        "bytes": len(save(file.tensors, file.metadata)),
    }
    if args.json:
        print(json.dumps(totals | {"report": [asdict(row) for row in rows]}))
        return
    print_rows(rows)
    print(
        f"{totals['parameters']:,} parameters in {totals['layers']} layers of a "
        f"{type(opened.model).__name__} of {weights:,} weights; a file of {totals['bytes']:,} bytes"
    )


def print_rows(rows: list[LayerReport]) -> None:
    """One line a layer: path, shape, view, atoms, parameters, reconstruction error, note."""
    width = max(len(row.path) for row in rows)
    for row in rows:
        shape = "x".join(map(str, row.shape))
        print(
            f"{row.path:<{width}} {shape:<16} {row.view:<22} {row.atoms:>5} {row.parameters:>8} "
            f"{row.error:8.1e}  {row.note}"
        )
