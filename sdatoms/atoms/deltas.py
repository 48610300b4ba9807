r"""Modules whose `forward(weight)` is a weight's delta: frozen encoders and trained atoms.

Every delta is `ΔX = A ΔD`. With the linear decomposition `A = X E`, so it is a small map applied to
the weight's own filters, `ΔX = X T`, `T = E ΔD`. With the sparse one A are stored codes, a buffer
that no state dict holds. The subclasses differ in what `ΔD` is made of:

- `AtomDelta`: one ΔD a layer: variant `atoms` in the spatial view, `coefficients` in a block view.
- `OvercompleteDelta`: every absolute input channel c has its own atoms,
  `ΔD_c[a] = Σ_j β[c,a,j] D1[a,j]`: variant `overcomplete`.
- `ChannelDelta`: the same with `ΔD_c` stored outright, the form that sums of several `overcomplete`
  adapters take.
- `block_deltas.py` has those of block views without a frozen encoder.

Variant `full` is an overcomplete and a block delta side by side. Deltas start at zero and stay in
float32, whatever the weight's dtype.

Reference: Chen, Miao, Qiu, https://arxiv.org/abs/2403.00269, section 3.2 (atoms), 3.3
(overcomplete); the block atoms are its D_c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from sdatoms.atoms.codes import CodeBook, Codes, encode_weight
from sdatoms.atoms.decompose import View

__all__ = [
    "AtomDelta",
    "ChannelDelta",
    "Delta",
    "MapDelta",
    "OvercompleteDelta",
    "apply_map",
    "combine_inner",
    "form_once",
    "make_zeros",
    "map_rows",
    "split_rows",
]


def combine_inner(coefficients: Tensor, atoms: Tensor) -> Tensor:
    """`ΔD_c[a] = Σ_j β[c,a,j] D1[a,j]`: β `(g·i, m, m1)` and D1 `(m, m1, p)` give `(g·i, m, p)`."""
    return torch.einsum("caj,ajp->cap", coefficients, atoms)


def apply_map(weight: Tensor, view: View, transform: Tensor) -> Tensor:
    """`ΔW` in float32 for one map `(p, p)`, or one a channel `(g·i, p, p)` in the spatial view."""
    return map_rows(view.rows(weight.float()), view, transform)


def map_rows(rows: Tensor, view: View, transform: Tensor) -> Tensor:
    """`(n, k)` rows of filters or codes through `(k, p)`, or `(g·i, k, p)`: a weight's shape."""
    changed = split_rows(rows, view, transform) @ transform
    if transform.dim() == 2:
        return view.fold(changed)
    return rearrange(changed, "(g i) o p -> (g o) i p", g=view.groups).reshape(view.shape)


def split_rows(rows: Tensor, view: View, transform: Tensor) -> Tensor:
    """Rows `(n, k)` as they meet a map: all together, or by input channel, `(g·i, n / (g·i), k)`,
    where each channel has its own."""
    if transform.dim() == 2:
        return rows
    return rearrange(rows, "(g o i) k -> (g i) o k", g=view.groups, i=view.shape[1])


class Delta(nn.Module):
    """A view, its encoder `(p, m)` or codes, and trained tensors, which `delta_atoms()` combines.

    Args:
        basis: the encoder of the linear decomposition, or the codes of the sparse one.
    """

    encoder: Tensor
    """E `(p, m)`; with the linear decomposition only."""
    base_atoms: Tensor
    """D `(m, p)`; with the sparse decomposition only, like `codes`."""
    codes: Tensor
    """A `(n, m)`."""
    held: Tensor | None = None
    """T as `form_once` holds it, on which gradients gather."""
    form = ""
    """What reports call the form of a block view that is no plain map."""
    keeper: Delta | None = None
    """The delta of another layer that keeps the atoms of this one."""
    owner: str = ""
    """Path of the layer that keeps shared atoms."""

    def __init__(self, view: View, basis: Tensor | Codes) -> None:
        super().__init__()
        self.view = view
        self.sparse = isinstance(basis, Codes)
        if isinstance(basis, Codes):
            self.penalty, self.solver = basis.book.penalty, basis.book.solver
            self.register_buffer("base_atoms", pack(basis.book.atoms))
            self.register_buffer("codes", basis.values, persistent=False)
        else:
            self.register_buffer("encoder", pack(basis))

    @property
    def num_atoms(self) -> int:
        return len(self.base_atoms) if self.sparse else self.encoder.shape[1]

    @property
    def book(self) -> CodeBook | None:
        """What decides the codes; None with the linear decomposition."""
        return CodeBook(self.base_atoms, self.penalty, self.solver) if self.sparse else None

    def encode(self, weight: Tensor, base_atoms: Tensor) -> Tensor:
        """The codes of `weight` against other base atoms, at this delta's λ."""
        atoms = base_atoms.to(self.base_atoms)
        return encode_weight(weight, self.view, CodeBook(atoms, self.penalty, self.solver))

    @property
    def basis(self) -> Tensor:
        """The encoder, or the base atoms."""
        return self.base_atoms if self.sparse else self.encoder

    def delta_atoms(self) -> Tensor:
        """`ΔD (m, p)` or `(g·i, m, p)` in the dtype of the trained tensors."""
        raise NotImplementedError

    def transform(self) -> Tensor:
        """`T = E ΔD`, `(p, p)` or `(g·i, p, p)`; with the linear decomposition only."""
        if self.held is not None:
            return self.held
        delta = self.delta_atoms()
        return self.encoder.to(delta) @ delta

    def forward(self, weight: Tensor) -> Tensor:
        """`ΔW`, float32, in the shape of `weight`; no autocast reaches this sum."""
        with torch.autocast(weight.device.type, enabled=False):
            if self.sparse:
                return map_rows(self.codes, self.view, self.delta_atoms())
            return apply_map(weight, self.view, self.transform())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow a model to another device, never to another dtype: atoms are always float32."""
        keep = lambda t: fn(t) if t.dtype != torch.float32 else move_only(t, fn)
        return super()._apply(keep, recurse)

    def extra_repr(self) -> str:
        trained = sum(p.numel() for p in self.parameters())
        bo, bi = self.view.block
        block = "" if self.view.kind == "spatial" else f" {bo}x{bi}"
        sparse = "sparse " if self.sparse else ""
        return (
            f"{self.view.kind}{block}, {sparse}atoms={self.num_atoms}, width={self.view.width}, "
            f"parameters={trained}"
        )


@contextmanager
def form_once(deltas: Iterable[Delta]) -> Iterator[None]:
    """Form every map T once for all passes of a `with` block, those that gradient checkpointing
    repeats included.

    Gradients gather on the maps and reach the atoms when the block ends; where it ends by an error
    they reach none.
    """
    formed: list[tuple[Delta, Tensor]] = []
    try:
        for delta in deltas:
            trains = any(p.requires_grad for p in delta.parameters())
            if trains and not delta.sparse and not delta.form:
                transform = delta.transform()
                delta.held = transform.detach().requires_grad_()
                formed.append((delta, transform))
        yield
        pairs = [(t, d.held.grad) for d, t in formed if d.held is not None]
        pairs = [(t, grad) for t, grad in pairs if grad is not None]
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [grad for _, grad in pairs])
    finally:
        for delta, _ in formed:
            delta.held = None


def pack(tensor: Tensor) -> Tensor:
    """In float32 and in order of its indices, as safetensors takes the state dict of a model."""
    return tensor.to(torch.float32).contiguous()


def move_only(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def make_zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros in float32, whatever the default dtype, on the device of `like`."""
    return torch.zeros(shape, dtype=torch.float32, device=like.device)


class AtomDelta(Delta):
    """Trained `atoms` = ΔD `(m, p)`."""

    def __init__(self, view: View, basis: Tensor | Codes) -> None:
        super().__init__(view, basis)
        self.atoms = nn.Parameter(make_zeros(self.basis, self.num_atoms, view.width))

    def delta_atoms(self) -> Tensor:
        return self.atoms


class OvercompleteDelta(Delta):
    """`ΔD_c[a] = Σ_j inner_coefficients[c,a,j] inner_atoms[a,j]`.

    `inner_coefficients` β `(g·i, m, m1)` start as N(0, 1)/√m1, so that an RMS of r in `inner_atoms`
    D1 `(m, m1, p)`, which start at zero, is a relative weight change of about r.
    """

    def __init__(
        self, view: View, basis: Tensor | Codes, num_inner_atoms: int, seed: int = 0
    ) -> None:
        super().__init__(view, basis)
        m, m1 = self.num_atoms, num_inner_atoms
        # Drawn on the CPU, so that a seed means the same numbers on every device.
        generator = torch.Generator().manual_seed(seed)
        beta = torch.randn(view.channels, m, m1, generator=generator, dtype=torch.float32)
        self.inner_coefficients = nn.Parameter((beta / m1**0.5).to(self.basis.device))
        self.inner_atoms = nn.Parameter(make_zeros(self.basis, m, m1, view.width))

    def delta_atoms(self) -> Tensor:
        return combine_inner(self.inner_coefficients, self.inner_atoms)


class ChannelDelta(Delta):
    """`channel_atoms` = ΔD_c `(g·i, m, p)`."""

    def __init__(self, view: View, basis: Tensor | Codes) -> None:
        super().__init__(view, basis)
        shape = (view.channels, self.num_atoms, view.width)
        self.channel_atoms = nn.Parameter(make_zeros(self.basis, *shape))

    def delta_atoms(self) -> Tensor:
        return self.channel_atoms


class MapDelta(Delta):
    """A fixed map `T (p, p)`, which no gradient reaches and no state dict holds."""

    def __init__(self, view: View, transform: Tensor) -> None:
        super().__init__(view, transform)
        self._non_persistent_buffers_set.add("encoder")

    def transform(self) -> Tensor:
        return self.encoder
