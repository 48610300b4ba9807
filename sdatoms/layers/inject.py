"""Put filter atoms into any torch model and take them out again.

`inject` replaces convolutions and linear layers by atom layers that share their parameters, freezes
everything but the atoms, and returns an `Injection`. `Injection.eject` puts the very same base
modules back: the model is what it was before, same objects, same bits, same `requires_grad`, mode
and hooks.

`without_atoms` switches the deltas off for a while, so that the model's own prediction can be a
target of the training without a second model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.atoms.block_deltas import OwnDelta, RowDelta, SharedDelta, fix_atoms
from sdatoms.atoms.codes import unit_atoms
from sdatoms.atoms.config import AtomConfig
from sdatoms.atoms.deltas import Delta
from sdatoms.atoms.keys import join_key
from sdatoms.errors import AtomError
from sdatoms.layers.adopt import adopt
from sdatoms.layers.atom_layers import AtomLayer, TunedWeight, replace_modules
from sdatoms.layers.attention import switch_off_fused
from sdatoms.layers.budget import build_deltas
from sdatoms.layers.fused import check_read, forbid_joining
from sdatoms.layers.targets import (
    Target,
    choose_targets,
    count_holders,
    find_readers,
    refuse_target,
)
from sdatoms.layers.weights import BAKED, unwrap

__all__ = [
    "Injection",
    "LayerReport",
    "carries_atoms",
    "inject",
    "without_atoms",
]


@dataclass(frozen=True)
class LayerReport:
    """One row of `Injection.report()`."""

    path: str
    shape: tuple[int, ...]
    view: str
    """`spatial`, `channel 4x4`, `joint 2x2`, `product 16x16`, `shared 1x768`, several joined by
    ` + `; empty if left out."""
    atoms: int
    """Atoms over all views of the layer."""
    parameters: int
    """Trained numbers; those that layers share count with the layer that owns them."""
    error: float
    """Relative reconstruction error `‖W − A D‖/‖W‖` of the worst view; 0 for complete atoms of the
    linear decomposition."""
    note: str
    """What the rank or the budget rule cut, or why the layer was left out."""


class Injection:
    """Atoms living in one model; made by `inject`."""

    def __init__(self, model: nn.Module, config: AtomConfig) -> None:
        self.model = model
        self.config = config
        self.layers: dict[str, AtomLayer] = {}
        """Module path → the atom layer that stands there."""
        self.bases: dict[str, nn.Module] = {}
        """Module path → the base layer it stands in for."""
        self.weights: dict[str, TunedWeight] = {}
        """Path of a weight, as files name it → its base and deltas. A layer of one weight goes by
        its module path; nn.MultiheadAttention has `<path>.q_proj` and the like."""
        self._reports: list[LayerReport] = []
        modules = list(model.modules())
        self._modes = [(module, module.training) for module in modules]
        self._grads = [(p, p.requires_grad) for p in model.parameters()]
        self._switch_on_fused: Callable[[], None] = lambda: None
        self._allow_joining: Callable[[], None] = lambda: None
        self._hooks = [(table, dict(table)) for module in modules for table in find_hooks(module)]

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every encoder or base atom and trained tensor as `<module path>.<view>.<tensor>`; tensors
        that layers share once, with the layer that owns them."""
        for path, weight in self.weights.items():
            for view, delta in weight.views.items():
                for name, tensor in delta.state_dict(keep_vars=True).items():
                    yield f"{path}.{join_key(view, name)}", tensor

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained tensors by name."""
        for name, tensor in self.named_tensors():
            if isinstance(tensor, nn.Parameter):
                yield name, tensor

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained tensors, for an optimizer.

        Raises:
            AtomError: somebody cast them: half precision swallows the steps of training.
        """
        self._check_dtypes()
        return (parameter for _, parameter in self.named_parameters())

    @property
    def num_parameters(self) -> int:
        """Trained numbers over all layers; encoders and heads do not count."""
        return sum(parameter.numel() for _, parameter in self.named_parameters())

    def report(self) -> list[LayerReport]:
        """One row per targeted layer, those left out included."""
        return list(self._reports)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all encoders (or base atoms) and trained tensors, by `<module path>.<view>.
        <tensor>`; codes are not among them."""
        return {name: tensor.detach().clone() for name, tensor in self.named_tensors()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy tensors in. All keys and shapes must fit, else nothing is changed.

        Where sparse atoms differ from those here, codes are found anew at this injection's λ.

        Raises:
            AtomError: names the first key that is missing, unknown, of another shape, or not
                finite.
        """
        own = dict(self.named_tensors())
        for name in dict.fromkeys([*own, *state]):
            if name not in state:
                problem = "is missing from the given tensors"
            elif name not in own:
                problem = "fits no injected layer"
            elif state[name].shape != own[name].shape:
                came, fits = tuple(state[name].shape), tuple(own[name].shape)
                problem = f"has shape {came} where {fits} fits"
            elif not torch.isfinite(state[name]).all():
                problem = "holds NaN or infinite numbers"
            elif name.endswith("base_atoms") and not unit_atoms(state[name]):
                problem = "holds atoms that are not of unit norm"
            else:
                continue
            raise AtomError(f"the tensor {name!r} {problem}; nothing was loaded")
        recoded = []
        for path, weight in self.weights.items():
            for view, delta in weight.views.items():
                given = state.get(f"{path}.{join_key(view, 'base_atoms')}")
                if given is not None and not torch.equal(
                    delta.base_atoms, given.to(delta.base_atoms)
                ):
                    recoded.append((delta, delta.encode(weight.base.weight, given)))
        for name, tensor in own.items():
            tensor.copy_(state[name])
        for delta, codes in recoded:
            delta.codes = codes

    def find_shared(self) -> list[RowDelta]:
        """The deltas that keep atoms for other layers."""
        deltas = [delta for weight in self.weights.values() for delta in weight.views.values()]
        return [delta for delta in deltas if isinstance(delta, RowDelta) and delta.keeper is None]

    def count_shared_atoms(self) -> int:
        """How many atoms layers of one width share, at most; 0 where none do."""
        return max((delta.num_atoms for delta in self.find_shared()), default=0)

    def fix_shared_atoms(self, atoms: Tensor) -> None:
        """Set the atoms that layers share, and train them no more: what is made of them alone.
        They stay in the state dict and in files.

        Args:
            atoms: `(r, p)`, as many and as long as those here.

        Raises:
            AtomError: no layers share atoms, or others; nothing is changed.
        """
        keepers = self.find_shared()
        if not keepers:
            raise AtomError("no layers share atoms here; block_form 'shared' has them")
        for delta in keepers:
            came, fits = tuple(atoms.shape), tuple(delta.shared_atoms.shape)
            if came != fits:
                raise AtomError(
                    f"the shared atoms of {delta.owner!r} are {came}, where {fits} fits"
                )
        for delta in keepers:
            fix_atoms(delta, atoms)

    def train_atoms(self) -> None:
        """Let gradients reach the atoms and nothing else, whatever others froze or thawed.

        Raises:
            AtomError: somebody cast the atoms; nothing is changed.
        """
        self._check_dtypes()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def _check_dtypes(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dtype != torch.float32:
                raise AtomError(
                    f"the trained tensor {name!r} was cast to {parameter.dtype}; atoms train in "
                    "float32 whatever the base is stored in, so leave them out of the cast"
                )

    def eject(self) -> None:
        """Put the base modules back wherever their atom layers stand now, everything as it was.

        A second call does nothing.
        """
        if not self.layers:
            return
        back = {layer: self.bases[path] for path, layer in self.layers.items()}
        for layer, base in back.items():
            # What another library has wrapped inside it since stays so (PEFT: out_proj).
            base._modules.update((k, v) for k, v in layer._modules.items() if k != "deltas")
        replace_modules(self.model, back)
        self._switch_on_fused()
        self._allow_joining()
        for table, kept in self._hooks:
            table.clear()
            table.update(kept)
        for module, mode in self._modes:
            module.training = mode
        for parameter, flag in self._grads:
            parameter.requires_grad_(flag)
        self.layers, self.bases, self.weights = {}, {}, {}


def inject(model: nn.Module, config: AtomConfig | None = None) -> Injection:
    """Add trainable atoms to `model` in place; it computes the same, to the bit, until they train.

    Raises:
        AtomError: the model is no module, carries atoms or baked adapters, lies on the meta device,
            or no layer fits. Nothing is changed.
    """
    if not isinstance(model, nn.Module):
        what = type(model).__name__
        raise AtomError(f"a {what} came where a torch module fits; a pipeline's is pipe.unet")
    if not isinstance(config, AtomConfig | None):
        raise AtomError(f"a {type(config).__name__} came as config where an AtomConfig fits")
    config, model = config or AtomConfig(), unwrap(model)
    kind = type(model).__name__
    if carries_atoms(model):
        raise AtomError(
            f"this {kind} already carries filter atoms; eject them before injecting again"
        )
    if any(module.__dict__.get(BAKED) for module in model.modules()):
        raise AtomError(
            f"this {kind} has baked adapters; call AdapterSet.clear() before injecting atoms"
        )
    holders, readers = count_holders(model), find_readers(model)
    targets = list(choose_targets(model, config))
    check_read(model, [target.layer_path for target in targets], "before injecting")
    injection = Injection(model, config)
    adopted: dict[nn.Module, AtomLayer] = {}
    shared: dict[int, SharedDelta | OwnDelta] = {}
    for target in targets:
        deltas, note, error = {}, refuse_target(target, holders, readers), 0.0
        if not note:
            deltas, note, error = build_deltas(
                target.path, target.weight, config, target.named, shared
            )
        injection._reports.append(describe(target, deltas, note, error))
        if deltas:
            if target.module not in adopted:
                adopted[target.module] = adopt(target.module)
                injection.layers[target.layer_path] = adopted[target.module]
                injection.bases[target.layer_path] = target.module
            table = adopted[target.module].carry(target.name, deltas)
            injection.weights[target.path] = TunedWeight(target.weight, table)
    if not adopted:
        asked = ", ".join(config.target_modules or ()) or "the default targets"
        reasons = [row.note for row in injection._reports] or [
            "linear layers and 1x1 convolutions take the variants 'coefficients' and 'full', or "
            "have to be named in target_modules"
        ]
        raise AtomError(
            f"no layer of this {kind} takes atoms of variant {config.variant!r} under {asked}; "
            f"{reasons[0]}"
        )
    replace_modules(model, adopted)
    injection._switch_on_fused = switch_off_fused(model)
    injection._allow_joining = forbid_joining(model, injection.layers)
    injection.train_atoms()
    return injection


def carries_atoms(model: nn.Module) -> bool:
    """Whether atoms that train are injected anywhere in the model."""
    return any(
        isinstance(module, AtomLayer) and next(module.deltas.parameters(), None) is not None
        for module in model.modules()
    )


def find_hooks(module: nn.Module) -> Iterator[dict[Any, Any]]:
    """The module's tables of hooks."""
    for name, table in vars(module).items():
        if name.endswith("_hooks") and isinstance(table, dict):
            yield table


def describe(target: Target, deltas: dict[str, Delta], note: str, error: float) -> LayerReport:
    names = []
    for delta in deltas.values():
        (bo, bi), kind = delta.view.block, delta.form or delta.view.kind
        names.append(kind if kind == "spatial" else f"{kind} {bo}x{bi}")
    return LayerReport(
        path=target.path,
        shape=target.weight.shape,
        view=" + ".join(names),
        atoms=sum(delta.num_atoms for delta in deltas.values()),
        parameters=sum(p.numel() for delta in deltas.values() for p in delta.parameters()),
        error=error,
        note=note,
    )


@contextmanager
def without_atoms(injection: Injection) -> Iterator[None]:
    """Switch an injection's deltas off; what is computed inside is the base's, to the bit."""
    kept = [(layer, layer.deltas) for layer in injection.layers.values()]
    try:
        for layer, _ in kept:
            layer._modules["deltas"] = nn.ModuleDict()
        yield
    finally:
        for layer, deltas in kept:
            layer._modules["deltas"] = deltas
