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
    "SHARED",
    "apply_shared",
    "compare_shared",
    "draw_atoms",
    "run_shared",
]

SHARED = ("shared_encoder", "shared_atoms")
"""Names of the trained tensors E `(p, r)` and D `(r, p)`."""


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


def change_inputs(x: Tensor, encoder: Tensor, atoms: Tensor, groups: int) -> Tensor:
    """`x + E D x` over the channels, in the dtype of x and laid out as x is."""
    encoder, atoms = encoder.to(x), atoms.to(x)
    if groups:
        parts = x.reshape(len(x), groups, len(encoder), x.shape[2:].numel())
        return keep_layout((parts + encoder @ (atoms @ parts)).reshape(x.shape), x)
    return keep_layout(x + (x @ atoms.mT) @ encoder.mT, x)


def compare_shared(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """The inner product `⟨E_1 D_1, E_2 D_2⟩` of two maps, formed from their thin factors: with
    white filters `⟨ΔW_1, ΔW_2⟩ = ‖W‖² ⟨T_1, T_2⟩ / p`."""
    (a, b), (c, d) = ([tensor.double() for tensor in pair] for pair in (first, second))
    return float(((a.mT @ c) * (b @ d.mT)).sum())
