r"""Sum atom files into one: exact, and of bounded size however many are summed.

Deltas add, view by view. With one encoder E, `Σ s_k E ΔD_k = E (Σ s_k ΔD_k)`: the atoms are summed.
With different encoders the maps are, `T = Σ s_k E_k ΔD_k`, stored behind an identity encoder.
`overcomplete` atoms are concatenated along m1 (β as they are, D1 scaled) while that is smaller than
one ΔD_c a channel, which holds any number of them. Block views of another kind or size stay side by
side.

Sums are taken in float64 in the order of the files' hashes, so the order of the arguments changes
no bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import sdatoms
from sdatoms.atom_file import FORMAT, AtomFile, LayerMap
from sdatoms.errors import AtomError
from sdatoms.fingerprint import hash_tensors, matches

__all__ = ["compose"]

Term = tuple[float, LayerMap]


def compose(
    files: Sequence[AtomFile], strengths: Sequence[float] | None = None, *, title: str | None = None
) -> AtomFile:
    """One atom file whose delta is the sum of the files' deltas at the given strengths (1 by
    default).

    Any mix of variants, targets and components goes together; a composed file may be composed
    again.

    Raises:
        AtomError: no files, another number of strengths, a strength that is not finite, or files
        whose
            common layers were trained on different base weights.
    """
    strengths = [1.0] * len(files) if strengths is None else list(strengths)
    if not files:
        raise AtomError("there is nothing to compose: no atom file was given")
    if len(strengths) != len(files):
        raise AtomError(f"{len(files)} files came with {len(strengths)} strengths; each takes one")
    for strength in strengths:
        if not abs(strength) < float("inf"):
            raise AtomError(f"a strength is {strength!r}; it takes a finite number")
    for number, file in enumerate(files, 1):
        if file.embeddings:
            raise AtomError(
                f"file {number} brings the word {file.metadata['tokens']!r}, whose embedding no "
                "sum can hold; load the files side by side instead"
            )
    prints = merge_fingerprints(files)
    parts = sorted(zip(files, strengths, strict=True), key=lambda part: (part[0].sha256, part[1]))
    tensors: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for component in dict.fromkeys(c for file in files for c in file.components):
        terms: dict[str, list[Term]] = {}
        for file, strength in parts:
            for path, maps in file.maps(component).items():
                terms.setdefault(path, []).extend((strength, m) for m in maps)
        for path, found in sorted(terms.items()):
            stored, layout = sum_layer(found)
            tensors |= {f"{component}.{path}.{name}": tensor for name, tensor in stored.items()}
            layers[f"{component}.{path}"] = layout
    first = files[0]
    triggers = [file.trigger for file in files if file.trigger]
    sources = [{"sha256": f.sha256, "strength": s, "trigger": f.trigger} for f, s in parts]
    kept = ("base_model", "base_revision", "modelspec.architecture", "modelspec.resolution")
    header = {key: first.metadata[key] for key in kept if key in first.metadata} | {
        "format": FORMAT,
        "config": json.dumps(first.config.to_dict()),
        "layers": json.dumps(layers, separators=(",", ":")),
        "base_fingerprints": json.dumps(prints, separators=(",", ":")),
        "composed_from": json.dumps(sources),
        "sdatoms_version": sdatoms.__version__,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title or " + ".join(triggers) or "composed filter atoms",
        "modelspec.hash_sha256": "0x" + hash_tensors(tensors),
    }
    if triggers:
        header |= {"trigger": ", ".join(triggers), "modelspec.trigger_phrase": ", ".join(triggers)}
    return AtomFile(first.config, header, tensors)


def merge_fingerprints(files: Sequence[AtomFile]) -> dict[str, dict[str, list[float]]]:
    """All files' fingerprints; a layer that two files know must be the same weight."""
    merged: dict[str, dict[str, list[float]]] = {}
    for number, file in enumerate(files, 1):
        for component, prints in file.fingerprints.items():
            known = merged.setdefault(component, {})
            common = [path for path in prints if path in known]
            differing = [path for path in common if not matches(known[path], prints[path])]
            if differing:
                raise AtomError(
                    f"file {number} ({file.trigger or 'no trigger'}) was trained on another base: "
                    f"the weights of {len(differing)} of {len(common)} common layers differ, "
                    f"first {differing[0]!r}"
                )
            known |= prints
    return merged


def sum_layer(terms: Sequence[Term]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One layer's summed tensors as `<view>.<tensor>`, and its layout."""
    layout: dict[str, Any] = {"kernel": list(terms[0][1].kernel), "groups": terms[0][1].groups}
    slots: dict[tuple[str, tuple[int, int]], list[Term]] = {}
    for strength, m in terms:
        if (m.kernel, m.groups) != (terms[0][1].kernel, terms[0][1].groups):
            raise AtomError(
                "two files hold the same layer with different kernels; they fit no common base"
            )
        slots.setdefault((m.kind, m.block), []).append((strength, m))
    stored: dict[str, Tensor] = {}
    blocks = 0
    for (kind, block), group in sorted(slots.items()):
        name = "spatial"
        if kind != "spatial":
            blocks += 1
            name = "block" if blocks == 1 else f"block_{blocks}"
            facts = {"view": kind, "block": list(block)}
            layout |= facts if blocks == 1 else {name: facts}
        stored |= {f"{name}.{key}": tensor for key, tensor in sum_view(group).items()}
    return stored, layout


def sum_view(terms: Sequence[Term]) -> dict[str, Tensor]:
    """The tensors of one view's sum, in the smallest form that holds it exactly."""
    encoder = terms[0][1].tensors["encoder"]
    channels = next((m.channels for _, m in terms if m.channels is not None), None)
    if not all(torch.equal(m.tensors["encoder"], encoder) for _, m in terms):
        eye = torch.eye(len(encoder))
        total = add([strength * m.transform for strength, m in terms])
        name = "atoms" if channels is None else "channel_atoms"
        return {"encoder": eye, name: total.float().contiguous()}
    if channels is None:
        total = add([strength * m.tensors["atoms"].double() for strength, m in terms])
        return {"encoder": encoder.float(), "atoms": total.float()}
    m, p = encoder.shape[1], encoder.shape[0]
    inner = [as_inner(strength, layer, channels) for strength, layer in terms]
    width = sum(beta.shape[2] for beta, _ in inner if beta is not None)
    if (
        all(beta is not None for beta, _ in inner)
        and width * (channels * m + m * p) < channels * m * p
    ):
        return {
            "encoder": encoder.float(),
            "inner_coefficients": torch.cat(
                [beta for beta, _ in inner if beta is not None], 2
            ).float(),
            "inner_atoms": torch.cat([atoms for _, atoms in inner], 1).float(),
        }
    total = add([strength * form_delta(layer.tensors) for strength, layer in terms])
    return {
        "encoder": encoder.float(),
        "channel_atoms": total.float().expand(channels, m, p).contiguous(),
    }


def as_inner(strength: float, layer: LayerMap, channels: int) -> tuple[Tensor | None, Tensor]:
    """`(β, strength · D1)` of one term; plain atoms are one inner atom whose β is 1 in every
    channel."""
    t = {name: tensor.double() for name, tensor in layer.tensors.items()}
    if "inner_atoms" in t:
        return t["inner_coefficients"], strength * t["inner_atoms"]
    if "atoms" in t:
        m = len(t["atoms"])
        return torch.ones(channels, m, 1, dtype=torch.float64), strength * t["atoms"][:, None]
    return None, t["channel_atoms"]


def form_delta(tensors: Mapping[str, Tensor]) -> Tensor:
    """ΔD `(m, p)` or ΔD_c `(g·i, m, p)` in float64."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    if "inner_atoms" in t:
        return torch.einsum("caj,ajp->cap", t["inner_coefficients"], t["inner_atoms"])
    return t["atoms"] if "atoms" in t else t["channel_atoms"]


def add(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
