"""Where the pristine weights of baked layers are kept: in memory, in the base's files, nowhere.

- memory: a copy beside every weight that is baked; the fastest way to change strengths and to
  clear.
- file: none; a pristine weight is read anew from the base's own safetensors, by memory map,
  whenever it is needed, and its bits are held against those found at the first load.
- attach: nothing is baked; layers with the sum of the adapters' maps stand in the base layers'
  places, which takes no memory and costs time in every picture.

`auto` keeps copies while they leave half of the free memory, then files where they hold the very
bits, then attaches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdatoms.errors import AtomError
from sdatoms.fingerprint import checksum
from sdatoms.layers.weights import LayerWeight
from sdatoms.models.original_layout import FileNames, find_file_names

__all__ = [
    "KEEPS",
    "Keep",
    "StoredWeight",
    "can_attach",
    "check_keep",
    "choose_keep",
    "describe_keep",
    "find_free",
    "find_stored",
]

Keep = Literal["auto", "memory", "file", "attach"]
KEEPS: tuple[Keep, ...] = get_args(Keep)
PREFIXES = ("", "text_model.")
"""What may stand before a module's path in the files of its base."""


@dataclass(frozen=True)
class StoredWeight:
    """A pristine weight in a file of the base."""

    path: Path
    key: str
    shape: torch.Size
    """Of the live weight, as is the dtype; the file's may be others of the same numbers."""
    dtype: torch.dtype
    origin: int
    """Checksum of the pristine weight."""

    def check(self) -> None:
        """Refuse, before anything is changed, where the file is gone."""
        if not self.path.is_file():
            raise AtomError(
                f"the base's file {str(self.path)!r} is gone while adapters are baked in; put it "
                "back, or reload the base model"
            )

    def read(self) -> Tensor:
        """The weight on the CPU.

        Raises:
            AtomError: the file is gone, or holds another weight by now.
        """
        self.check()
        try:
            with safe_open(self.path, framework="pt") as file:
                weight = file.get_tensor(self.key).to(self.dtype).reshape(self.shape)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise AtomError(
                f"the base's file {str(self.path)!r} cannot be read while adapters are baked in "
                f"({error}); put it back, or reload the base model"
            ) from None
        if checksum(weight) != self.origin:
            raise AtomError(
                f"{self.key!r} in {str(self.path)!r} is no longer the weight that adapters were "
                "baked into; put the base's file back, or reload the base model"
            )
        return weight


def check_keep(keep: str) -> None:
    """Refuse what is none of `KEEPS`."""
    if keep not in KEEPS:
        raise AtomError(f"keep_weights is {keep!r}; it takes {' | '.join(KEEPS)}")


def choose_keep(need: int, free: int | None, *, stored: bool) -> Keep:
    """What "auto" comes to.

    Args:
        need: bytes of the copies.
        free: bytes free where the weights lie; None where nobody knows.
        stored: whether the base's files hold the weights.
    """
    if free is None or 2 * need <= free:
        return "memory"
    return "file" if stored else "attach"


def describe_keep(keep: Keep, need: int, free: int | None) -> str:
    """One line: what is done, and what that takes."""
    room = "" if free is None else f" ({need / 1e9:.1f} GB of copies, {free / 1e9:.1f} GB free)"
    return {
        "memory": f"pristine weights are kept in memory{room}",
        "file": f"pristine weights are read anew from the base's files{room}",
        "attach": f"adapters are attached, not baked: pictures take longer{room}",
    }[keep if keep != "auto" else "memory"]


def find_free(device: torch.device) -> int | None:
    """Bytes free on a GPU or in the machine; None where nobody knows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.is_file():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", table.read_text(), re.M)
    return int(found[1]) << 10 if found else None


def can_attach(base: LayerWeight) -> bool:
    """Whether an atom layer can stand in this layer's place: it is a convolution or a linear layer
    of its own class, whose weight lies where it is used."""
    plain = type(base.module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return plain and base.parameter == "weight" and not base.offloaded


def find_stored(root: nn.Module, weights: dict[str, LayerWeight]) -> dict[str, StoredWeight]:
    """Module path → the same bits in the files that a model was opened from, a folder of diffusers
    or transformers or a single file, for those of `weights` that are there."""
    found: dict[str, StoredWeight] = {}
    single = find_file_names(root)
    for file in [single.path] if single else list_files(root):
        try:
            with safe_open(file, framework="pt") as held:
                names = set(held.keys())
                for path, base in weights.items():
                    keys = list_keys(path, single)
                    key = next((key for key in keys if key in names), None)
                    if key is None or path in found or base.parameter != "weight":
                        continue
                    live = base.weight
                    stored = held.get_tensor(key)
                    own = checksum(live)
                    if stored.numel() == live.numel() and checksum(stored.to(live.dtype)) == own:
                        found[path] = StoredWeight(file, key, live.shape, live.dtype, own)
        except (OSError, SafetensorError):
            continue
    return found


def list_keys(path: str, single: FileNames | None) -> list[str]:
    """What the weight at a module path may be called in a file."""
    name = f"{path}.weight"
    if single:
        return [single.keys[name]] if name in single.keys else []
    return [*(prefix + name for prefix in PREFIXES), name.removeprefix("text_model.")]


def list_files(root: nn.Module) -> Iterable[Path]:
    """The safetensors files in the folder that the model's configuration names."""
    config = getattr(root, "config", None)
    name = getattr(config, "_name_or_path", None) or getattr(root, "name_or_path", None)
    folder = Path(name) if isinstance(name, str) and name else None
    return sorted(folder.glob("*.safetensors")) if folder and folder.is_dir() else []
