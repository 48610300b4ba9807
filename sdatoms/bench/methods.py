"""The methods that personalization is compared by, as a table, and how each is put into a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sdatoms.bench.ablation_rows import list_ablations, list_trials
from sdatoms.bench.peer_rows import SLOW, WORD, list_peers
from sdatoms.bench.peers import (
    Peer,
    hold_atoms,
    join_word,
    tune_all,
    tune_biases,
    tune_peft,
    tune_singular_values,
    tune_subspaces,
    tune_word,
)
from sdatoms.bench.rows import Method, list_atoms
from sdatoms.layers.inject import inject
from sdatoms.models.families import FAMILY_EXCLUDES
from sdatoms.training.config import TrainConfig, make_atom_config, make_text_config
from sdatoms.training.inputs import check_inputs
from sdatoms.training.parts import inject_atoms

__all__ = ["METHODS", "TRIGGER", "attach_method", "count_method"]

TRIGGER = "sks"


def list_methods() -> dict[str, Method]:
    rows = {row.name: row for row in [*list_atoms(), *list_peers()]}
    rows[SLOW] = replace(rows[SLOW], left_out="a step takes 47 processor seconds without CUDA")
    return rows | {row.name: row for row in [*list_ablations(rows), *list_trials()]}


METHODS = list_methods()
"""Name → row."""


def attach_method(pipe: Any, method: Method, config: TrainConfig) -> Peer:
    """Put a method into a pipeline, in place; everything else is frozen.

    Raises:
        AtomError: no layer takes it.
    """
    base = config.pretrained_model_name_or_path or "sdatoms/emoji-sd"
    for name in ("vae", "text_encoder"):
        getattr(pipe, name).requires_grad_(False)
    if method.tuner == "atoms":
        word = tune_word(pipe, TRIGGER, WORD) if config.train_text_encoder_ti else None
        if method.targets:
            left = FAMILY_EXCLUDES.get(type(pipe.unet).__name__)
            atoms = replace(
                make_atom_config(config), target_modules=method.targets, exclude_modules=left
            )
            injections = {"unet": inject(pipe.unet, atoms)}
            if config.train_text_encoder:
                text = make_text_config(config)
                injections["text_encoder"] = inject(pipe.text_encoder, text)
            held = hold_atoms(injections, base)
        else:
            reads = config.shared_atoms == "captions"
            sources = check_inputs(config).sources if reads else ()
            held = hold_atoms(inject_atoms(pipe, config, sources), base)
        return join_word(held, word) if word else held
    if method.tuner == "all":
        return tune_all(pipe.unet)
    if method.tuner == "biases":
        return tune_biases(pipe.unet)
    if method.tuner == "singular values":
        return tune_singular_values(pipe.unet, method.options["targets"])
    if method.tuner == "subspaces":
        return tune_subspaces(pipe.unet, **method.options)
    if method.tuner == "word":
        return tune_word(pipe, TRIGGER, WORD)
    import peft

    return tune_peft(pipe.unet, getattr(peft, method.tuner)(**method.options))


def count_method(peer: Peer) -> dict[str, int]:
    """Trained numbers, bytes of the file, and layers."""
    numbers = sum(p.numel() for p in peer.parameters)
    return {"numbers": numbers, "bytes": len(peer.save()), "layers": peer.layers}
