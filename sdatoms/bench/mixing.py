"""How two files are put into one pipeline.

Atoms are summed exactly (`AdapterSet`), whatever forms they have; two LoRAs are mixed by PEFT's
`add_weighted_adapter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from sdatoms.adapters.load import load_atoms
from sdatoms.bench.rows import Method
from sdatoms.errors import AtomError

__all__ = ["Mix", "check_mix", "mix_adapters"]


@dataclass(frozen=True)
class Mix:
    """How the subject is learnt, and how the style."""

    subject: Method
    style: Method

    @property
    def name(self) -> str:
        """Of both, where they are two."""
        same = self.subject is self.style
        return self.subject.name if same else f"{self.subject.name}; style by {self.style.name}"


def check_mix(mix: Mix) -> None:
    """Refuse methods whose files cannot be mixed.

    Raises:
        AtomError: they are not both of atoms, and not of one LoRA.
    """
    tuners = {mix.subject.tuner, mix.style.tuner}
    if tuners != {"atoms"} and (tuners != {"LoraConfig"} or mix.subject is not mix.style):
        raise AtomError(
            f"files of {mix.name!r} cannot be mixed; those of atoms and of one LoRA can"
        )


def mix_adapters(pipe: Any, mix: Mix, files: Sequence[Path], weights: Sequence[float]) -> None:
    """Put the files of a mix into a fresh pipeline, each at its strength.

    Raises:
        AtomError: files of those methods cannot be mixed.
    """
    check_mix(mix)
    if mix.subject.tuner == "atoms":
        for k, (path, weight) in enumerate(zip(files, weights, strict=True)):
            load_atoms(pipe, path, name=f"part{k}", strength=weight)
    else:
        mix_loras(pipe.unet, mix.subject, files, weights)


def mix_loras(
    unet: nn.Module, method: Method, files: Sequence[Path], weights: Sequence[float]
) -> None:
    import peft

    configs = [peft.LoraConfig(**method.options) for _ in files]
    tuner: Any = peft.LoraModel(unet, configs[0], "part0")
    for k, config in enumerate(configs[1:], 1):
        tuner.peft_config[f"part{k}"] = config
        tuner.inject_adapter(unet, f"part{k}")
    for k, path in enumerate(files):
        peft.set_peft_model_state_dict(unet, load_file(path), adapter_name=f"part{k}")
    names = [f"part{k}" for k in range(len(files))]
    tuner.add_weighted_adapter(names, list(weights), "mixed", combination_type="cat")
    tuner.set_adapter("mixed")
