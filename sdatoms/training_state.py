"""Any nested state — optimizers, schedules, averages — as plain tensors and one JSON text.

Tensors keep their dtype, numbers their kind, dictionaries their keys' kind; a checkpoint holds no
pickle, and what is read back equals what was written to the bit.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

__all__ = ["pack_state", "read_rng", "restore_rng", "unpack_state"]


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
