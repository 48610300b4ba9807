"""Layers of every flavour, alone in a model, and atoms in them with explicit numbers."""

import torch
from torch import nn

from sdatoms import AtomConfig, inject

CONVS = {
    "1x1": ((8, 12, 1), {}),
    "3x3": ((8, 12, 3), {"padding": 1}),
    "3x1": ((8, 12, (3, 1)), {}),
    "strided": ((8, 12, 3), {"stride": 2, "padding": 1}),
    "dilated": ((8, 12, 3), {"dilation": 2, "padding": "same"}),
    "grouped": ((8, 12, 3), {"groups": 4, "bias": False}),
    "depthwise": ((8, 8, 3), {"groups": 8, "padding": 1}),
    "depthwise 7x7": ((8, 8, 7), {"groups": 8, "padding": 3}),
    "depthwise multiplier": ((8, 16, 3), {"groups": 8, "bias": False}),
    "all at once": (
        (8, 12, (3, 2)),
        {"stride": (2, 1), "dilation": (1, 2), "groups": 2, "padding": (1, 0)},
    ),
    "circular": ((8, 12, 3), {"padding": 1, "padding_mode": "circular"}),
    "reflect": ((8, 12, 3), {"padding": 1, "padding_mode": "reflect"}),
    "replicate": ((8, 12, 3), {"padding": (2, 1), "padding_mode": "replicate"}),
    "1d": ((8, 12, 5), {"padding": 2, "stride": 2}),
    "1d depthwise": ((8, 8, 3), {"groups": 8, "padding": 1, "padding_mode": "circular"}),
    "3d": ((4, 6, 3), {"padding": 1, "groups": 2}),
    "3d 1x3x2": ((4, 6, (1, 3, 2)), {"padding_mode": "replicate", "padding": (0, 1, 0)}),
}
FLAVOURS = [*CONVS, "linear", "attention", "attention of other widths"]
VARIANTS = ["atoms", "overcomplete", "coefficients", "full"]
SETTINGS = {
    **{variant: {"variant": variant} for variant in VARIANTS},
    "atoms, m < rank": {"variant": "atoms", "num_atoms": 2, "block_atoms": 3},
    "full, 12 atoms": {"variant": "full", "num_atoms": 12, "block_atoms": 3},
    "channel view": {"variant": "full", "block_view": "channel"},
    "product": {"variant": "coefficients", "block_form": "product"},
    "product each, full": {
        "variant": "full",
        "block_form": "product",
        "block_factors": "each",
        "block_size": 4,
    },
    "a share of blocks": {"variant": "full", "block_share": 0.1, "block_view": "channel"},
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


class Attending(nn.Module):
    """Attention to what comes in, cut to the widths of keys and values."""

    def __init__(self, **widths):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True, **widths)

    def forward(self, x):
        return self.inner(x, x[..., : self.inner.kdim], x[..., : self.inner.vdim])[0]


def make_base(case):
    """The layer and the shape of its input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if case == "linear":
            return nn.Linear(8, 12), (5, 8)
        if case.startswith("attention"):
            widths = {"kdim": 6, "vdim": 4} if case.endswith("widths") else {}
            return Attending(**widths), (2, 5, 8)
        args, kwargs = CONVS[case]
        if case.startswith("1d"):
            return nn.Conv1d(*args, **kwargs), (2, 8, 9)
        if case.startswith("3d"):
            return nn.Conv3d(*args, **kwargs), (2, 4, 3, 5, 4)
        return nn.Conv2d(*args, **kwargs), (2, 8, 9, 7)


def inject_one(base, setting, **more):
    """`base` in a model of its own, with explicit numbers, so that no budget leaves it out.

    Where they are complete, plain spatial atoms may still be cut to a quarter of the layer.
    """
    numbers = {"num_inner_atoms": 2, "block_size": 2, "target_modules": ("0*",)}
    return inject(nn.Sequential(base), AtomConfig(**numbers | SETTINGS[setting] | more))
