r"""Modules whose `forward(weight)` is a weight's delta: frozen encoders and trained atoms.

Every delta is a small map applied to the weight's own filters: `ΔX = X T`.

- `AtomDelta`: `T = E ΔD`, one map a layer: variant `atoms` in the spatial view, `coefficients` in a
  block view.
- `OvercompleteDelta`: every absolute input channel c has its own atoms,
  `ΔD_c[a] = Σ_j β[c,a,j] D1[a,j]`, so `T_c = E ΔD_c`: variant `overcomplete`.
- `ChannelDelta`: the same with `ΔD_c` stored outright, the form that sums of several `overcomplete`
  adapters take.

Variant `full` is an overcomplete and a block delta side by side. Deltas start at zero and stay in
float32, whatever the weight's dtype.

Reference: Chen, Miao, Qiu, https://arxiv.org/abs/2403.00269, section 3.2 (atoms), 3.3
(overcomplete); the block atoms are its D_c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from sdatoms.decompose import View

__all__ = ["AtomDelta", "ChannelDelta", "Delta", "OvercompleteDelta", "apply_map"]


def apply_map(weight: Tensor, view: View, transform: Tensor) -> Tensor:
    """`ΔW` in float32 for one map `(p, p)`, or one a channel `(g·i, p, p)` in the spatial view."""
    w = weight.float()
    if transform.dim() == 2:
        return view.fold(view.rows(w) @ transform)
    x = rearrange(w.reshape(w.shape[0], w.shape[1], -1), "(g o) i p -> (g i) o p", g=view.groups)
    return rearrange(x @ transform, "(g i) o p -> (g o) i p", g=view.groups).reshape(view.shape)


class Delta(nn.Module):
    """A view, its encoder `(p, m)` and trained tensors; `transform()` is the map they stand for."""

    encoder: Tensor

    def __init__(self, view: View, encoder: Tensor) -> None:
        super().__init__()
        self.view = view
        self.register_buffer("encoder", encoder.to(torch.float32))

    @property
    def num_atoms(self) -> int:
        return self.encoder.shape[1]

    def transform(self) -> Tensor:
        """`T (p, p)` or `(g·i, p, p)` in the dtype of the trained tensors."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """`ΔW`, float32, in the shape of `weight`; no autocast reaches this sum."""
        with torch.autocast(weight.device.type, enabled=False):
            return apply_map(weight, self.view, self.transform())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow a model to another device, never to another dtype: atoms are always float32."""
        keep = lambda t: fn(t) if t.dtype != torch.float32 else move_only(t, fn)
        return super()._apply(keep, recurse)

    def extra_repr(self) -> str:
        trained = sum(p.numel() for p in self.parameters())
        bo, bi = self.view.block
        block = "" if self.view.kind == "spatial" else f" {bo}x{bi}"
        return (
            f"{self.view.kind}{block}, atoms={self.num_atoms}, width={self.view.width}, "
            f"parameters={trained}"
        )


def move_only(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def make_zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros in float32, whatever the default dtype, on the device of `like`."""
    return torch.zeros(shape, dtype=torch.float32, device=like.device)


class AtomDelta(Delta):
    """`T = E ΔD` with trained `atoms` = ΔD `(m, p)`."""

    def __init__(self, view: View, encoder: Tensor) -> None:
        super().__init__(view, encoder)
        self.atoms = nn.Parameter(make_zeros(encoder, self.num_atoms, view.width))

    def transform(self) -> Tensor:
        return self.encoder.to(self.atoms) @ self.atoms


class OvercompleteDelta(Delta):
    """`T_c = E ΔD_c`, `ΔD_c[a] = Σ_j inner_coefficients[c,a,j] inner_atoms[a,j]`.

    `inner_coefficients` β `(g·i, m, m1)` start as N(0, 1)/√m1, so that an RMS of r in `inner_atoms`
    D1 `(m, m1, p)`, which start at zero, is a relative weight change of about r.
    """

    def __init__(self, view: View, encoder: Tensor, num_inner_atoms: int, seed: int = 0) -> None:
        super().__init__(view, encoder)
        m, m1 = self.num_atoms, num_inner_atoms
        # Drawn on the CPU, so that a seed means the same numbers on every device.
        generator = torch.Generator().manual_seed(seed)
        beta = torch.randn(view.channels, m, m1, generator=generator, dtype=torch.float32)
        self.inner_coefficients = nn.Parameter((beta / m1**0.5).to(encoder.device))
        self.inner_atoms = nn.Parameter(make_zeros(encoder, m, m1, view.width))

    def transform(self) -> Tensor:
        delta = torch.einsum("caj,ajp->cap", self.inner_coefficients, self.inner_atoms)
        return self.encoder.to(delta) @ delta


class ChannelDelta(Delta):
    """`T_c = E ΔD_c` with `channel_atoms` = ΔD_c `(g·i, m, p)`."""

    def __init__(self, view: View, encoder: Tensor) -> None:
        super().__init__(view, encoder)
        shape = (view.channels, self.num_atoms, view.width)
        self.channel_atoms = nn.Parameter(make_zeros(encoder, *shape))

    def transform(self) -> Tensor:
        return self.encoder.to(self.channel_atoms) @ self.channel_atoms
