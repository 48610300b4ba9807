r"""Optimizers, learning rates and running averages by name, for atoms of several kinds.

Rates are relative weight changes a step (the encoder's scale sees to it), so that one rate fits
every layer; spatial and block atoms and the text encoders may have their own.

Running averages of the atoms are `a ← d a + (1 − d) p` after every optimizer step. The decay
warms up, `d = min(ema_decay, (1 + k) / (10 + k))` at step k, so that the start does not linger;
this is diffusers' `EMAModel` without its inverse-gamma option.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.optimization import SchedulerType, get_scheduler
from torch import Tensor, nn

from sdatoms.atoms.keys import read_kind
from sdatoms.errors import AtomError, clip, first_line, is_full_memory
from sdatoms.layers.inject import Injection

__all__ = [
    "DEFAULT_RATES",
    "Averages",
    "choose_rate",
    "group_parameters",
    "make_optimizer",
    "make_schedule",
]

DEFAULT_RATES = {"atoms": 1e-2, "overcomplete": 3e-3, "coefficients": 3e-3, "full": 3e-3}
"""Learning rate by variant while `--learning_rate` is not given, in relative weight change per
step."""
SMALL = 4096
"""Tensors below this many numbers stay in 32 bits in bitsandbytes' 8-bit optimizers."""
NEEDS = "; training calls step() alone, with dense gradients"


def choose_rate(
    rate: float | None, *, variant: str, optimizer: str, pictures_per_step: int = 1
) -> float:
    """The rate given, or the variant's own; Prodigy finds its own and starts from 1.

    Args:
        pictures_per_step: what the rate is multiplied by, where `--scale_lr` asks for it.
    """
    if rate is None:
        rate = 1.0 if optimizer == "prodigy" else DEFAULT_RATES[variant]
    return rate * pictures_per_step


def group_parameters(
    injections: Mapping[str, Injection],
    rate: float,
    *,
    spatial: float | None = None,
    block: float | None = None,
    text_encoder: float | None = None,
    embeddings: Sequence[nn.Parameter] = (),
    embeddings_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups with names and rates; kinds whose rate is 0 are left out of the training.

    Args:
        rate: of all that have no rate of their own in what follows.
        embeddings: of a new word.
    """
    found: dict[str, list[nn.Parameter]] = {}
    rates: dict[str, float] = {}
    for component, injection in injections.items():
        for name, parameter in injection.named_parameters():
            kind = read_kind(name)
            own = spatial if kind == "spatial" else block
            if component != "unet" and text_encoder is not None:
                own = text_encoder
            label = f"{component}.{kind}"
            rates[label] = rate if own is None else own
            found.setdefault(label, []).append(parameter)
    if embeddings:
        found["tokens"] = list(embeddings)
        rates["tokens"] = rate if embeddings_rate is None else embeddings_rate
    return [
        {"params": parameters, "lr": rates[label], "name": label}
        for label, parameters in found.items()
        if rates[label] > 0
    ]


def make_optimizer(
    groups: list[dict[str, Any]],
    rate: float,
    *,
    name: str = "adamw",
    arguments: Sequence[str] = (),
    eight_bit: bool = False,
    adam: Mapping[str, Any] | None = None,
    prodigy: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> torch.optim.Optimizer:
    """The optimizer of a name: adamw, prodigy, adafactor, or the import path of a class.

    Args:
        arguments: words such as momentum=0.9, which win over all others.
        eight_bit: AdamW with its state in 8 bits.
        adam: `betas`, `weight_decay` and `eps`, for AdamW and Prodigy.
        prodigy: Prodigy's further arguments.

    Raises:
        AtomError: its package is missing, it is no optimizer, it refuses its arguments, or it
            cannot take a plain step or be kept in checkpoints.
    """
    extra, adam = parse_arguments(arguments), dict(adam or {})
    if eight_bit:
        cls, settings = find_class("bitsandbytes.optim.AdamW8bit", "--use_8bit_adam"), adam
        sizes = [p.numel() for group in groups for p in group["params"]]
        covered = sum(size for size in sizes if size >= SMALL)
        log(
            f"8-bit AdamW keeps its state of {covered} of {sum(sizes)} numbers in 8 bits; tensors "
            f"under {SMALL} numbers stay in 32"
        )
    elif name == "adamw":
        cls, settings = torch.optim.AdamW, adam
    elif name == "prodigy":
        cls = find_class("prodigyopt.Prodigy", "--optimizer prodigy")
        settings = adam | dict(prodigy or {})
    elif name == "adafactor":
        cls = find_class("transformers.optimization.Adafactor", "--optimizer adafactor")
        settings = {
            "weight_decay": adam.get("weight_decay", 0.0),
            "relative_step": False,
            "scale_parameter": False,
            "warmup_init": False,
        }
    else:
        cls, settings = find_class(name, f"--optimizer {name}"), {}
    settings = {**settings, **extra}
    with explain_optimizer(f"{cls.__name__} does not take these settings"):
        trial = cls(copy_smallest(groups), lr=rate, **settings)
    with explain_optimizer(f"{cls.__name__} cannot take a step with these settings", NEEDS):
        try_steps(trial)
    with explain_optimizer(f"{cls.__name__} does not take these settings"):
        return cls(groups, lr=rate, **settings)


def copy_smallest(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The groups with copies of their smallest tensor of each number of dimensions."""
    found = []
    for group in groups:
        largest_first = sorted(group["params"], key=lambda p: -p.numel())
        smallest = {p.ndim: p for p in largest_first}
        copies = [nn.Parameter(p.detach().clone()) for p in smallest.values()]
        found.append({**group, "params": copies})
    return found


def try_steps(optimizer: torch.optim.Optimizer) -> None:
    """Take two steps and look at the state, as a training would.

    Raises:
        TypeError: the state holds what no checkpoint does; or what the optimizer raises.
    """
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.full_like(parameter, 1e-3)
            optimizer.step()
    check_state(optimizer.state_dict())


def check_state(state: Any) -> None:
    """Refuse what `pack_state` of checkpoints.py does not keep.

    Raises:
        TypeError: names the kind.
    """
    if isinstance(state, dict):
        state = [*state, *state.values()]
    if isinstance(state, list | tuple):
        for entry in state:
            check_state(entry)
    elif not isinstance(state, Tensor | bool | int | float | str | None):
        raise TypeError(f"a training state cannot hold a {type(state).__name__}")


@contextmanager
def explain_optimizer(what: str, fits: str = "") -> Iterator[None]:
    """Say in one sentence what an optimizer raises, which may be of any kind."""
    try:
        yield
    except Exception as error:
        if is_full_memory(error):
            raise
        raise AtomError(f"{what}: {first_line(error)}{fits}") from None


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
        raise AtomError(f"{flag} needs the package {package!r}: {first_line(error)}") from None
    except Exception as error:  # whatever a module does when it is imported
        raise AtomError(f"{flag}: {module!r} cannot be imported: {first_line(error)}") from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise AtomError(f"{flag}: {path} is no torch optimizer")
    return found


def parse_arguments(words: Sequence[str]) -> dict[str, Any]:
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
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            found[name] = text
    return found


def make_schedule(
    optimizer: torch.optim.Optimizer,
    name: str,
    *,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: int = 1,
    power: float = 1.0,
    step_rules: str | None = None,
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of a name, among all of diffusers'.

    Raises:
        AtomError: there is none of that name, its rules are missing, or it cannot follow them.
    """
    known = [kind.value for kind in SchedulerType]
    if name not in known:
        raise AtomError(f"--lr_scheduler is {name!r}; it takes {' | '.join(known)}")
    if (name == "piecewise_constant") != (step_rules is not None):
        raise AtomError(
            "--lr_scheduler piecewise_constant and --lr_step_rules, such as 1:100,0.1:200,0.01, "
            "need each other"
        )
    try:
        return get_scheduler(
            name,
            optimizer,
            step_rules=step_rules,
            num_warmup_steps=num_warmup_steps,
            num_training_steps=num_training_steps,
            num_cycles=num_cycles,
            power=power,
        )
    except ValueError as error:
        said = f" by --lr_step_rules {clip(step_rules)!r}" if step_rules is not None else ""
        raise AtomError(f"--lr_scheduler {name} cannot go{said}: {first_line(error)}") from None


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
