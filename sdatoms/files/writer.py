"""One adapter, one `.safetensors` file: from live injections to an atom file.

What a file holds is `AtomFile`'s, in `atom_file.py`; how one is validated is `reader.py`'s.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.atoms.keys import is_frozen
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import FORMAT, STORED, AtomFile, describe_books, hash_content
from sdatoms.fingerprint import fingerprint
from sdatoms.layers.atom_layers import TunedWeight
from sdatoms.layers.inject import Injection
from sdatoms.version import __version__

__all__ = [
    "FileFacts",
    "describe_layout",
    "pack_atoms",
    "save_atoms",
]

RESERVED = ("format", "config", "layers", "base_fingerprints", "sdatoms_version")
"""Header entries that readers rely on; `metadata` cannot replace them."""
ARCHITECTURES = {1024: "stable-diffusion-v2-512", 2048: "stable-diffusion-xl-v1-base"}
"""Text width of a diffusion UNet → modelspec architecture; other widths are version 1."""
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
"""diffusers' prediction type → modelspec's."""
THUMBNAIL = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")
MAX_THUMBNAIL = 1 << 20


@dataclass(frozen=True)
class FileFacts:
    """What an atom file's header says beside its atoms.

    Raises:
        AtomError: `metadata` names an entry of ours, or the thumbnail is no picture's data URI.
    """

    trigger: str | None = None
    """The words that call the subject, such as "sks dog"."""
    base_model: str | None = None
    """Hub id or directory of the base."""
    base_revision: str | None = None
    step: int | None = None
    """Optimizer steps the atoms were trained for."""
    seed: int | None = None
    title: str | None = None
    """For model browsers; the trigger by default."""
    description: str | None = None
    """For model browsers; by default one sentence about the atoms."""
    resolution: int | None = None
    """Side of the training pictures in px."""
    prediction_type: str | None = None
    """The base's, as diffusers names it: epsilon, v_prediction or sample."""
    thumbnail: str | None = None
    """A `data:image/…;base64,` URI of at most 1 MiB."""
    metadata: Mapping[str, str] | None = None
    """Further header entries."""

    def __post_init__(self) -> None:
        for key in self.metadata or {}:
            if key in RESERVED:
                raise AtomError(f"metadata cannot replace the header entry {key!r}")
        # Model browsers show a thumbnail as it is.
        uri = self.thumbnail
        if uri is not None and (len(uri) > MAX_THUMBNAIL or not THUMBNAIL.fullmatch(uri)):
            raise AtomError(
                f"the thumbnail {clip(uri, 40)!r} ({len(uri)} characters) is no "
                f"'data:image/jpeg;base64,…' of at most {MAX_THUMBNAIL}"
            )


def pack_atoms(
    injections: Mapping[str, Injection],
    facts: FileFacts | None = None,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    word: str | None = None,
    embeddings: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> AtomFile:
    """The atom file of live injections, in memory; the header's config is the first one's.

    Args:
        injections: component → its atoms.
        facts: for the header.
        tensors: keys as in the file; replaces the live values, for instance by running averages.
        word: a new word of the text encoders, with its `embeddings` by component.
        dtype: of the stored numbers, base atoms aside: rounded ones would be another dictionary.

    Raises:
        AtomError: nothing to save, linear beside sparse atoms, a replacement fits no tensor, or a
            tensor is not finite.
    """
    if not isinstance(injections, Mapping):
        what = clip(repr(injections), 60)
        raise AtomError(f"injections is {what}; it takes {{'unet': injection}} or the like")
    for component, injection in injections.items():
        if not isinstance(injection, Injection):
            what = type(injection).__name__
            raise AtomError(f"the component {component!r} is a {what}; inject() gives its atoms")
    if not isinstance(dtype, torch.dtype) or dtype not in STORED:
        names = ", ".join(str(known).removeprefix("torch.") for known in STORED)
        raise AtomError(f"dtype is {dtype}; numbers are stored in {names}")
    if not injections:
        raise AtomError(
            "there is nothing to save: no component was given; pass {'unet': injection} or the like"
        )
    if len({injection.config.decomposition for injection in injections.values()}) > 1:
        raise AtomError("the components' atoms are linear and sparse; a file holds one kind")
    stored: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    prints: dict[str, dict[str, list[float]]] = {}
    for component, injection in injections.items():
        if not isinstance(component, str) or not re.fullmatch(r"[A-Za-z_]\w*", component):
            raise AtomError(f"the component name {component!r} is not a plain name such as 'unet'")
        if not injection.layers:
            raise AtomError(f"the atoms of {component!r} were ejected; save them before eject()")
        stored |= {f"{component}.{name}": t for name, t in injection.state_dict().items()}
        prints[component] = {}
        for path, weight in injection.weights.items():
            layers[f"{component}.{path}"] = describe_layout(weight)
            prints[component][path] = fingerprint(weight.base.weight)
    for key, tensor in (tensors or {}).items():
        if key not in stored or stored[key].shape != tensor.shape:
            raise AtomError(f"the replacement tensor {key!r} fits no tensor of these injections")
        stored[key] = tensor.detach().clone()
    stored |= {f"{c}.tokens.embeddings": t.detach() for c, t in (embeddings or {}).items()}
    for key, tensor in stored.items():
        kept = torch.float32 if key.endswith("base_atoms") else dtype
        stored[key] = tensor.to("cpu", kept).contiguous()
        if not torch.isfinite(stored[key]).all():
            raise AtomError(f"the tensor {key!r} holds NaN or infinite numbers; nothing was saved")
    first = next(iter(injections.values()))
    header = describe_facts(facts or FileFacts(), first, stored) | {
        "format": FORMAT,
        "config": json.dumps(first.config.to_dict()),
        "layers": json.dumps(layers, separators=(",", ":")),
        "base_fingerprints": json.dumps(prints, separators=(",", ":")),
        "sdatoms_version": __version__,
    }
    return AtomFile(first.config, header | ({"tokens": word} if word else {}), stored)


def describe_facts(
    facts: FileFacts, first: Injection, stored: Mapping[str, Tensor]
) -> dict[str, str]:
    """The header's entries for people and model browsers; those without a value are left out."""
    side = facts.resolution
    header = {
        "base_model": facts.base_model,
        "base_revision": facts.base_revision,
        "trigger": facts.trigger,
        "step": facts.step,
        "seed": facts.seed,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": guess_architecture(first.model, facts.prediction_type),
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": facts.title or facts.trigger or "filter atoms",
        "modelspec.description": facts.description
        or describe_atoms(first, stored, facts.base_model),
        "modelspec.trigger_phrase": facts.trigger,
        "modelspec.thumbnail": facts.thumbnail,
        "modelspec.date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{side}x{side}" if side else None,
        "modelspec.prediction_type": PREDICTIONS.get(facts.prediction_type or ""),
        "modelspec.hash_sha256": hash_content(stored),
        **(facts.metadata or {}),
    }
    return {key: str(value) for key, value in header.items() if value is not None}


def save_atoms(
    path: str | os.PathLike[str],
    injections: Mapping[str, Injection],
    *,
    trigger: str | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    step: int | None = None,
    seed: int | None = None,
    title: str | None = None,
    description: str | None = None,
    resolution: int | None = None,
    prediction_type: str | None = None,
    thumbnail: str | None = None,
    metadata: Mapping[str, str] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    word: str | None = None,
    embeddings: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Save `{component: injection}` as one atom file, written whole or not at all.

    Args:
        path: where to; parent directories are made.
        injections: components as diffusers names them (`unet`, `text_encoder`, …), or `model`.
        trigger: the words that call the subject, such as "sks dog".
        base_model: hub id or directory of the base.
        base_revision: of the base.
        step: optimizer steps the atoms were trained for.
        seed: of the training.
        title: for model browsers; the trigger by default.
        description: for model browsers; one sentence about the atoms by default.
        resolution: side of the training pictures in px.
        prediction_type: the base's, as diffusers names it.
        thumbnail: a `data:image/…;base64,` URI of at most 1 MiB.
        metadata: further header entries.
        tensors: keys as in the file; replaces the live values, for instance by running averages.
        word: a new word of the text encoders, such as <dog>, with its `embeddings`.
        embeddings: text encoder → `(n, width)`.
        dtype: of the stored numbers.

    Raises:
        AtomError: nothing to save, linear beside sparse atoms, a replacement fits no tensor, a
            tensor is not finite, metadata names an entry of ours, or the thumbnail is no picture's
            data URI.
    """
    facts = FileFacts(
        trigger=trigger,
        base_model=base_model,
        base_revision=base_revision,
        step=step,
        seed=seed,
        title=title,
        description=description,
        resolution=resolution,
        prediction_type=prediction_type,
        thumbnail=thumbnail,
        metadata=metadata,
    )
    file = pack_atoms(
        injections, facts, tensors=tensors, word=word, embeddings=embeddings, dtype=dtype
    )
    return file.save(path)


def describe_layout(weight: TunedWeight) -> dict[str, Any]:
    """What a file says about a layer: kernel and groups, the view and sides of its blocks, the
    layer that keeps the atoms it shares, and λ and the solver of sparse codes."""
    layout: dict[str, Any] = {"kernel": list(weight.base.shape[2:]), "groups": weight.base.groups}
    block = weight.views.get("block")
    if block is not None:
        layout |= {"view": block.view.kind, "block": list(block.view.block)}
        if block.keeper:
            layout |= {"shared_with": block.owner}
    return layout | describe_books({v: d.book for v, d in weight.views.items() if d.book})


def describe_atoms(first: Injection, tensors: Mapping[str, Tensor], base_model: str | None) -> str:
    """One sentence for model browsers."""
    numbers = sum(t.numel() for key, t in tensors.items() if not is_frozen(key))
    base = f" on {base_model}" if base_model else ""
    return f"Filter atoms, variant {first.config.variant}, {numbers:,} parameters{base}; sdatoms."


def guess_architecture(model: nn.Module, prediction_type: str | None = None) -> str:
    """`<modelspec architecture of a diffusion UNet, or other model's class name>/filter-atoms`."""
    if type(model).__name__ != "UNet2DConditionModel":
        return f"{type(model).__name__.lower()}/filter-atoms"
    width = getattr(getattr(model, "config", None), "cross_attention_dim", None)
    name = ARCHITECTURES.get(width if isinstance(width, int) else 0, "stable-diffusion-v1")
    if name == "stable-diffusion-v2-512" and prediction_type == "v_prediction":
        name = "stable-diffusion-v2-768-v"
    return f"{name}/filter-atoms"
