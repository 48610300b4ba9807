"""LoRA files of diffusers, PEFT and kohya, read as carefully as atom files.

They are judged by content, never by suffix, and no pickle is opened. A file holds pairs of
matrices, one pair a layer, under one of several spellings:

- kohya: `lora_unet_<path with _ for .>.lora_down.weight`, `.lora_up.weight` and `.alpha`;
- diffusers: `unet.<path>.lora_A.weight` and `.lora_B.weight`, or the older `.lora.down.weight`,
  `.to_q_lora.down.weight` and `.lora_linear_layer.down.weight`.

Which layers they are is only known beside a pipeline: see `sdatoms.adapters.lora`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sdatoms.errors import AtomError, clip, first_line
from sdatoms.files.reader import read_header
from sdatoms.fingerprint import hash_tensors

__all__ = [
    "ALPHA",
    "LoraFile",
    "is_lora",
    "read_lora",
    "read_lora_header",
]

SUFFIXES = {
    ".lora_down.weight": ".lora_up.weight",
    ".lora_A.weight": ".lora_B.weight",
    ".lora.down.weight": ".lora.up.weight",
    "_lora.down.weight": "_lora.up.weight",
    ".lora_linear_layer.down.weight": ".lora_linear_layer.up.weight",
}
"""How A ends → how its B does."""
ALPHA = ".alpha"
KOHYA = {
    "lora_unet_": "unet.",
    "lora_te_": "text_encoder.",
    "lora_te1_": "text_encoder.",
    "lora_te2_": "text_encoder_2.",
}
"""How kohya's keys begin → component."""
OTHERS = {
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.dora_scale$|\.lora_magnitude_vector": "DoRA",
    r"\.oft_": "OFT",
    r"\.lora_mid\.": "LoCon with a Tucker core",
    r"\.diff(_b)?$": "full differences",
}
"""What keys of other adapters hold → what those are, where two matrices are not all of it."""
PEFT = "lora_adapter_metadata"
"""The header entry in which PEFT's settings lie, as diffusers writes it."""
MAX_BYTES = 8 << 30
MAX_RANK = 4096
TAG = re.compile(r"[^\x00-\x1f\x7f]{1,80}")


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A validated LoRA file in memory; needs no model."""

    metadata: dict[str, str]
    """The header's text entries, as stored."""
    tensors: dict[str, Tensor]

    @property
    def kohya(self) -> bool:
        """Whether keys are spelt as kohya's are."""
        return is_kohya(self.tensors)

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """Layer as the file spells it → keys of A and B."""
        return pair_keys(self.tensors)

    @property
    def layers(self) -> list[str]:
        """`<component>.<module path>` of every layer, as far as the spelling tells it: enough for
        the blocks it is in."""
        return [read_layer(layer) for layer in self.pairs]

    @property
    def base(self) -> str:
        """What the file says of the base it was trained on."""
        entries = ("ss_sd_model_name", "base_model", "modelspec.architecture")
        found = (self.metadata.get(entry, "") for entry in (*entries, "ss_base_model_version"))
        return next(filter(None, found), "")

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(t.numel() for key, t in self.tensors.items() if not key.endswith(ALPHA))

    @property
    def ranks(self) -> tuple[int, int]:
        """The least and the largest rank of its layers."""
        found = [len(self.tensors[down]) for down, _ in self.pairs.values()]
        return min(found), max(found)

    @cached_property
    def sha256(self) -> str:
        """Hash of names, shapes and bytes of all tensors."""
        return hash_tensors(self.tensors)

    @property
    def trigger(self) -> str | None:
        return find_trigger(self.metadata)

    @property
    def settings(self) -> dict[str, Any]:
        """PEFT's settings by `<component>.<name>`; none in most files."""
        return read_table(self.metadata.get(PEFT, ""))

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """No LoRA file brings a word."""
        return {}


def is_lora(keys: Iterable[str]) -> bool:
    """Whether the names are those of a LoRA, or of one of its kin that `read_lora` names."""
    names = [key for key in keys if key != "__metadata__"]
    known = (*SUFFIXES, *SUFFIXES.values(), ALPHA)
    return bool(names) and all(
        name.endswith(known) or any(re.search(part, name) for part in OTHERS) for name in names
    )


def read_lora_header(path: Path) -> LoraFile | None:
    """Names, shapes and texts alone: a file whose matrices lie on the meta device and whose alphas
    are left out; None where it is no LoRA of two matrices a layer."""
    where = f"the file {path.name!r}"
    try:
        with path.open("rb") as opened:
            _, header = read_header(opened, where)
        metadata = check_texts(header, where)
        if not is_lora(header):
            return None
        tensors = {
            key: torch.empty(tuple(entry["shape"]), device="meta")
            for key, entry in header.items()
            if key != "__metadata__"
        }
        file = LoraFile(metadata, tensors)
        check_shapes(file, where)
    except (AtomError, OSError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    return LoraFile(metadata, {k: t for k, t in tensors.items() if not k.endswith(ALPHA)})


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Read and validate a LoRA file. No model is needed, nothing is unpickled.

    Raises:
        AtomError: the file is missing, cut short, no safetensors file, no LoRA or one of another
            kind, or its matrices do not fit each other.
    """
    path = Path(path)
    where = f"the file {path.name!r}"
    try:
        if not path.is_file():
            raise AtomError(f"there is no file {str(path)!r}")
        if path.stat().st_size > MAX_BYTES:
            raise AtomError(f"{where} is larger than {MAX_BYTES >> 30} GB; no LoRA is so large")
        with path.open("rb") as opened:
            _, header = read_header(opened, where)
        metadata = check_texts(header, where)
        if not is_lora(header):
            raise AtomError(f"{where} is neither an atom file nor a LoRA that is known here")
        tensors = load_file(path)
    except OSError as error:
        raise AtomError(f"{where} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, AtomError):
            raise
        raise AtomError(f"{where} is cut short or damaged: {first_line(error)}") from None
    file = LoraFile(metadata, dict(sorted(tensors.items())))
    check_shapes(file, where)
    for key, tensor in file.tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise AtomError(f"{where}: {clip(key)!r} holds NaN, infinite or whole numbers")
    return file


def check_texts(header: Mapping[str, Any], where: str) -> dict[str, str]:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AtomError(f"{where} has a header whose metadata is not plain text")
    return metadata


def check_shapes(file: LoraFile, where: str) -> None:
    """Refuse kin of LoRA by name, halves of pairs, and matrices that do not fit each other."""
    for key in file.tensors:
        kind = next((name for part, name in OTHERS.items() if re.search(part, key)), None)
        if kind:
            raise AtomError(
                f"{where} is a file of {kind} ({clip(key, 60)!r}); LoRA files of two matrices a "
                "layer fit"
            )
    pairs = file.pairs
    known = {key for pair in pairs.values() for key in pair}
    known |= {f"{layer}{ALPHA}" for layer in pairs}
    for key in file.tensors:
        if key not in known:
            raise AtomError(f"{where} holds {clip(key, 80)!r}, which is no half of a pair")
    if not pairs:
        raise AtomError(f"{where} holds no pair of matrices")
    for layer, (down, up) in pairs.items():
        a, b = tuple(file.tensors[down].shape), tuple(file.tensors[up].shape)
        flat = all(side == 1 for side in b[2:])
        if len(a) < 2 or len(b) < 2 or a[0] != b[1] or not flat or not 1 <= a[0] <= MAX_RANK:
            raise AtomError(
                f"{where}: the matrices of {clip(layer, 80)!r} have shapes {a} and {b}, which do "
                "not multiply"
            )
        if f"{layer}{ALPHA}" in file.tensors and file.tensors[f"{layer}{ALPHA}"].numel() != 1:
            raise AtomError(f"{where}: the alpha of {clip(layer, 80)!r} is no single number")


def pair_keys(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Layer as the file spells it → keys of A and B, where both are there."""
    held = set(keys)
    found = {}
    for key in sorted(held):
        for down, up in SUFFIXES.items():
            if key.endswith(down) and (other := key.removesuffix(down) + up) in held:
                # `to_q_lora` is part of the layer's name in old files
                found[key.removesuffix(down)] = (key, other)
                break
    return found


def read_layer(name: str) -> str:
    """A layer's component and the block of it, from either spelling."""
    for prefix, component in KOHYA.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            rest = re.sub(r"^(down|up)_blocks_(\d+)_", r"\1_blocks.\2.", rest)
            return component + re.sub(r"^mid_block_", "mid_block.", rest)
    return name


def is_kohya(keys: Iterable[str]) -> bool:
    return all(key.startswith(tuple(KOHYA)) for key in keys)


def find_trigger(metadata: Mapping[str, str]) -> str | None:
    """The words that call the subject: as said outright, else the caption that kohya's trainer saw
    most often."""
    for entry in ("trigger", "modelspec.trigger_phrase", "ss_trigger"):
        if metadata.get(entry, "").strip():
            return clip(metadata[entry].strip(), 80)
    counts: Counter[str] = Counter()
    for folder in read_table(metadata.get("ss_tag_frequency", "")).values():
        for tag, number in folder.items() if isinstance(folder, dict) else ():
            if isinstance(number, int) and TAG.fullmatch(str(tag).strip()):
                counts[str(tag).strip()] += number
    return counts.most_common(1)[0][0] if counts else None


def read_table(text: str) -> dict[str, Any]:
    """A JSON table in a header; an empty one where there is none that can be read."""
    try:
        table = json.loads(text) if 0 < len(text) < 1 << 22 else {}
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}
