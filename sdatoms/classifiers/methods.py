"""Ways to fine-tune a classifier: the four variants of filter atoms and what they stand beside.

The head is trained by every method and counted apart. `bias` trains biases, those of
normalization included; `lora` puts PEFT's LoRA into linear layers and 1×1 convolutions, `lora_conv`
into every ungrouped convolution too; `linear_probe` trains the head alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from sdatoms.atoms.config import AtomConfig, Variant
from sdatoms.atoms.keys import read_kind
from sdatoms.classifiers.model import Classifier, list_norms
from sdatoms.errors import AtomError
from sdatoms.files.writer import FileFacts, pack_atoms
from sdatoms.layers.inject import Injection, inject
from sdatoms.layers.weights import list_layers
from sdatoms.models.families import FAMILY_EXCLUDES

__all__ = [
    "BLOCKS",
    "METHODS",
    "PEERS",
    "VARIANTS",
    "Tuned",
    "attach_method",
    "shift_rate",
    "suggest_rates",
]

VARIANTS = get_args(Variant)
PEERS = ("linear_probe", "bias", "lora", "lora_conv", "full_finetune")
METHODS = (*VARIANTS, *PEERS)
RATES = {
    "lora": (1e-3, 3e-3, 1e-2),
    "lora_conv": (1e-3, 3e-3, 1e-2),
    "full_finetune": (3e-4, 1e-3, 3e-3),
}
"""Method → learning rates around the best ones by `scripts/bench_transfer.py`, where batch
normalization is held still; (3e-3, 1e-2, 3e-2) for all others."""
NORM_RATIOS = {**dict.fromkeys(VARIANTS, 0.1), "lora": 0.3, "lora_conv": 0.3}
"""Method → what gains and shifts beside it learn at, as a multiple of its rate: about 3e-3 at the
rates that suit it with tuned statistics."""
TURNOVER = 5.0
"""By how many of their own lengths a run's averages of batch normalization move on, at least."""
BLOCKS = {"block_size": 8, "block_view": "channel", "block_share": 0.045}
"""Block atoms of `coefficients` that suit classifiers by `scripts/bench_transfer.py`: large blocks
whose atoms all kernel positions share, few of them, and as large a share of every layer."""


def suggest_rates(method: str, statistics: bool) -> tuple[float, ...]:
    """Three learning rates that suit a method, the middle one first choice; half a decade higher
    where batch normalization goes on averaging, which keeps them stable."""
    rates = RATES.get(method, (3e-3, 1e-2, 3e-2))
    return tuple(shift_rate(rate, 1) for rate in rates) if statistics else rates


def shift_rate(rate: float, steps: int) -> float:
    """A rate so many half decades on, in one digit: 1e-2, 3e-2, 1e-1."""
    return float(f"{10 ** ((round(2 * math.log10(rate)) + steps) / 2):.0e}")


@dataclass
class Tuned:
    """A classifier with what is trained in it, by kind and name."""

    classifier: Classifier
    method: str
    groups: dict[str, dict[str, nn.Parameter]]
    """Kind (`spatial`, `block`, `norm`, `trained`) → name → parameter; the head is apart."""
    injection: Injection | None = None
    statistics: bool = False
    """Whether batch normalization goes on averaging, in place of keeping what it knows."""
    extras: list[str] = field(default_factory=list)
    """State-dict names of what is saved with the head."""
    momenta: dict[nn.modules.batchnorm._NormBase, float] = field(default_factory=dict)
    """Batch normalization that goes on averaging → the model's own share of a batch in it."""

    @property
    def head(self) -> dict[str, nn.Parameter]:
        return dict(self.classifier.head.named_parameters())

    @property
    def ratios(self) -> dict[str, float]:
        """Kind → multiple of the learning rate that suits it."""
        return dict.fromkeys(self.groups, 1.0) | {"norm": NORM_RATIOS.get(self.method, 1.0)}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Trained tensors, the head's aside."""
        return [p for group in self.groups.values() for p in group.values()]

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters)

    @property
    def num_head_parameters(self) -> int:
        return sum(p.numel() for p in self.head.values())

    def moving(self) -> Iterator[Tensor]:
        """Every tensor that training changes."""
        yield from self.parameters
        yield from self.head.values()
        if self.statistics:
            yield from list_statistics(self.classifier.model).values()

    def copy(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.moving()]

    @torch.no_grad()
    def restore(self, tensors: Sequence[Tensor]) -> None:
        for own, tensor in zip(self.moving(), tensors, strict=True):
            own.copy_(tensor)

    def set_training(self, steps: int | None = None) -> None:
        """Training mode, with batch normalization held still unless asked otherwise.

        Args:
            steps: of the run. Where averages are too slow to reach by its end what batches are
                normalized by, they take more of every batch: of what they were `e^-5` is left.
        """
        self.classifier.model.train()
        if steps:
            least = 1 - math.exp(-TURNOVER / steps)
            for module, own in self.momenta.items():
                module.momentum = max(own, least)
        if not self.statistics:
            for module in list_norms(self.classifier.model).values():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.eval()

    def pack(self, seed: int) -> tuple[str, bytes]:
        """Name and bytes of the file that holds what was trained beside the head."""
        model = self.classifier.model
        if self.injection is not None:
            file = pack_atoms(
                {"model": self.injection},
                FileFacts(base_model=self.classifier.source, seed=seed),
            )
            return "atoms.safetensors", save_tensors(file.tensors, file.metadata)
        if self.method.startswith("lora"):
            from peft import get_peft_model_state_dict

            tensors = get_peft_model_state_dict(model)
        else:
            named = {**self.groups.get("trained", {})}
            tensors = {name: p.detach() for name, p in named.items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        return f"{self.method}.safetensors", save_tensors(tensors)


def attach_method(
    classifier: Classifier,
    method: str,
    config: AtomConfig | None = None,
    *,
    rank: int = 4,
    train_norms: bool = False,
    statistics: bool = False,
) -> Tuned:
    """Prepare a classifier in place: only the method's tensors and the head have gradients.

    Args:
        method: one of METHODS.
        config: of the atoms; its variant is the method.
        rank: of LoRA, whose scale is 1.
        train_norms: gains and shifts of normalization too; counted with the method's parameters.
        statistics: whether batch normalization goes on averaging.

    Raises:
        AtomError: the method is unknown, or finds nothing to train in this model.
    """
    model = classifier.model
    head = {id(p) for p in classifier.head.parameters()}
    tuned = Tuned(classifier, method, {}, statistics=statistics)
    model.requires_grad_(False)
    if method in VARIANTS:
        tuned.injection = inject(model, leave_head(classifier, method, config or AtomConfig()))
        for name, parameter in tuned.injection.named_parameters():
            tuned.groups.setdefault(read_kind(name), {})[name] = parameter
    elif method in ("lora", "lora_conv"):
        tuned.groups["trained"] = add_lora(classifier, method == "lora_conv", rank)
    elif method in ("bias", "full_finetune"):
        tuned.groups["trained"] = {
            name: parameter
            for name, parameter in model.named_parameters()
            if id(parameter) not in head
            and (method == "full_finetune" or name.rpartition(".")[2] == "bias")
        }
    elif method != "linear_probe":
        raise AtomError(f"there is no method {method!r:.60}; known are {', '.join(METHODS)}")
    if train_norms:
        held = {id(p) for p in tuned.parameters}
        norms = {
            f"{path}.{name}": parameter
            for path, module in list_norms(model).items()
            for name, parameter in module.named_parameters(recurse=False)
            if id(parameter) not in held
        }
        tuned.groups["norm"] = norms
        tuned.extras += norms
    if statistics:
        tuned.extras += list_statistics(model)
        tuned.momenta = {
            module: module.momentum
            for module in list_norms(model).values()
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum
        }
    for tensor in tuned.moving():
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(True)
    if method != "linear_probe" and not tuned.parameters:
        raise AtomError(f"{method!r} finds nothing to train in this {type(model).__name__}")
    return tuned


def leave_head(classifier: Classifier, method: str, config: AtomConfig) -> AtomConfig:
    """The config with the method's variant and the head left out, since it is trained whole."""
    excludes = config.exclude_modules
    if excludes is None and config.target_modules is None:
        excludes = FAMILY_EXCLUDES.get(type(classifier.model).__name__)
    return replace(
        config, variant=method, exclude_modules=(*(excludes or ()), classifier.head_path)
    )


def list_statistics(model: nn.Module) -> dict[str, Tensor]:
    """State-dict names and buffers of batch normalization."""
    return {
        f"{path}.{name}": buffer
        for path, module in list_norms(model).items()
        for name, buffer in module.named_buffers(recurse=False)
    }


def add_lora(classifier: Classifier, convolutions: bool, rank: int) -> dict[str, nn.Parameter]:
    # Imported here: it is slow to import and only LoRA needs it.
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise AtomError(f"--rank is {rank}; it takes at least 1")
    model = classifier.model
    paths = []
    for path, layer in list_layers(model):
        taps = max(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
        plain = isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.Conv2d) and layer.groups == 1 and (convolutions or taps == 1)
        )
        if plain and path != classifier.head_path:
            paths.append(path)
    if not paths:
        raise AtomError(
            f"this {type(model).__name__} has no linear layer or 1x1 convolution for 'lora'; "
            "'lora_conv' takes every convolution"
        )
    # Scale 1, whatever the rank: learning rates carry over between ranks.
    pattern = "|".join(map(re.escape, paths))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern), model)
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}
