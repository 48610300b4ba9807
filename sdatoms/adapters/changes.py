"""What a file would change in a model, layer by layer, with nothing loaded into it.

Deltas are formed from the file's maps and the pristine weights alone: no weight, hook or table of
the model is written to, and adapters that are loaded in it neither count nor are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sdatoms.adapters.bake import sum_maps
from sdatoms.adapters.plan import plan_file
from sdatoms.adapters.state import Adapter, read_pristine
from sdatoms.atoms.keys import is_frozen
from sdatoms.atoms.lora import LoraMap
from sdatoms.atoms.maps import LayerMap
from sdatoms.files.atom_file import AtomFile
from sdatoms.files.lora_file import LoraFile
from sdatoms.models.families import BLOCKS

__all__ = [
    "LayerChange",
    "form_delta",
    "measure_changes",
    "walk_deltas",
]


@dataclass(frozen=True)
class LayerChange:
    """How much of one layer a file rewrites at strength 1."""

    component: str
    path: str
    block: str
    """`down`, `mid` or `up` in a UNet, else the first part of the path."""
    change: float
    """‖ΔW‖_F / ‖W‖_F."""
    parameters: int
    """Trained numbers of the layer."""


def form_delta(root: nn.Module, path: str, maps: Sequence[LayerMap | LoraMap]) -> Tensor:
    """Unit-strength `ΔW` of one layer in float32, on the device of its weight."""
    return sum_maps(read_pristine(root, path), [(1.0, m) for m in maps])


def walk_deltas(
    plans: Mapping[str, tuple[nn.Module, Adapter]],
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield component, module path and `form_delta` of every layer, in the file's order.

    Args:
        plans: of `plan_file`, which checks that every layer fits.
    """
    for component, (module, adapter) in plans.items():
        for path, maps in adapter.maps.items():
            yield component, path, form_delta(module, path, maps)


def measure_changes(file: AtomFile | LoraFile, target: Any) -> list[LayerChange]:
    """‖ΔW‖/‖W‖ of every layer of the file, on the base weights of `target`, in the file's order.

    Args:
        file: an atom file, or a LoRA.
        target: a pipeline, or one module; adapters baked into it do not count. It may be another
            base than the file was trained on.

    Raises:
        AtomError: as in `load_atoms`, such as a layer of the file that is not there.
    """
    plans, rows = plan_file(file, target), []
    for component, path, delta in walk_deltas(plans):
        module, adapter = plans[component]
        norm = float(read_pristine(module, path).float().norm())
        change = float(delta.norm()) / max(norm, 1e-30)
        held = (m.held if isinstance(m, LayerMap) else m.tensors for m in adapter.maps[path])
        tensors = [item for own in held for item in own.items()]
        trained = sum(tensor.numel() for name, tensor in tensors if not is_frozen(name))
        rows.append(LayerChange(component, path, name_block(path), change, trained))
    return rows


def name_block(path: str) -> str:
    first = path.split(".")[0]
    return BLOCKS.get(first, first)
