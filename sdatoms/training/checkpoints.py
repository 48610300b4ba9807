"""Checkpoints of a `Trainer`, and continuing from one as if never interrupted.

`pack_state` and `unpack_state` turn any nested state — optimizers, schedules, averages — into plain
tensors and one JSON text. Tensors keep their dtype, numbers their kind, dictionaries their keys'
kind; a checkpoint holds no pickle, and what is read back equals what was written to the bit.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdatoms.errors import AtomError
from sdatoms.training.record import RATE_SETTINGS, RECORD, compare_record, read_record
from sdatoms.training.run_folder import RunDirectory, name_step
from sdatoms.training.trainer import Trainer

__all__ = [
    "pack_state",
    "read_rng",
    "restore_rng",
    "resume",
    "save_checkpoint",
    "unpack_state",
]


CHANGEABLE = ("initial_lr", "betas", "weight_decay", "eps")
"""Entries of an optimizer's groups that settings give and no step changes."""


def save_checkpoint(
    trainer: Trainer,
    directory: RunDirectory,
    record: dict[str, Any],
    further: dict[str, Any],
    limit: int | None,
) -> None:
    """Atoms, optimizer, schedule, scaler, averages and RNG as `checkpoints/step-…`.

    Args:
        record: what the run is made from, see `make_record`.
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
    files = {RECORD: json.dumps(record, indent=1).encode()}
    for name, tensors in (
        ("atoms", None),
        *([("atoms-ema", dict(trainer.averages.values))] if trainer.averages else []),
    ):
        atoms = trainer.pack(tensors)
        files[f"{name}.safetensors"] = save_tensors(atoms.tensors, atoms.metadata)
    directory.save_checkpoint(trainer.step, files, packed, places, limit)
    trainer.log(f"saved checkpoint {name_step(trainer.step)}")


class Resumed(NamedTuple):
    """What a checkpoint gave."""

    state: dict[str, Any]
    """The nested state that `save_checkpoint` was given."""
    notes: list[str]
    """What a person should know: settings that changed since."""


def resume(
    trainer: Trainer, directory: RunDirectory, record: dict[str, Any], wanted: str
) -> Resumed | None:
    """Take a checkpoint's state over as if never interrupted; None where `latest` finds none.

    Args:
        record: what this run is made from, which is compared with the checkpoint's own.

    Raises:
        AtomError: there is no such checkpoint, or it does not fit this run.
    """
    found = directory.find_checkpoint(wanted)
    if found is None:
        return None
    step, folder = found
    if step > trainer.config.max_train_steps:
        raise AtomError(
            f"the checkpoint is at step {step}, past --max_train_steps "
            f"{trainer.config.max_train_steps}"
        )
    made = read_record(folder)
    prints = trainer.pack().metadata["base_fingerprints"]
    changes = compare_record(folder, made, record, prints)
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
    load_optimizer(trainer, state, folder.name, changed=any(n in changes for n in RATE_SETTINGS))
    trainer.scaler.load_state_dict(state["scaler"] if trainer.scaler.is_enabled() else {})
    if trainer.averages:
        trainer.averages.load(state["averages"])
    restore_rng(state["rng"])
    trainer.step = step
    changed = [f"{name} {old} → {new}" for name, (old, new) in changes.items()]
    notes = [f"resumed with changed settings: {', '.join(changed)}"] if changed else []
    if made is None:
        notes.append(
            f"{folder.name} is older than the records of settings and pictures; whether these are "
            "as they were is not checked"
        )
    return Resumed(state, notes)


def load_optimizer(trainer: Trainer, state: dict[str, Any], name: str, *, changed: bool) -> None:
    """Take optimizer and schedule over; where rates or the schedule changed, with the new ones."""
    optimizer, schedule = trainer.optimizer, trainer.schedule
    fresh = [{k: group[k] for k in CHANGEABLE if k in group} for group in optimizer.param_groups]
    rates = list(schedule.base_lrs)
    groups = [group.get("name") for group in state["optimizer"]["param_groups"]]
    if groups != [group.get("name") for group in optimizer.param_groups]:
        raise AtomError(f"the checkpoint {name} trained {', '.join(map(str, groups))}, not these")
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError) as error:
        raise AtomError(f"the checkpoint {name} trained other tensors: {error}") from None
    schedule.load_state_dict(state["schedule"])
    if not changed:
        return
    schedule.base_lrs = rates
    for group, own, rate, factor in zip(
        optimizer.param_groups, fresh, rates, schedule.lr_lambdas, strict=True
    ):
        group |= own | {"lr": rate * factor(schedule.last_epoch)}


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
