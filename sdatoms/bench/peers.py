"""Filter atoms and their peers in one form: PEFT's methods, biases, singular-value shifts, a word,
and full fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from sdatoms.adapters.words import TrainedTokens, add_word, check_word, start_embeddings
from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.subspaces import Form, SubspaceChange
from sdatoms.files.writer import FileFacts, pack_atoms
from sdatoms.layers.inject import Injection, inject

__all__ = [
    "Peer",
    "hold_atoms",
    "join_word",
    "match_paths",
    "tune_all",
    "tune_atoms",
    "tune_biases",
    "tune_lora",
    "tune_peft",
    "tune_singular_values",
    "tune_subspaces",
    "tune_word",
]


@dataclass(frozen=True)
class Peer:
    """What a method trains in a model, and the file it leaves."""

    parameters: list[nn.Parameter]
    save: Callable[[], bytes]
    """The bytes of the saved file, as trained so far."""
    layers: int = 0
    """How many weights or biases are changed."""
    injections: Mapping[str, Injection] = field(default_factory=dict)
    """Component → its atoms."""
    rewrite: Callable[[str], str] = str
    """A prompt as it has to be said to this method."""
    words: Sequence[nn.Parameter] = ()
    """Those of the parameters that are vectors of a new word beside atoms."""


def tune_atoms(model: nn.Module, config: AtomConfig, base_model: str) -> Peer:
    return hold_atoms({"unet": inject(model, config)}, base_model)


def hold_atoms(injections: Mapping[str, Injection], base_model: str) -> Peer:
    def save() -> bytes:
        file = pack_atoms(dict(injections), FileFacts("sks", base_model))
        return save_tensors(file.tensors, file.metadata)

    parameters = [p for injection in injections.values() for p in injection.parameters()]
    layers = sum(len(injection.weights) for injection in injections.values())
    return Peer(parameters, save, layers, injections)


def tune_lora(model: nn.Module, targets: str | Sequence[str], rank: int = 4) -> Peer:
    """LoRA of scale 1.

    Args:
        targets: a pattern of module paths, or the paths themselves.
    """
    from peft import LoraConfig

    pattern = targets if isinstance(targets, str) else match_paths(targets)
    return tune_peft(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern))


def match_paths(paths: Sequence[str]) -> str:
    """The pattern that fits these module paths and no other."""
    return f"^({'|'.join(map(re.escape, paths))})$"


def tune_peft(model: nn.Module, config: Any) -> Peer:
    # Imported here: it is slow to import, and atoms and full fine-tuning do without it.
    from peft import get_peft_model_state_dict, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.requires_grad_(False)
    inject_adapter_in_model(config, model)

    def save() -> bytes:
        state = get_peft_model_state_dict(model)
        return save_tensors({k: v.contiguous() for k, v in state.items()})

    layers = sum(isinstance(module, BaseTunerLayer) for module in model.modules())
    return Peer([p for p in model.parameters() if p.requires_grad], save, layers)


def tune_all(model: nn.Module) -> Peer:
    model.requires_grad_(True)
    parameters = list(model.parameters())
    return Peer(parameters, lambda: save_tensors(dict(model.state_dict())), len(parameters))


def tune_biases(model: nn.Module) -> Peer:
    """BitFit: the biases alone, those of normalization among them (Zaken et al., ACL 2022,
    https://arxiv.org/abs/2106.10199)."""
    model.requires_grad_(False)
    biases = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] == "bias"}
    for bias in biases.values():
        bias.requires_grad_()
    return hold_named(biases)


class SingularShift(nn.Module):
    """`W + U diag(δ) Vᵀ`, with `W = U diag(σ) Vᵀ` read as a matrix of output channels."""

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        left, values, right = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.shift = nn.Parameter(torch.zeros_like(values))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.left * self.shift @ self.right).view(weight.shape)


def tune_singular_values(model: nn.Module, targets: str) -> Peer:
    """A shift of every singular value, as SVDiff trains it (Han et al., ICCV 2023,
    https://arxiv.org/abs/2303.11305), without its clipping at zero.

    Args:
        targets: a pattern of module paths.
    """
    return tune_changes(model, targets, SingularShift)


def tune_subspaces(model: nn.Module, targets: str, form: Form, size: int) -> Peer:
    """The trials of `subspaces.py`."""
    return tune_changes(model, targets, lambda weight: SubspaceChange(weight, form, size))


def tune_changes(model: nn.Module, targets: str, make: Callable[[Tensor], nn.Module]) -> Peer:
    """A change on the weight of every layer whose path fits; everything else is frozen.

    Args:
        make: a weight → its change, a parametrization with one trained tensor.
    """
    model.requires_grad_(False)
    trained = {}
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear) and re.fullmatch(targets, path):
            change = make(module.weight)
            (trained[path],) = change.parameters()
            register_parametrization(module, "weight", change)
    return hold_named(trained)


def tune_word(pipe: Any, known: str, word: str) -> Peer:
    """Textual inversion (Gal et al., 2022, https://arxiv.org/abs/2208.01618): the vectors of a new
    word, which start as those of the word `known` and stand in its place in every prompt."""
    pipe.unet.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    count = len(tokenizer(known, add_special_tokens=False).input_ids)
    start = {"text_encoder": start_embeddings(encoder, tokenizer, count, known)}
    check_word(pipe, word, start)
    add_word(pipe, "training", word, start)
    rows = TrainedTokens(encoder, tokenizer, word, count).embeddings
    rewrite = lambda prompt: re.sub(rf"\b{re.escape(known)}(?=s?\b)", word, prompt)
    save = lambda: save_tensors({word: rows.detach().contiguous()})
    return Peer([rows], save, 1, rewrite=rewrite)


def join_word(atoms: Peer, word: Peer) -> Peer:
    """Atoms and the vectors of a new word, trained together."""
    return replace(
        atoms,
        parameters=[*atoms.parameters, *word.parameters],
        save=lambda: atoms.save() + word.save(),
        rewrite=word.rewrite,
        words=word.parameters,
    )


def hold_named(named: Mapping[str, nn.Parameter]) -> Peer:
    save = lambda: save_tensors({n: p.detach().contiguous() for n, p in named.items()})
    return Peer(list(named.values()), save, len(named))
