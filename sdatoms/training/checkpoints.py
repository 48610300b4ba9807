"""Checkpoints of a `Trainer`, and continuing from one as if never interrupted.

`pack_state` and `unpack_state` turn any nested state — optimizers, schedules, averages — into plain
tensors and one JSON text. Tensors keep their dtype, numbers their kind, dictionaries their keys'
kind; a checkpoint holds no pickle, and what is read back equals what was written to the bit.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdatoms.errors import AtomError
from sdatoms.training.run_folder import RunDirectory
from sdatoms.training.trainer import Trainer

__all__ = [
    "pack_state",
    "read_rng",
    "restore_rng",
    "resume",
    "save_checkpoint",
    "unpack_state",
]


def save_checkpoint(
    trainer: Trainer, directory: RunDirectory, further: dict[str, Any], limit: int | None
) -> None:
    """Atoms, optimizer, schedule, scaler, averages and RNG as `checkpoints/step-…`.

    Args:
        further: more nested state, returned by `resume`.
        limit: how many checkpoints are kept.
    """
    state = {
        "optimizer": trainer.optimizer.state_dict(),
        "optimizer_class": type(trainer.optimizer).__name__,
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "averages": trainer.averages.state() if trainer.averages else None,
        "rng": read_rng(),
        **further,
    }
    packed, places = pack_state(state)
    files = {}
    for name, tensors in (
        ("atoms", None),
        *([("atoms-ema", dict(trainer.averages.values))] if trainer.averages else []),
    ):
        atoms = trainer.pack(tensors)
        files[f"{name}.safetensors"] = save_tensors(atoms.tensors, atoms.metadata)
    directory.save_checkpoint(trainer.step, files, packed, places, limit)
    trainer.log(f"saved checkpoint step-{trainer.step:06d}")


def resume(trainer: Trainer, directory: RunDirectory, wanted: str) -> dict[str, Any] | None:
    """Take a checkpoint's state over as if never interrupted; returns its nested state.

    `latest` with no checkpoint there starts afresh and returns None.

    Raises:
        AtomError: there is no such checkpoint, or it does not fit this run.
    """
    found = directory.find_checkpoint(wanted)
    if found is None:
        trainer.log("no checkpoint to resume from; starting afresh")
        return None
    step, folder = found
    if step > trainer.config.max_train_steps:
        raise AtomError(
            f"the checkpoint is at step {step}, past --max_train_steps "
            f"{trainer.config.max_train_steps}"
        )
    state = unpack_state(*directory.load_state(folder))
    kind = type(trainer.optimizer).__name__
    if state["optimizer_class"] != kind:
        raise AtomError(
            f"the checkpoint {folder.name} was made with {state['optimizer_class']}, not "
            f"{kind}; resume with the same optimizer"
        )
    if (state["averages"] is None) != (trainer.averages is None):
        raise AtomError(
            f"the checkpoint {folder.name} was made with another --use_ema; resume with the same"
        )
    tensors = load_tensors((folder / "atoms.safetensors").read_bytes())
    for component, injection in trainer.injections.items():
        prefix = f"{component}."
        own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        injection.load_state_dict({k: t for k, t in own.items() if k != "tokens.embeddings"})
    for component, tokens in trainer.tokens.items():
        tokens.embeddings.data.copy_(tensors[f"{component}.tokens.embeddings"])
    try:
        trainer.optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError) as error:
        raise AtomError(f"the checkpoint {folder.name} trained other tensors: {error}") from None
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.scaler.load_state_dict(state["scaler"] if trainer.scaler.is_enabled() else {})
    if trainer.averages:
        trainer.averages.load(state["averages"])
    restore_rng(state["rng"])
    trainer.step = step
    trainer.log(f"resumed from step-{step:06d}")
    return state


def pack_state(state: Any) -> tuple[dict[str, Tensor], str]:
    """Tensors by running number, and JSON that says where they belong.

    Raises:
        TypeError: something is no tensor, number, text, list or dictionary.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"t{len(tensors):05d}"
            tensors[name] = value.detach().to("cpu").clone().contiguous()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"items": [[walk(key), walk(entry)] for key, entry in value.items()]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [walk(entry) for entry in value]}
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return {"float": value.hex()}  # exact, infinities included
        raise TypeError(f"a training state cannot hold a {type(value).__name__}")

    return tensors, json.dumps(walk(state))


def unpack_state(tensors: dict[str, Tensor], text: str) -> Any:
    """The inverse of `pack_state`."""

    def walk(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        (kind, held), *_ = value.items()
        if kind == "tensor":
            return tensors[held]
        if kind == "float":
            return float.fromhex(held)
        if kind == "items":
            return {walk(key): walk(entry) for key, entry in held}
        entries = [walk(entry) for entry in held]
        return entries if kind == "list" else tuple(entries)

    return walk(json.loads(text))


def read_rng() -> dict[str, Any]:
    """The state of torch's generators, GPUs included."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def restore_rng(state: dict[str, Any]) -> None:
    """The inverse of `read_rng`; GPUs that are not there now are passed over."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
