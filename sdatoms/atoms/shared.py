r"""Shared atoms: one small map of the inputs, trained once for every layer that reads them.

A filter is a whole row of a weight at one kernel position, `p` numbers over the input channels. One
dictionary of r atoms `D (r, p)` and one encoder `E (p, r)` serve all layers with inputs of that
width, each through its own filters:

    ΔX = X (E D),   X (n, p) the rows of the layer's own weight,

so the layers' coefficients `X E` differ and nothing is stored for a layer. Read from the
activations, the layers see `x + E D x` in place of x, and no gradient of a weight is needed. The
encoder starts at zero, the atoms at random: at the start the layers *are* the base's, to the bit.
On the projections of cross-attention that read the prompt, that is one change of what all of them
read in its words: 2·r·p numbers for the whole denoiser.

With coefficients of each layer's own, `C (n, r)` for its n rows, the same atoms may be put together
differently in every layer, and beyond what its filters span:

    ΔX = C D,

r numbers a row, C at zero at the start. Read from the activations: `y + C D x`.

References: Chen, Miao, Qiu, https://arxiv.org/abs/2403.00269, equation 2 (filters as a dictionary);
Renduchintala et al., "Tied-LoRA", https://arxiv.org/abs/2311.09578, shares LoRA's factors between
layers of one shape; the form that goes through each layer's own filters is ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdatoms.atoms.decompose import View
from sdatoms.atoms.products import keep_layout

__all__ = [
    "OWN",
    "SHARED",
    "apply_shared",
    "compare_shared",
    "draw_atoms",
    "run_own",
    "run_shared",
    "shape_coefficients",
]

SHARED = ("shared_encoder", "shared_atoms")
"""Names of the trained tensors E `(p, r)` and D `(r, p)`."""
OWN = ("coefficients", "shared_atoms")
"""Those where every layer has coefficients of its own: C `(n, r)` and D `(r, p)`."""


def draw_atoms(count: int, width: int, seed: int) -> Tensor:
    """Atoms to start from, `(count, width)`, float32 on the CPU: uniform within ±1/√p, as LoRA's
    first factor, so that a rate means here what it means there."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, width, generator=generator, dtype=torch.float32)
    return (2 * drawn - 1) / width**0.5


def apply_shared(part: Tensor, view: View, encoder: Tensor, atoms: Tensor) -> Tensor:
    """`ΔW` in float32, for all output channels of a weight or some of them.

    Args:
        part: `(channels, i, *kernel)` of the weight's output channels.
        view: of kind `channel` with blocks of 1×i, of `part` itself.
    """
    encoder, atoms = (t.to(part.device, torch.float32) for t in (encoder, atoms))
    return view.fold((view.rows(part.float()) @ encoder) @ atoms)


def run_shared(
    x: Tensor, encoder: Tensor, atoms: Tensor, run: Callable[[Tensor], Tensor], groups: int
) -> Tensor:
    """The layer with `W + ΔW`, from its own forward pass `run` and its inputs: `run(x + E D x)`.

    Args:
        x: `(…, i)`, channels last, or `(B, g·i, …)` of a convolution.
        groups: g of a convolution, 0 with channels last.
    """
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            changed = change_inputs(x, encoder, atoms, groups)
        return run(changed)
    return run(change_inputs(x, encoder, atoms, groups))


def run_own(
    x: Tensor,
    coefficients: Tensor,
    atoms: Tensor,
    run: Callable[[Tensor], Tensor],
    branch: Callable[[Tensor, Tensor], Tensor],
    view: View,
    groups: int,
) -> Tensor:
    """The layer with `W + C D`, from its own forward pass `run` and its inputs: `run(x) + C D x`.

    Args:
        x: as in `run_shared`.
        branch: the layer's operation without a bias, on `(…, r)` or `(B, g·r, …)` with a weight.
        view: of the layer's weight.
        groups: as in `run_shared`.
    """
    y, atoms = run(x), atoms.to(x)
    if groups:
        parts = x.reshape(len(x), groups, atoms.shape[1], x.shape[2:].numel())
        seen = (atoms @ parts).reshape(len(x), groups * len(atoms), *x.shape[2:])
        return keep_layout(y + branch(seen, shape_coefficients(coefficients, view).to(x)).to(y), y)
    return y + branch(torch.nn.functional.linear(x, atoms), coefficients.to(x)).to(y)


def shape_coefficients(coefficients: Tensor, view: View) -> Tensor:
    """C `(n, r)` as the weight of a layer from r channels a group, `(g·o, r, *kernel)`."""
    r = coefficients.shape[1]
    shape = (view.shape[0], r, *view.shape[2:])
    return View("channel", shape, view.groups, (1, r)).fold(coefficients)


def change_inputs(x: Tensor, encoder: Tensor, atoms: Tensor, groups: int) -> Tensor:
    """`x + E D x` over the channels, in the dtype of x and laid out as x is."""
    encoder, atoms = encoder.to(x), atoms.to(x)
    if groups:
        parts = x.reshape(len(x), groups, len(encoder), x.shape[2:].numel())
        return keep_layout((parts + encoder @ (atoms @ parts)).reshape(x.shape), x)
    return keep_layout(x + (x @ atoms.mT) @ encoder.mT, x)


def compare_shared(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """The inner product `⟨E_1 D_1, E_2 D_2⟩` of two maps, formed from their thin factors: with
    white filters `⟨ΔW_1, ΔW_2⟩ = ‖W‖² ⟨T_1, T_2⟩ / p`. Of C and D it is `⟨ΔX_1, ΔX_2⟩` itself."""
    (a, b), (c, d) = ([tensor.double() for tensor in pair] for pair in (first, second))
    return float(((a.mT @ c) * (b @ d.mT)).sum())
