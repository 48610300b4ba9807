"""Put filter atoms into any torch model and take them out again.

`inject` replaces convolutions and linear layers by atom layers that share their parameters, freezes everything
but the atoms, and returns an `Injection`. `Injection.eject` puts the very same base modules back: the model is
what it was before, same objects, same bits, same `requires_grad` and mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdatoms.decompose import View, fit_encoder, measure_gram, relative_error, split_side
from sdatoms.deltas import AtomDelta, Delta, OvercompleteDelta
from sdatoms.errors import AtomError
from sdatoms.layers import AtomLayer, adopt

__all__ = ["AtomConfig", "Injection", "LayerReport", "inject"]

VARIANTS = ("atoms", "overcomplete", "coefficients", "full")
BUDGET = 4
"""A delta may hold at most one `BUDGET`-th of its layer's weights, unless settings are explicit."""

FAMILY_EXCLUDES = {
    "UNet2DConditionModel": (
        "time_embedding.*",
        "*.time_emb_proj",
        "add_embedding.*",
        "class_embedding.*",
    ),
    "UNet2DModel": ("time_embedding.*", "*.time_emb_proj"),
}
"""Layers a model family leaves out while `target_modules` and `exclude_modules` are None."""


class Default(int):
    """A default number: the budget rule may lower it in a layer, while a number given by the caller stands."""


@dataclass(frozen=True)
class AtomConfig:
    """What is trained in each layer. See the README's table of variants."""

    variant: Literal["atoms", "overcomplete", "coefficients", "full"] = "overcomplete"
    """Which tensors are trained; the four settings of the paper, in its order."""
    decomposition: Literal["linear"] = "linear"
    """How coefficients are found: `linear` is exact, deterministic and stores none."""
    num_atoms: int | None = None
    """m, atoms per spatial filter; None takes all the weight has (its rank, at most h·w)."""
    num_inner_atoms: int = Default(3)
    """m1, inner atoms behind each atom in `overcomplete` and `full`."""
    block_atoms: int | None = None
    """Atoms of the block view in `coefficients` and `full`; None takes all the weight has."""
    block_size: int = Default(4)
    """b, the side of a channel block; the largest divisor not above it is taken per side."""
    block_view: Literal["channel", "joint"] = "joint"
    """Whether a convolution's block atoms are shared over kernel positions (`channel`) or hold them (`joint`)."""
    target_modules: tuple[str, ...] | None = None
    """fnmatch patterns on module paths; None takes the model family's default."""
    exclude_modules: tuple[str, ...] | None = None
    """fnmatch patterns on module paths to leave out; None takes the model family's default."""
    seed: int = 0
    """Seeds the inner coefficients."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("variant", VARIANTS),
            ("decomposition", ("linear",)),
            ("block_view", ("channel", "joint")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise AtomError(f"AtomConfig.{name} is {value!r}; it takes {' | '.join(choices)}")
        for name in ("num_atoms", "num_inner_atoms", "block_atoms", "block_size"):
            value = getattr(self, name)
            optional = name in ("num_atoms", "block_atoms")
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise AtomError(
                    f"AtomConfig.{name} is {value!r}; it takes a whole number of at least 1"
                )
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str):
                value = (value,)
            if value is not None:
                if not all(isinstance(v, str) for v in value):
                    raise AtomError(
                        f"AtomConfig.{name} is {value!r}; it takes patterns on module paths"
                    )
                object.__setattr__(self, name, tuple(value))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AtomConfig:
        """The inverse of `to_dict`.

        Raises:
            AtomError: a key is unknown (named, with the nearest known one) or a value is out of range.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(str(key), known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
                raise AtomError(f"AtomConfig has no setting {key!r}{hint}")
        return cls(**values)


@dataclass(frozen=True)
class LayerReport:
    """One row of `Injection.report()`."""

    path: str
    shape: tuple[int, ...]
    view: str
    """`spatial`, `channel 4x4`, `joint 2x2`, several joined by ` + `, or empty where the layer was left out."""
    atoms: int
    """Atoms over all views of the layer."""
    parameters: int
    error: float
    """Relative reconstruction error `‖W − A D‖/‖W‖` of the worst view; 0 when the atoms are complete."""
    note: str
    """What the rank or the budget rule cut, or why the layer was left out."""


class Injection:
    """Atoms living in one model; made by `inject`."""

    def __init__(self, model: nn.Module, config: AtomConfig) -> None:
        self.model = model
        self.config = config
        self.layers: dict[str, AtomLayer] = {}
        self.bases: dict[str, nn.Module] = {}
        self._reports: list[LayerReport] = []
        self._modes = {module: module.training for module in model.modules()}
        self._grads = {parameter: parameter.requires_grad for parameter in model.parameters()}
        self._hooks: dict[str, dict[str, set]] = {}

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every encoder and trained tensor as `<module path>.<view>.<tensor>`."""
        for path, layer in self.layers.items():
            for view, delta in layer.deltas.items():
                for name, tensor in delta.state_dict(keep_vars=True).items():
                    yield f"{path}.{view}.{name}", tensor

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained tensors by name."""
        for name, tensor in self.named_tensors():
            if isinstance(tensor, nn.Parameter):
                yield name, tensor

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained tensors, for an optimizer."""
        return (parameter for _, parameter in self.named_parameters())

    @property
    def num_parameters(self) -> int:
        """Trained numbers over all layers; encoders and heads do not count."""
        return sum(parameter.numel() for parameter in self.parameters())

    def report(self) -> list[LayerReport]:
        """One row per targeted layer, those left out included."""
        return list(self._reports)

    def state_dict(self) -> dict[str, Tensor]:
        """Detached copies of every encoder and trained tensor, keyed `<module path>.<view>.<tensor>`."""
        return {name: tensor.detach().clone() for name, tensor in self.named_tensors()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy tensors in. All keys and shapes must fit, else nothing is changed.

        Raises:
            AtomError: names the first key that is missing, unknown, of another shape, or not finite.
        """
        own = dict(self.named_tensors())
        for name in [*own, *state]:
            if name not in state or name not in own:
                where = (
                    "is missing from the given tensors"
                    if name not in state
                    else "fits no injected layer"
                )
                raise AtomError(f"the tensor {name!r} {where}; nothing was loaded")
            if state[name].shape != own[name].shape:
                came, fits = tuple(state[name].shape), tuple(own[name].shape)
                raise AtomError(
                    f"the tensor {name!r} has shape {came} where {fits} fits; nothing was loaded"
                )
            if not torch.isfinite(state[name]).all():
                raise AtomError(
                    f"the tensor {name!r} holds NaN or infinite numbers; nothing was loaded"
                )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def train_atoms(self) -> None:
        """Let gradients reach the atoms and nothing else, also after another library froze or thawed parameters."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def eject(self) -> None:
        """Put the base modules back wherever their atom layers stand now, as they were. May be called again."""
        back = {layer: self.bases[path] for path, layer in self.layers.items()}
        for parent in list(self.model.modules()):
            for name, child in parent._modules.items():
                if child in back:
                    parent._modules[name] = back[child]
        for path, base in self.bases.items():
            for attribute, kept in self._hooks[path].items():
                hooks = getattr(base, attribute)
                for key in [key for key in hooks if key not in kept]:
                    del hooks[key]
        for module, mode in self._modes.items():
            module.training = mode
        for parameter, flag in self._grads.items():
            parameter.requires_grad_(flag)
        self.layers, self.bases = {}, {}
        self.model.__dict__.pop("_sdatoms_injection", None)


def inject(model: nn.Module, config: AtomConfig | None = None) -> Injection:
    """Add trainable filter atoms to `model` in place; the model computes the same, to the bit, until they train.

    Raises:
        AtomError: the model already carries atoms, lies on the meta device, or no layer fits. Nothing is changed.
    """
    config = config or AtomConfig()
    if any(isinstance(m, AtomLayer) and m.deltas for m in model.modules()):
        raise AtomError(
            f"this {type(model).__name__} already carries filter atoms; eject them before injecting again"
        )
    if model.__dict__.get("_sdatoms_baked"):
        raise AtomError(
            f"this {type(model).__name__} has baked adapters; call AdapterSet.clear() before injecting atoms"
        )
    places = find_places(model)
    injection = Injection(model, config)
    chosen: dict[str, tuple[nn.Module, AtomLayer]] = {}
    for path, module, named in choose_targets(model, config):
        note = refuse_layer(module, places)
        deltas, cuts, error = ({}, note, 0.0) if note else build_deltas(path, module, config, named)
        injection._reports.append(describe(path, module, deltas, cuts, error))
        if deltas:
            layer = adopt(module)
            layer.deltas.update(deltas)
            chosen[path] = (module, layer)
    if not chosen:
        asked = ", ".join(config.target_modules) if config.target_modules else "the default targets"
        raise AtomError(
            f"no layer of this {type(model).__name__} takes atoms of variant {config.variant!r} under {asked}"
        )
    for path, (module, layer) in chosen.items():
        for parent, name in places[module]:
            parent._modules[name] = layer
        injection.layers[path], injection.bases[path] = layer, module
        injection._hooks[path] = {
            a: set(getattr(module, a)) for a in vars(module) if a.endswith("_hooks")
        }
    injection.train_atoms()
    model.__dict__["_sdatoms_injection"] = True
    return injection


def find_places(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Every module → the parents that hold it and the names they hold it under."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(child, []).append((parent, name))
    return places


def choose_targets(model: nn.Module, config: AtomConfig) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield `(path, module, named)` for the layers the config asks for; `named` when a pattern chose it.

    Raises:
        AtomError: a pattern of `target_modules` matches no convolution or linear layer.
    """
    excludes = config.exclude_modules
    if excludes is None:
        excludes = (
            ()
            if config.target_modules is not None
            else FAMILY_EXCLUDES.get(type(model).__name__, ())
        )
    layers = [
        (p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and p
    ]
    for pattern in config.target_modules or ():
        if not any(fnmatchcase(path, pattern) for path, _ in layers):
            raise AtomError(
                f"target_modules pattern {pattern!r} matches no convolution or linear layer of this {type(model).__name__}"
            )
    for path, module in layers:
        if any(fnmatchcase(path, pattern) for pattern in excludes):
            continue
        if config.target_modules is not None:
            if any(fnmatchcase(path, pattern) for pattern in config.target_modules):
                yield path, module, True
        elif is_spatial(module) or config.variant in ("coefficients", "full"):
            yield path, module, False


def is_spatial(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1


def refuse_layer(module: nn.Module, places: dict[nn.Module, list[tuple[nn.Module, str]]]) -> str:
    """Why this layer cannot carry atoms, or an empty string."""
    weight = module.weight
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"left out: {type(module).__name__} is a layer of another library"
    if weight.is_meta:
        raise AtomError(
            "the model lies on the meta device and has no weights yet; load its weights before injecting"
        )
    if not weight.is_floating_point():
        return f"left out: its weight is stored as {weight.dtype}"
    if sum(p is weight for m in places for p in m._parameters.values()) > 1:
        return "left out: its weight is tied to another layer"
    if any(type(parent) is nn.MultiheadAttention for parent, _ in places[module]):
        return "left out: nn.MultiheadAttention reads this weight without calling the layer"
    return ""


def build_deltas(
    path: str, module: nn.Module, config: AtomConfig, named: bool
) -> tuple[dict[str, Delta], str, float]:
    """The deltas one layer gets under `config`, what was cut, and the worst relative reconstruction error."""
    weight: Tensor = module.weight
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    shape = tuple(weight.shape)
    depthwise = groups > 1 and groups == shape[0] and shape[1] == 1
    spatial = is_spatial(module)
    wants_block = config.variant in ("coefficients", "full") or (named and not spatial)
    wants_spatial = spatial and config.variant != "coefficients"
    overcomplete = config.variant in ("overcomplete", "full")
    notes = []
    if depthwise:
        wants_spatial, wants_block = True, False
        if isinstance(config.num_inner_atoms, Default) or config.variant == "coefficients":
            if config.variant != "atoms":
                notes.append("depthwise: spatial atoms only")
            overcomplete = False
    deltas: dict[str, Delta] = {}
    worst = 0.0
    limit = weight.numel() // BUDGET
    if wants_spatial:
        view = View("spatial", shape, groups)
        asked = config.num_atoms or min(view.width, view.height)
        channels = groups * shape[1]
        count = lambda m, m1: (
            (channels * m + m * view.width) * m1 if overcomplete else m * view.width
        )
        fitted = fit_budget(
            count, asked, config.num_inner_atoms if overcomplete else 1, limit, config
        )
        if fitted is None:
            notes.append("spatial left out: no atoms fit a quarter of its weights")
        elif (encoder := encode(weight, view, fitted[0], notes, asked)) is not None:
            error, E = encoder
            worst = max(worst, error)
            if overcomplete:
                seed = (
                    config.seed * 1_000_003
                    + sum(ord(c) * 31**i for i, c in enumerate(path)) % 2**31
                )
                deltas["spatial"] = OvercompleteDelta(view, E, fitted[1], seed)
                if fitted[1] < config.num_inner_atoms:
                    notes.append(f"budget: inner atoms {int(config.num_inner_atoms)} → {fitted[1]}")
            else:
                deltas["spatial"] = AtomDelta(view, E)
    if wants_block:
        view = fit_block(shape, groups, config, limit, notes)
        asked = config.block_atoms or min(view.width, view.height)
        keep = asked if config.block_atoms else min(asked, limit // view.width)
        if keep < 1:
            notes.append("block left out: no atoms fit a quarter of its weights")
        elif (encoder := encode(weight, view, keep, notes, asked)) is not None:
            error, E = encoder
            worst = max(worst, error)
            deltas["block"] = AtomDelta(view, E)
    return deltas, "; ".join(dict.fromkeys(notes)), worst


def fit_budget(count, m: int, m1: int, limit: int, config: AtomConfig) -> tuple[int, int] | None:  # noqa: ANN001
    """Lower m1, then m, until `count(m, m1)` is at most `limit`; explicit settings stand."""
    if not isinstance(config.num_inner_atoms, Default) and m1 > 1:
        return (m, m1)
    while m1 > 1 and count(m, m1) > limit:
        m1 -= 1
    while config.num_atoms is None and m > 1 and count(m, m1) > limit:
        m -= 1
    return (m, m1) if config.num_atoms is not None or count(m, m1) <= limit else None


def fit_block(
    shape: tuple[int, ...], groups: int, config: AtomConfig, limit: int, notes: list[str]
) -> View:
    """The block view of a weight, its side lowered until a complete set of atoms fits the budget."""
    kind = config.block_view if len(shape) > 2 and torch.Size(shape[2:]).numel() > 1 else "channel"
    for b in range(config.block_size, 0, -1):
        sides = (split_side(shape[0] // groups, b), split_side(shape[1], b))
        view = View(kind, shape, groups, sides)
        atoms = config.block_atoms or min(view.width, view.height)
        if not isinstance(config.block_size, Default) or atoms * view.width <= limit:
            break
    if max(sides) < config.block_size and b < config.block_size:
        notes.append(
            f"budget: block {int(config.block_size)}x{int(config.block_size)} → {sides[0]}x{sides[1]}"
        )
    return view


def encode(
    weight: Tensor, view: View, num_atoms: int, notes: list[str], asked: int
) -> tuple[float, Tensor] | None:
    """`(relative error, encoder)` in the view, or None (noted) where the weight has no filter subspace."""
    gram = measure_gram(weight, view)
    try:
        encoder = fit_encoder(gram, num_atoms)
    except AtomError as error:
        notes.append(f"left out: {error}")
        return None
    if encoder.shape[1] < num_atoms:
        notes.append(f"rank: {view.kind} atoms {num_atoms} → {encoder.shape[1]}")
    elif num_atoms < asked:
        notes.append(f"budget: {view.kind} atoms {asked} → {num_atoms}")
    return relative_error(gram, encoder), encoder.to(weight.device)


def describe(
    path: str, module: nn.Module, deltas: dict[str, Delta], note: str, error: float
) -> LayerReport:
    names = []
    for delta in deltas.values():
        bo, bi = delta.view.block
        names.append(
            delta.view.kind if delta.view.kind == "spatial" else f"{delta.view.kind} {bo}x{bi}"
        )
    return LayerReport(
        path=path,
        shape=tuple(module.weight.shape),
        view=" + ".join(names),
        atoms=sum(delta.num_atoms for delta in deltas.values()),
        parameters=sum(p.numel() for delta in deltas.values() for p in delta.parameters()),
        error=error,
        note=note,
    )
