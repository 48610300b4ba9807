"""Modules of a few layers: a net, attention, and one layer of every flavour."""

import torch
from torch import nn

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


class ConvNet(nn.Module):
    """A stem, a depthwise 7×7, a 1×1, a grouped 3×3 and a head, as in ConvNeXt and ResNeXt."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.grouped = nn.Conv2d(32, 48, 3, stride=2, groups=4)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = self.depthwise(self.stem(x).relu())
        x = self.grouped(self.pointwise(x).relu())
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Attention of width 8 as torch has it: to itself, or to given keys and values; returns the
    output and the weights."""

    def __init__(self, num_heads=2, **kwargs):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, num_heads, **kwargs)

    def forward(self, x, k=None, v=None, **flags):
        return self.attn(x, x if k is None else k, x if v is None else v, **flags)


class SelfAttention(Attention):
    """Attention to what comes in, `(B, n, 8)`, cut to the widths of keys and values; returns the
    output alone."""

    def __init__(self, **kwargs):
        super().__init__(batch_first=True, **kwargs)

    def forward(self, x):
        cut = lambda width: x if width == x.shape[-1] else x[..., :width]
        return super().forward(x, cut(self.attn.kdim), cut(self.attn.vdim))[0]


def build(kind, *args, seed=0, **kwargs):
    """A module of that class, its weights by seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*args, **kwargs)


def make_base(case):
    """A layer of that flavour and the shape of its input."""
    if case == "linear":
        return build(nn.Linear, 8, 12), (5, 8)
    if case.startswith("attention"):
        widths = {"kdim": 6, "vdim": 4} if case.endswith("widths") else {}
        return build(SelfAttention, **widths), (2, 5, 8)
    args, kwargs = CONVS[case]
    if case.startswith("1d"):
        return build(nn.Conv1d, *args, **kwargs), (2, 8, 9)
    if case.startswith("3d"):
        return build(nn.Conv3d, *args, **kwargs), (2, 4, 3, 5, 4)
    return build(nn.Conv2d, *args, **kwargs), (2, 8, 9, 7)


def copy_weights(module):
    """Name → a copy of every tensor of the state dict."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_weights(module, weights):
    """Whether the module holds the very bits that `copy_weights` found."""
    return all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())


def snapshot(model):
    """All that eject has to bring back."""
    hooks = [
        {k: dict(v) for k, v in vars(m).items() if k.endswith("_hooks")} for m in model.modules()
    ]
    return (
        {name: module for name, module in model.named_modules()},
        {name: (p, p.requires_grad) for name, p in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        hooks,
    )
