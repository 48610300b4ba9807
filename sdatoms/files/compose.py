r"""Sum atom files into one: exact, and of bounded size however many are summed.

Deltas add, layer by layer and view by view (`layer_sums.py`), whatever variants and targets the
files have. Sparse files add the same way where their codes are the same: with identical base atoms,
λ and solver. Others are refused, as is a sparse file beside a linear one.

Sums are taken in float64 in the order of the files' hashes, so the order of the arguments changes
no bit.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdatoms.atoms.config import AtomConfig
from sdatoms.atoms.strengths import check_number
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import FORMAT, AtomFile, hash_content
from sdatoms.files.file_checks import check_file
from sdatoms.files.layer_sums import SharedSums, Term, share_equal, sum_layer
from sdatoms.fingerprint import matches
from sdatoms.version import __version__

__all__ = [
    "compose",
]

Part = tuple[AtomFile, float]
KEPT = (
    "base_model",
    "base_revision",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
)
"""Header entries taken from the first file that has them."""


def compose(
    files: Sequence[AtomFile], strengths: Sequence[float] | None = None, *, title: str | None = None
) -> AtomFile:
    """One atom file whose delta is the sum of the files' deltas at the given strengths.

    Any mix of variants, targets and components goes together; a composed file may be composed
    again.

    Args:
        strengths: one finite number a file; None takes 1 for each.
        title: of the new file; the triggers by default.

    Raises:
        AtomError: no files, another number of strengths, a strength that is no finite number or
            too large, or files whose common layers were trained on different base weights, or are
            sparse with other atoms, λ or solver, or beside linear ones.
    """
    if not all(isinstance(file, AtomFile) for file in files):
        raise AtomError("compose takes a list of atom files, as read_atoms gives them")
    strengths = [1.0] * len(files) if strengths is None else list(strengths)
    if not files:
        raise AtomError("there is nothing to compose: no atom file was given")
    if len(strengths) != len(files):
        raise AtomError(f"{len(files)} files came with {len(strengths)} strengths; each takes one")
    strengths = [check_number(number, "a strength") for number in strengths]
    for place, file in enumerate(files, 1):
        check_file(file, f"file {place}")
        if file.embeddings:
            raise AtomError(
                f"file {place} brings the word {file.metadata['tokens']!r}, whose embedding no "
                "sum can hold; load the files side by side instead"
            )
    parts = list(zip(files, strengths, strict=True))
    parts.sort(key=lambda part: (part[0].sha256, part[1], name_file(part[0])))
    prints = merge_fingerprints([file for file, _ in parts])
    check_books([file for file, _ in parts])
    tensors: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for component in sorted({c for file, _ in parts for c in file.components}):
        terms: dict[str, list[Term]] = {}
        sums: SharedSums = {}
        for file, strength in parts:
            for path, maps in file.maps(component).items():
                terms.setdefault(path, []).extend((strength, m) for m in maps)
        for path, found in sorted(terms.items()):
            stored, layers[f"{component}.{path}"] = sum_layer(path, found, sums)
            tensors |= {f"{component}.{path}.{name}": tensor for name, tensor in stored.items()}
    share_equal(tensors, layers)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AtomError(f"strengths this large leave {key!r} no finite sum in float32")
    config = merge_configs([file.config for file, _ in parts])
    header = {
        "format": FORMAT,
        "config": json.dumps(config.to_dict()),
        "layers": json.dumps(layers, separators=(",", ":")),
        "base_fingerprints": json.dumps(prints, separators=(",", ":")),
        "modelspec.hash_sha256": hash_content(tensors),
    }
    return AtomFile(config, describe_sum(parts, title) | header, tensors)


def describe_sum(parts: Sequence[Part], title: str | None) -> dict[str, str]:
    """The header's words on where the sum comes from."""
    triggers = ", ".join(dict.fromkeys(f.trigger for f, _ in parts if f.trigger))
    names = [(name_file(file), strength) for file, strength in parts]
    sources = [{"sha256": f.sha256, "strength": s, "trigger": f.trigger} for f, s in parts]
    header = {
        "composed_from": json.dumps(sources),
        "sdatoms_version": __version__,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title or " + ".join(name for name, _ in names),
        "modelspec.description": "Sum of " + ", ".join(f"{n!r} at {s:g}" for n, s in names),
        "modelspec.merged_from": ", ".join(name for name, _ in names),
        "modelspec.date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if triggers:
        header |= {"trigger": triggers, "modelspec.trigger_phrase": triggers}
    for key in KEPT:
        held = [file.metadata[key] for file, _ in parts if key in file.metadata]
        header |= {key: held[0]} if held else {}
    return header


def name_file(file: AtomFile) -> str:
    """What people would call the file: its trigger, its title, or the start of its hash."""
    title = file.metadata.get("modelspec.title")
    return clip(file.trigger or title or file.sha256[:8], 60)


def merge_configs(configs: Sequence[AtomConfig]) -> AtomConfig:
    """The first config, under the narrowest variant that has every kind of atoms in the sum."""
    variants = {config.variant for config in configs}
    if len(variants) == 1:
        return configs[0]
    wide = "overcomplete" if variants == {"atoms", "overcomplete"} else "full"
    return replace(configs[0], variant=wide)


def merge_fingerprints(files: Sequence[AtomFile]) -> dict[str, dict[str, list[float]]]:
    """All files' fingerprints.

    Raises:
        AtomError: a layer that two files know is another weight in each.
    """
    merged: dict[str, dict[str, list[float]]] = {}
    owners: dict[tuple[str, str], AtomFile] = {}
    for file in files:
        for component, prints in file.fingerprints.items():
            known = merged.setdefault(component, {})
            common = [path for path in prints if path in known]
            differing = [path for path in common if not matches(known[path], prints[path])]
            if differing:
                pair = (owners[component, differing[0]], file)
                one, other = (
                    f"{name_file(f)!r} ({clip(f.metadata.get('base_model', 'unknown base'))})"
                    for f in pair
                )
                raise AtomError(
                    f"{one} and {other} were trained on different bases: the weights of "
                    f"{len(differing)} of {len(common)} common layers differ, first "
                    f"{clip(differing[0])!r}"
                )
            for path, numbers in prints.items():
                owners.setdefault((component, path), file)
                known.setdefault(path, numbers)
    return merged


def check_books(files: Sequence[AtomFile]) -> None:
    """Refuse sparse files whose codes differ, and sparse beside linear ones."""
    first = files[0]
    known: dict[tuple[str, ...], tuple[str, AtomFile]] = {}
    for file in files:
        one, other = f"{name_file(first)!r}", f"{name_file(file)!r}"
        kinds = first.config.decomposition, file.config.decomposition
        if kinds[0] != kinds[1]:
            raise AtomError(
                f"{one} is {kinds[0]} and {other} {kinds[1]}; sparse files compose only with "
                "sparse ones, load these side by side"
            )
        if kinds[0] == "linear":
            continue
        if file.config.sparsity != first.config.sparsity:
            raise AtomError(
                f"{one} has a sparsity of {first.config.sparsity} and {other} of "
                f"{file.config.sparsity}; sparse files compose only with the same codes"
            )
        for component in file.components:
            for path, maps in file.maps(component).items():
                for m in maps:
                    assert m.book
                    place = (component, path, "spatial" if m.kind == "spatial" else "block")
                    before, owner = known.setdefault(place, (m.book.hash, file))
                    if before != m.book.hash:
                        raise AtomError(
                            f"{name_file(owner)!r} and {other} have different sparse atoms, λ or "
                            f"solvers in {clip('.'.join(place))!r}; sparse files compose only with "
                            "the same codes"
                        )
