"""Atoms on a base held in 16 bits: two ways to add their change, held against float32.

`sum` forms `W + ΔW` in float32 and rounds it once to the weight's dtype; `apart` gives ΔW a
convolution or product of its own beside the base's; `columns` takes the layers' own choice, which
lets small maps meet small inputs; float32 weights under autocast stand beside them. All start from
the same weights, which bfloat16 holds exactly, and from the same atoms, of a relative weight change
`relative`; each takes one pass on the same batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sdatoms.atoms.config import AtomConfig
from sdatoms.diffusion.open import load_base
from sdatoms.layers.atom_layers import AtomConv2d, AtomLinear, OneWeightLayer
from sdatoms.layers.inject import Injection, inject, without_atoms
from sdatoms.training.trainer import choose_attention

__all__ = ["CONFIGS", "measure_config"]

CONFIGS = {
    "overcomplete": AtomConfig("overcomplete"),
    "coefficients, b = 2": AtomConfig("coefficients", block_size=2),
    "product, b = 16": AtomConfig("coefficients", block_form="product", block_size=16),
}
WAYS = ("float32", "float32, autocast", "sum", "apart", "columns")


def measure_config(name: str, relative: float, dtype: str = "bfloat16") -> dict[str, Any]:
    """For every way: cosine of the atoms' gradient to float32's, the relative error of what the
    atoms change in the UNet's output, and processor seconds of the pass."""
    narrow = getattr(torch, dtype)
    base: Any = load_base(device="cpu").unet.train().requires_grad_(False)
    base = base.to(narrow).float()
    models = {"wide": base, "narrow": copy.deepcopy(base).to(narrow)}
    injections = {key: inject(model, CONFIGS[name]) for key, model in models.items()}
    disturb(injections["wide"], relative)
    injections["narrow"].load_state_dict(injections["wide"].state_dict())
    rows: dict[str, Any] = {}
    reference: tuple[Tensor, Tensor] | None = None
    for way in WAYS:
        key = "wide" if way.startswith("float32") else "narrow"
        half = None if way == "float32" else narrow
        with add_by(way):
            gradient, change, seconds = pass_once(injections[key], half)
        reference = reference or (gradient, change)
        rows[way] = {
            "gradient_cosine": round(
                float(torch.cosine_similarity(gradient, reference[0], dim=0)), 5
            ),
            "change_error": round(
                float((change - reference[1]).norm() / reference[1].norm().clamp(min=1e-30)), 4
            ),
            "core_seconds": round(seconds, 3),
        }
    return rows


@torch.no_grad()
def disturb(injection: Injection, relative: float) -> None:
    """Draw the tensors that start at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in injection.parameters():
        if not parameter.any():
            parameter.copy_(relative * torch.randn(parameter.shape, generator=generator))


def pass_once(injection: Injection, half: torch.dtype | None) -> tuple[Tensor, Tensor, float]:
    """Gradient of all atoms, change of the output, and seconds of the second of two passes."""
    unet: Any = injection.model
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    shape = (4, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    latents, noise = draw(*shape), draw(*shape)
    context = draw(4, 77, unet.config.cross_attention_dim)
    timesteps = torch.randint(1000, (4,), generator=generator)
    device = torch.device("cpu")

    def run() -> Tensor:
        mixed = torch.autocast("cpu", half) if half else nullcontext()
        with choose_attention(device), mixed:
            return unet(latents, timesteps, context, return_dict=False)[0].float()

    seconds, y, atoms = 0.0, torch.empty(0), list(injection.parameters())
    for _ in range(2):
        for atom in atoms:
            atom.grad = None
        worked = time.process_time()
        y = run()
        (y - noise).square().mean().backward()
        seconds = time.process_time() - worked
    gradient = torch.cat([atom.grad.flatten() for atom in atoms if atom.grad is not None])
    with torch.no_grad(), without_atoms(injection):
        change = y.detach() - run()
    return gradient, change, seconds


@contextmanager
def add_by(way: str) -> Iterator[None]:
    """Let all atom layers add their change in this way for the time of a `with` block."""
    conv, linear = AtomConv2d.forward, AtomLinear.forward
    pick = OneWeightLayer.pick_columns
    if way != "columns":
        OneWeightLayer.pick_columns = lambda self, positions: None
    if way == "apart":
        AtomConv2d.forward = add_apart(conv, lambda m, x, w, b: m._conv_forward(x, w, b))
        AtomLinear.forward = add_apart(linear, lambda m, x, w, b: F.linear(x, w, b))
    try:
        yield
    finally:
        AtomConv2d.forward, AtomLinear.forward = conv, linear
        OneWeightLayer.pick_columns = pick


def add_apart(own: Callable[..., Tensor], call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(layer: Any, x: Tensor) -> Tensor:
        if not layer.deltas or layer.mixture():
            return own(layer, x)
        change = layer.delta_weight().to(layer.weight.dtype)
        return call(layer, x, layer.weight, layer.bias) + call(layer, x, change, None)

    return forward
