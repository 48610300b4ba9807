r"""Atom files in other tools' forms, with the error of each stated.

- `diff`: `ΔW` of every layer outright, LyCORIS's full difference; exact, and as large as the tuned
  weights.
- `lora`: the best rank-r approximation of every `ΔW` by its singular values, LoRA for linear layers
  and
  LoCon for convolutions, under diffusers' or kohya's key names. An atom delta has full rank in
  general.

A baked pipeline directory needs no converter: `load_atoms`, then `pipe.save_pretrained`.

Reference: Eckart, Young, "The approximation of one matrix by another of lower rank", Psychometrika
1936.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sdatoms.adapters import choose_modules, find_layer
from sdatoms.atom_file import AtomFile
from sdatoms.bake import sum_maps
from sdatoms.errors import AtomError

__all__ = ["Conversion", "convert_to_diff", "convert_to_lora"]

KOHYA_PREFIXES = {
    "unet": "lora_unet",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "transformer": "lora_unet",
}


@dataclass(frozen=True)
class Conversion:
    """Tensors under another tool's names, and how far they are from the atoms."""

    tensors: dict[str, Tensor]
    errors: dict[str, float]
    """`<component>.<module path>` → ‖ΔW − approximation‖/‖ΔW‖; 0 where exact."""
    total_error: float
    """The same over all layers together."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


def walk_deltas(file: AtomFile, target: Any) -> Iterator[tuple[str, str, Tensor]]:
    """Yield component, module path and unit-strength `ΔW` (float32) of every layer of the file."""
    for component, module in choose_modules(target, file, None).items():
        for path, maps in file.maps(component).items():
            weight = find_layer(module, path).weight.detach()
            yield component, path, sum_maps(weight, [(1.0, m) for m in maps])


def convert_to_diff(
    file: AtomFile, target: Any, *, dtype: torch.dtype = torch.float32
) -> Conversion:
    """LyCORIS's full difference, `<prefix>_<path with _>.diff`: exact in float32."""
    tensors, errors, lost, whole = {}, {}, 0.0, 0.0
    for component, path, delta in walk_deltas(file, target):
        stored = delta.to(dtype).cpu().contiguous()
        tensors[f"{name_kohya(component, path)}.diff"] = stored
        missed = float((stored.float() - delta.cpu()).norm())
        errors[f"{component}.{path}"] = missed / max(float(delta.norm()), 1e-30)
        lost, whole = lost + missed**2, whole + float(delta.norm()) ** 2
    return Conversion(tensors, errors, (lost / max(whole, 1e-30)) ** 0.5)


def convert_to_lora(
    file: AtomFile,
    target: Any,
    rank: int,
    *,
    names: Literal["diffusers", "kohya"] = "diffusers",
    dtype: torch.dtype = torch.float32,
) -> Conversion:
    """The nearest LoRA of rank `rank` (less where a layer is smaller), and its error in every
    layer.

    Convolutions become LoCon pairs: a k×k convolution down to `rank` channels, a 1×1 convolution
    up.

    Raises:
        AtomError: `rank` is below 1, `names` is unknown, or the file does not fit the target.
    """
    if rank < 1:
        raise AtomError(f"rank is {rank}; it takes at least 1")
    if names not in ("diffusers", "kohya"):
        raise AtomError(f"names is {names!r}; it takes diffusers | kohya")
    tensors, errors, lost, whole = {}, {}, 0.0, 0.0
    for component, path, delta in walk_deltas(file, target):
        matrix = delta.flatten(1)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        r = min(rank, len(s))
        root = s[:r].sqrt()
        up, down = u[:, :r] * root, root[:, None] * v[:r]
        if delta.dim() > 2:
            up = up.reshape(*up.shape, *[1] * (delta.dim() - 2))
            down = down.reshape(r, *delta.shape[1:])
        up, down = (t.to(dtype).cpu().contiguous() for t in (up, down))
        if names == "kohya":
            prefix = name_kohya(component, path)
            tensors |= {f"{prefix}.lora_up.weight": up, f"{prefix}.lora_down.weight": down}
            tensors[f"{prefix}.alpha"] = torch.tensor(float(r))
        else:
            tensors |= {
                f"{component}.{path}.lora_A.weight": down,
                f"{component}.{path}.lora_B.weight": up,
            }
        approximation = up.float().flatten(1) @ down.float().flatten(1)
        missed = float((approximation - matrix.cpu()).norm())
        errors[f"{component}.{path}"] = missed / max(float(matrix.norm()), 1e-30)
        lost, whole = lost + missed**2, whole + float(matrix.norm()) ** 2
    return Conversion(tensors, errors, (lost / max(whole, 1e-30)) ** 0.5)


def name_kohya(component: str, path: str) -> str:
    if component not in KOHYA_PREFIXES:
        raise AtomError(f"other tools have no names for the component {component!r}")
    return f"{KOHYA_PREFIXES[component]}_{path.replace('.', '_')}"
