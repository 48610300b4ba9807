"""Filter atoms and their peers in one form: PEFT's LoRA, LoKr and OFT, and full fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save as save_tensors
from torch import nn

from sdatoms.atoms.config import AtomConfig
from sdatoms.files.writer import FileFacts, pack_atoms
from sdatoms.layers.inject import inject

__all__ = [
    "Peer",
    "tune_all",
    "tune_atoms",
    "tune_lokr",
    "tune_lora",
    "tune_oft",
]


@dataclass(frozen=True)
class Peer:
    """What a method trains in a model, and the file it leaves."""

    parameters: list[nn.Parameter]
    save: Callable[[], bytes]
    """The bytes of the saved file, as trained so far."""


def tune_atoms(model: nn.Module, config: AtomConfig, base_model: str) -> Peer:
    injection = inject(model, config)

    def save() -> bytes:
        file = pack_atoms({"unet": injection}, FileFacts("sks", base_model))
        return save_tensors(file.tensors, file.metadata)

    return Peer(list(injection.parameters()), save)


def tune_lora(model: nn.Module, targets: str | Sequence[str], rank: int = 4) -> Peer:
    """LoRA of scale 1.

    Args:
        targets: a pattern of module paths, or the paths themselves.
    """
    from peft import LoraConfig

    pattern = targets if isinstance(targets, str) else f"^({'|'.join(map(re.escape, targets))})$"
    return tune_peft(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern))


def tune_lokr(model: nn.Module, targets: str, rank: int = 4) -> Peer:
    from peft import LoKrConfig

    return tune_peft(model, LoKrConfig(r=rank, alpha=rank, target_modules=targets))


def tune_oft(model: nn.Module, targets: str, block_size: int = 4) -> Peer:
    from peft import OFTConfig

    return tune_peft(model, OFTConfig(r=0, oft_block_size=block_size, target_modules=targets))


def tune_peft(model: nn.Module, config: Any) -> Peer:
    # Imported here: it is slow to import, and atoms and full fine-tuning do without it.
    from peft import get_peft_model_state_dict, inject_adapter_in_model

    model.requires_grad_(False)
    inject_adapter_in_model(config, model)

    def save() -> bytes:
        state = get_peft_model_state_dict(model)
        return save_tensors({k: v.contiguous() for k, v in state.items()})

    return Peer([p for p in model.parameters() if p.requires_grad], save)


def tune_all(model: nn.Module) -> Peer:
    model.requires_grad_(True)
    return Peer(list(model.parameters()), lambda: save_tensors(dict(model.state_dict())))
