"""Whether an atom file fits a pipeline, and whether it was trained on it; nothing is loaded."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from sdatoms.adapter_plan import check_fit
from sdatoms.adapters import choose_modules
from sdatoms.atom_file import AtomFile
from sdatoms.baked import find_layer, read_pristine
from sdatoms.errors import AtomError
from sdatoms.fingerprint import fingerprint, matches

__all__ = ["Fit", "fingerprint_base", "judge_fit", "same_base"]

SAMPLES = 6
"""Layers whose fingerprint is compared; enough to tell bases apart, and quick on large ones."""


class Fit(NamedTuple):
    """What `judge_fit` found."""

    verdict: Literal["fits", "other base", "does not fit"]
    reason: str


def judge_fit(file: AtomFile, pipe: Any) -> Fit:
    """Compare a file's layout with the pipeline's layers, and a few fingerprints with its weights.

    Layers that carry adapters are judged by their pristine weights.
    """
    try:
        for component, module in choose_modules(pipe, file, None).items():
            maps = file.maps(component)
            for path, views in maps.items():
                check_fit(path, find_layer(module, path), views)
            prints = file.fingerprints.get(component, {})
            for path in spread([path for path in prints if path in maps]):
                if not matches(prints[path], fingerprint(read_pristine(module, path))):
                    trained = file.metadata.get("base_model", "another base")
                    return Fit("other base", f"trained on {trained}; pictures will differ")
    except AtomError as error:
        return Fit("does not fit", str(error))
    return Fit("fits", "trained on this base" if file.fingerprints else "every layer fits")


def fingerprint_base(pipe: Any) -> dict[str, list[float]]:
    """Module path → fingerprint of a few weights of the UNet, without adapters."""
    weights = {
        name.removesuffix(".weight"): parameter
        for name, parameter in pipe.unet.named_parameters()
        if name.endswith(".weight") and parameter.dim() == 4 and not name.startswith("_")
    }
    return {path: fingerprint(read_pristine(pipe.unet, path)) for path in spread(list(weights))}


def same_base(stored: dict[str, list[float]], found: dict[str, list[float]]) -> bool:
    """Whether two such tables are of one base, up to a cast to 16 bits."""
    return stored.keys() == found.keys() and all(matches(stored[p], found[p]) for p in stored)


def spread(paths: list[str]) -> list[str]:
    """At most `SAMPLES` of them, first and last included."""
    if len(paths) <= SAMPLES:
        return paths
    return [paths[k * (len(paths) - 1) // (SAMPLES - 1)] for k in range(SAMPLES)]
