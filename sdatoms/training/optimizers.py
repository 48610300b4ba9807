r"""Optimizers and learning rates by name, for atoms of several kinds.

Rates are relative weight changes a step (the encoder's scale sees to it), so that one rate fits
every layer; spatial and block atoms and the text encoders may have their own.

Running averages of the atoms, `a ← d a + (1 − d) p` after every optimizer step.

The decay warms up, `d = min(ema_decay, (1 + k) / (10 + k))` at step k, so that the start does not
linger; this is diffusers' `EMAModel` without its inverse-gamma option.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from diffusers.optimization import SchedulerType, get_scheduler
from torch import Tensor, nn

from sdatoms.atoms.keys import read_kind
from sdatoms.errors import AtomError
from sdatoms.layers.inject import Injection
from sdatoms.training.config import DEFAULT_RATES, TrainConfig

__all__ = [
    "Averages",
    "choose_rate",
    "group_parameters",
    "make_optimizer",
    "make_schedule",
]

SMALL = 4096
"""Tensors below this many numbers stay in 32 bits in bitsandbytes' 8-bit optimizers."""


def choose_rate(config: TrainConfig) -> float:
    """`--learning_rate`, or the variant's own; Prodigy finds its own and starts from 1."""
    rate = config.learning_rate
    if rate is None:
        rate = 1.0 if config.optimizer == "prodigy" else DEFAULT_RATES[config.atom_variant]
    if not config.scale_lr:
        return rate
    batches = config.gradient_accumulation_steps * PartialState().num_processes
    return rate * config.train_batch_size * batches


def group_parameters(
    injections: Mapping[str, Injection],
    config: TrainConfig,
    embeddings: Sequence[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Parameter groups with names and rates; kinds whose rate is 0 are left out of the training.

    Args:
        embeddings: of a new word, which take `--token_lr`.
    """
    rate = choose_rate(config)
    found: dict[str, list[nn.Parameter]] = {}
    rates: dict[str, float] = {}
    for component, injection in injections.items():
        for name, parameter in injection.named_parameters():
            kind = read_kind(name)
            own = config.spatial_learning_rate if kind == "spatial" else config.block_learning_rate
            if component != "unet" and config.text_encoder_lr is not None:
                own = config.text_encoder_lr
            label = f"{component}.{kind}"
            rates[label] = rate if own is None else own
            found.setdefault(label, []).append(parameter)
    if embeddings:
        own = rate if config.optimizer == "prodigy" else config.token_lr  # it takes one for all
        found["tokens"], rates["tokens"] = list(embeddings), own
    return [
        {"params": parameters, "lr": rates[label], "name": label}
        for label, parameters in found.items()
        if rates[label] > 0
    ]


def make_optimizer(
    groups: list[dict[str, Any]], config: TrainConfig, log: Callable[[str], None]
) -> torch.optim.Optimizer:
    """The optimizer that `--optimizer` and `--use_8bit_adam` name.

    Raises:
        AtomError: its package is missing, it is no optimizer, or it refuses its arguments.
    """
    extra = parse_arguments(config.optimizer_args)
    adam = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if config.use_8bit_adam:
        cls, settings = find_class("bitsandbytes.optim.AdamW8bit", "--use_8bit_adam"), adam
        sizes = [p.numel() for group in groups for p in group["params"]]
        covered = sum(size for size in sizes if size >= SMALL)
        log(
            f"8-bit AdamW keeps its state of {covered} of {sum(sizes)} numbers in 8 bits; tensors "
            f"under {SMALL} numbers stay in 32"
        )
    elif config.optimizer == "adamw":
        cls, settings = torch.optim.AdamW, adam
    elif config.optimizer == "prodigy":
        cls = find_class("prodigyopt.Prodigy", "--optimizer prodigy")
        settings = adam | {
            "decouple": config.prodigy_decouple,
            "use_bias_correction": config.prodigy_use_bias_correction,
            "safeguard_warmup": config.prodigy_safeguard_warmup,
            "beta3": config.prodigy_beta3,
        }
    elif config.optimizer == "adafactor":
        cls = find_class("transformers.optimization.Adafactor", "--optimizer adafactor")
        settings = {
            "weight_decay": config.adam_weight_decay,
            "relative_step": False,
            "scale_parameter": False,
            "warmup_init": False,
        }
    else:
        cls, settings = find_class(config.optimizer, f"--optimizer {config.optimizer}"), {}
    try:
        return cls(groups, lr=choose_rate(config), **{**settings, **extra})
    except (TypeError, ValueError) as error:
        raise AtomError(f"{cls.__name__} does not take these settings: {error}") from None


def find_class(path: str, flag: str) -> Any:
    """The class at an import path such as `torch.optim.SGD`.

    Raises:
        AtomError: nothing is there, or it is no torch optimizer.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise AtomError(
            f"{flag} is unknown; it takes adamw, prodigy, adafactor, or a class such as "
            "torch.optim.SGD"
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        package = module.split(".")[0]
        raise AtomError(f"{flag} needs the package {package!r}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise AtomError(f"{flag}: {path} is no torch optimizer")
    return found


def parse_arguments(words: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` words as keyword arguments; values are Python literals, else text.

    Raises:
        AtomError: a word has no `=`.
    """
    found = {}
    for word in words:
        name, mark, text = word.partition("=")
        if not mark or not name.isidentifier():
            raise AtomError(f"--optimizer_args has {word!r}; it takes words such as momentum=0.9")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule that `--lr_scheduler` names, among all of diffusers'.

    Raises:
        AtomError: there is none of that name.
    """
    known = [kind.value for kind in SchedulerType]
    if config.lr_scheduler not in known:
        raise AtomError(f"--lr_scheduler is {config.lr_scheduler!r}; it takes {' | '.join(known)}")
    if (config.lr_scheduler == "piecewise_constant") != (config.lr_step_rules is not None):
        raise AtomError(
            "--lr_scheduler piecewise_constant and --lr_step_rules, such as 1:100,0.1:200,0.01, "
            "need each other"
        )
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        step_rules=config.lr_step_rules,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )


class Averages:
    """Averages of named parameters, float32, on the parameters' device."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.parameters = dict(parameters)
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters' present values in."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, value in self.values.items():
            value.lerp_(self.parameters[name], 1 - decay)

    def state(self) -> dict[str, Tensor | int]:
        return {**self.values, "steps": self.steps}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor | int]) -> None:
        """The inverse of `state`."""
        self.steps = int(state["steps"])
        for name, value in self.values.items():
            kept = state[name]
            assert isinstance(kept, Tensor)
            value.copy_(kept)
