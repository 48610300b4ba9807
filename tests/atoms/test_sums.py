"""The tuned weight tile by tile: the plain sum to the bit, its gradients, and nothing kept."""

import pytest
import torch
from tiny.atoms import inject_one
from torch import nn

from sdatoms.atoms import sums
from sdatoms.atoms.decompose import View
from sdatoms.atoms.deltas import apply_map
from sdatoms.atoms.sums import add_maps

FILTERS = View("spatial", (12, 6, 3, 3))
CASES = {
    "spatial": ([FILTERS], [(9, 9)]),
    "a map for each channel": ([FILTERS], [(6, 9, 9)]),
    "grouped, a map for each channel": ([View("spatial", (8, 3, 3, 3), 2)], [(6, 9, 9)]),
    "channel": ([View("channel", (8, 6, 3, 3), 1, (2, 3))], [(6, 6)]),
    "joint": ([View("joint", (8, 6, 3, 3), 1, (4, 1))], [(36, 36)]),
    "grouped blocks": ([View("channel", (12, 4, 3, 3), 2, (3, 2))], [(6, 6)]),
    "linear": ([View("channel", (8, 6), 1, (4, 2))], [(8, 8)]),
    "several": (
        [FILTERS, *(View("channel", FILTERS.shape, 1, (side, side)) for side in (2, 3))],
        [(6, 9, 9), (4, 4), (9, 9)],
    ),
}
"""Views of one weight, and the shapes of their maps."""


def draw_case(rng, name, dtype=torch.float32):
    """A weight, its views, and maps that ask for gradients, in float32 or what is wider."""
    views, shapes = CASES[name]
    weight = torch.randn(views[0].shape, generator=rng).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    maps = [0.1 * torch.randn(shape, generator=rng).to(wide) for shape in shapes]
    return weight, views, [t.requires_grad_() for t in maps]


def add_plainly(weight, views, maps):
    changes = [apply_map(weight, *pair) for pair in zip(views, maps, strict=True)]
    return (weight + sum(changes[1:], changes[0])).to(weight.dtype)


@pytest.fixture(params=[1, 200, 1 << 20], ids=["rows", "tiles", "whole"])
def tile(request, monkeypatch):
    monkeypatch.setattr(sums, "TILE", request.param)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_plain_sum_and_so_are_its_gradients(rng, tolerance, name, dtype):
    weight, views, maps = draw_case(rng, name, dtype)
    tiled, plain = add_maps(weight, views, maps), add_plainly(weight, views, maps)
    torch.testing.assert_close(tiled, plain, **tolerance[dtype])
    assert tiled.dtype == dtype and tiled.stride() == weight.stride()
    towards = torch.randn(weight.shape, generator=rng).to(dtype)
    for own, other in zip(
        *(torch.autograd.grad(total, maps, towards) for total in (tiled, plain)), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_right(rng, name):
    weight, views, maps = draw_case(rng, name, torch.float64)
    run = lambda *given: add_maps(weight, views, given)
    # In random directions: all the numbers of a map one by one take a minute.
    assert torch.autograd.gradcheck(run, maps, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, maps, fast_mode=True)


def test_a_map_that_is_fixed_gets_no_gradient(rng):
    weight, views, maps = draw_case(rng, "several")
    maps[1].requires_grad_(False)
    add_maps(weight, views, maps).sum().backward()
    assert maps[1].grad is None and maps[0].grad.any() and maps[2].grad.any()


@pytest.mark.parametrize("variant", ["overcomplete", "coefficients", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_backward_keeps_the_sum_and_no_other_copy_of_a_large_weight(monkeypatch, dtype, variant):
    monkeypatch.setattr(sums, "TILE", 4096)
    conv = nn.Conv2d(64, 64, 3, padding=1).to(dtype).requires_grad_(False)
    layer = inject_one(conv, variant).layers["0"]
    kept = {}
    hold = lambda t: kept.setdefault(t.untyped_storage()._cdata, t) is None or t
    x = torch.randn(1, 64, 16, 16, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        layer(x)
    assert x.numel() < conv.weight.numel()
    own = conv.weight.data_ptr()
    assert sum(t.numel() >= conv.weight.numel() and t.data_ptr() != own for t in kept.values()) == 1


def test_a_weight_that_trains_itself_gets_its_gradient_too(rng, perturb, monkeypatch):
    monkeypatch.setattr(sums, "TILE", 1)
    conv = nn.Conv2d(6, 8, 3)
    layer = perturb(inject_one(conv, "full"), 0.3).layers["0"]
    layer.weight.requires_grad_(True)
    x = torch.randn(1, 6, 5, 5, generator=rng)
    layer(x).sum().backward()
    assert layer.weight.grad.any() and all(p.grad.any() for p in layer.deltas.parameters())


def test_the_gradient_of_each_picture_comes_by_torch_func(rng, perturb, monkeypatch):
    monkeypatch.setattr(sums, "TILE", 1)
    layer = perturb(inject_one(nn.Conv2d(6, 8, 3), "full"), 0.3).layers["0"]
    atoms = {name: p.detach() for name, p in layer.named_parameters() if name.startswith("deltas")}
    pictures = torch.randn(3, 6, 5, 5, generator=rng)

    def measure(given, x):
        return torch.func.functional_call(layer, given, (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(measure), (None, 0))(atoms, pictures)
    for k, x in enumerate(pictures):
        layer.zero_grad()
        layer(x[None]).square().sum().backward()
        for name, p in layer.named_parameters():
            if name in atoms:
                torch.testing.assert_close(each[name][k], p.grad, rtol=1e-4, atol=1e-5)
