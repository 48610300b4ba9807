r"""Time a backward pass for spatial maps that forms no weight gradient against autograd's own.

With `h_q[b,c,·] = Σ_o W[o,c,q] g[b,o,·]`, the input gradient is the col2im of `h (I + T)` and
`∂L/∂T[q,r] = Σ h_q[b,c,pos] x_pad[b,c, stride·pos + dilation·r]`. Arithmetic says it saves the pass
over the weight; explicit columns cost memory traffic instead. Columns pay where the output has
fewer positions than a group has output channels, as in the deep levels of a UNet, and lose
elsewhere. One picture, float32, one busy CPU core, `OMP_NUM_THREADS=1 python
scripts/bench_backward.py`: 0.20 of autograd's time for 1280 channels at 8×8 and 0.36 at 16×16, but
1.5 for 320 at 64×64, 2.0 for 128 at 28×28, 19 for 32 groups.

Not wired into the layers. The border moves with the batch, the number of threads and the device,
and only this one case of them is measured; a Function of its own would also have to round as
autocast does, save nothing across a checkpoint, trace under torch.compile and know every padding
mode, all of which `W + ΔW` in one plain convolution gets from torch.

Prints one JSON object: per layer the milliseconds of both, their ratio, and the largest relative
difference between their gradients.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import torch
from torch import nn
from torch.nn import functional as F

LAYERS = {
    # name: in, out, side (px of the feature map), stride, groups
    "sd15 down 0, 320 at 64": (320, 320, 64, 1, 1),
    "sd15 down 0, strided": (320, 320, 64, 2, 1),
    "sd15 down 2, 1280 at 16": (1280, 1280, 16, 1, 1),
    "sd15 mid, 1280 at 8": (1280, 1280, 8, 1, 1),
    "resnet-50 stage 2, 128 at 28": (128, 128, 28, 1, 1),
    "resnext, 256 at 28, 32 groups": (256, 256, 28, 1, 32),
}


def tune(weight, transform):
    """`W (I + T)` over the kernel positions."""
    rows = weight.reshape(-1, transform.shape[0])
    return weight + (rows @ transform).reshape(weight.shape)


def differentiate_columns(conv, x, transform, grad):
    """Gradients for `x` and for the map `T (p, p)`, from columns."""
    p, groups = transform.shape[0], conv.groups
    shape = {"dilation": conv.dilation, "padding": conv.padding, "stride": conv.stride}
    columns = F.unfold(x, conv.kernel_size, **shape)
    columns = columns.reshape(len(x) * conv.in_channels, p, -1)
    matrix = conv.weight.reshape(groups, conv.out_channels // groups, -1)
    h = matrix.transpose(1, 2) @ grad.reshape(len(x), groups, matrix.shape[1], -1)
    h = h.reshape(len(x) * conv.in_channels, p, -1)
    grad_map = torch.bmm(h, columns.transpose(1, 2)).sum(0)
    mixed = torch.matmul((torch.eye(p, dtype=x.dtype) + transform).T, h)
    mixed = mixed.reshape(len(x), conv.in_channels * p, -1)
    return F.fold(mixed, x.shape[2:], conv.kernel_size, **shape), grad_map


def differentiate_plainly(conv, x, transform, grad):
    """The same from autograd, by way of the full weight gradient."""
    x, transform = x.detach().requires_grad_(), transform.detach().requires_grad_()
    y = conv._conv_forward(x, tune(conv.weight, transform), conv.bias)
    start = time.perf_counter()
    return *torch.autograd.grad(y, (x, transform), grad), time.perf_counter() - start


def measure(spec, repeats, dtype=torch.float32):
    inside, outside, side, stride, groups = spec
    conv = nn.Conv2d(inside, outside, 3, stride, 1, groups=groups, dtype=dtype)
    conv.requires_grad_(False)
    x = torch.randn(1, inside, side, side, dtype=dtype)
    transform = 0.1 * torch.randn(9, 9, dtype=dtype)
    grad = torch.randn_like(conv(x))
    plain, columns = [], []
    for _ in range(repeats):
        grad_x, grad_map, seconds = differentiate_plainly(conv, x, transform, grad)
        plain.append(seconds)
        start = time.perf_counter()
        other_x, other_map = differentiate_columns(conv, x, transform, grad)
        columns.append(time.perf_counter() - start)
    differ = max(
        float((a - b).abs().max() / a.abs().max())
        for a, b in ((grad_x, other_x), (grad_map, other_map))
    )
    return {
        "autograd_ms": round(1000 * min(plain), 2),
        "columns_ms": round(1000 * min(columns), 2),
        "ratio": round(min(columns) / min(plain), 2),
        "difference": differ,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="timings per layer; the best counts")
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    exact = measure((12, 8, 9, 2, 4), 1, torch.float64)["difference"]
    result = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "difference_in_float64": exact,
        "layers": {name: measure(spec, repeats) for name, spec in LAYERS.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
