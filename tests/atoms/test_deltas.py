"""Laws of the deltas: each one against explicit loops over the paper's formulas."""

import pytest
import torch
from tiny.atoms import inject_one
from tiny.modules import copy_weights
from torch import nn

from sdatoms.atoms.decompose import View, fit_encoder, measure_gram
from sdatoms.atoms.deltas import (
    AtomDelta,
    ChannelDelta,
    OvercompleteDelta,
    apply_map,
    form_once,
)

pytestmark = pytest.mark.usefixtures("one_thread")

GROUPS = [1, 3]


def make(rng, cls, view, *args, num_atoms=None):
    """A weight and a delta whose trained tensors are random."""
    weight = torch.randn(view.shape, generator=rng)
    delta = cls(view, fit_encoder(measure_gram(weight, view), num_atoms), *args)
    for parameter in delta.parameters():
        torch.nn.init.normal_(parameter, generator=rng)
    return weight, delta


@pytest.mark.parametrize("groups", GROUPS)
def test_atoms_are_one_map_of_every_filter(rng, groups):
    view = View("spatial", (4 * groups, 5, 3, 2), groups)
    weight, delta = make(rng, AtomDelta, view, num_atoms=3)

    expected = torch.empty_like(weight)
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            coefficients = weight[o, i].reshape(1, -1) @ delta.encoder
            expected[o, i] = (coefficients @ delta.atoms).reshape(3, 2).detach()

    torch.testing.assert_close(delta(weight), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", GROUPS)
def test_overcomplete_atoms_belong_to_absolute_input_channels(rng, groups):
    o, i, m, m1 = 4, 5, 3, 2
    view = View("spatial", (o * groups, i, 3, 2), groups)
    weight, delta = make(rng, OvercompleteDelta, view, m1, num_atoms=m)
    assert delta.inner_coefficients.shape == (groups * i, m, m1)
    assert delta.inner_atoms.shape == (m, m1, 6)

    expected = torch.zeros_like(weight)
    for row in range(groups * o):
        for column in range(i):
            channel = row // o * i + column
            coefficients = weight[row, column].flatten() @ delta.encoder
            for a in range(m):
                for j in range(m1):
                    inner = delta.inner_coefficients[channel, a, j] * delta.inner_atoms[a, j]
                    expected[row, column] += (coefficients[a] * inner).reshape(3, 2).detach()

    torch.testing.assert_close(delta(weight), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", GROUPS)
def test_channel_atoms_are_overcomplete_atoms_multiplied_out(rng, groups):
    view = View("spatial", (4 * groups, 5, 3, 3), groups)
    weight, delta = make(rng, OvercompleteDelta, view, 2)
    stored = ChannelDelta(view, delta.encoder)
    with torch.no_grad():
        stored.channel_atoms.copy_(
            torch.einsum("caj,ajp->cap", delta.inner_coefficients, delta.inner_atoms)
        )

    torch.testing.assert_close(stored(weight), delta(weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", ["channel", "joint"])
def test_block_atoms_are_one_map_of_every_channel_block(rng, kind, groups):
    o, i, bo, bi, kernel = 4, 6, 2, 3, (3, 2)
    view = View(kind, (o * groups, i, *kernel), groups, (bo, bi))
    weight, delta = make(rng, AtomDelta, view, num_atoms=4)

    expected = torch.empty_like(weight)
    for row in range(0, groups * o, bo):
        for column in range(0, i, bi):
            block = weight[row : row + bo, column : column + bi]
            if kind == "joint":
                changed = (block.reshape(1, -1) @ delta.encoder @ delta.atoms).reshape(block.shape)
            else:
                changed = torch.empty_like(block)
                for y in range(kernel[0]):
                    for x in range(kernel[1]):
                        flat = block[..., y, x].reshape(1, -1) @ delta.encoder @ delta.atoms
                        changed[..., y, x] = flat.reshape(bo, bi).detach()
            expected[row : row + bo, column : column + bi] = changed.detach()

    torch.testing.assert_close(delta(weight), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_inner_atoms", [1, 3, 8])
def test_the_rms_of_inner_atoms_is_about_the_relative_change(rng, num_inner_atoms):
    view = View("spatial", (32, 64, 3, 3))
    weight, delta = make(rng, OvercompleteDelta, view, num_inner_atoms)
    fresh = OvercompleteDelta(view, delta.encoder, num_inner_atoms, seed=5)
    with torch.no_grad():
        fresh.inner_atoms.normal_(0, 0.01, generator=rng)
        change = float(fresh(weight).norm() / weight.norm())

    assert change == pytest.approx(0.01, rel=0.25)


def test_inner_coefficients_follow_the_seed(rng):
    view = View("spatial", (4, 5, 3, 3))
    _, delta = make(rng, OvercompleteDelta, view, 2)
    a, b, c = (OvercompleteDelta(view, delta.encoder, 2, seed) for seed in (1, 1, 2))

    assert torch.equal(a.inner_coefficients, b.inner_coefficients)
    assert not torch.equal(a.inner_coefficients, c.inner_coefficients)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_atoms_stay_float32_whatever_the_model_is_cast_to(rng, cast):
    view = View("spatial", (4, 5, 3, 3))
    _, delta = make(rng, OvercompleteDelta, view, 2)
    before = copy_weights(delta)

    getattr(delta, cast)()

    for name, tensor in delta.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.dtype == torch.float32, name


def test_atoms_follow_to_another_device(rng):
    view = View("spatial", (4, 5, 3, 3))
    _, delta = make(rng, AtomDelta, view)

    delta.to("meta")

    assert delta.encoder.is_meta
    assert delta.atoms.is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_deltas_are_formed_in_float32_also_under_autocast(rng, dtype):
    view = View("joint", (8, 8, 3, 3), 1, (2, 2))
    weight, delta = make(rng, AtomDelta, view)
    weight = weight.to(dtype)
    plain = delta(weight)

    with torch.autocast("cpu", torch.bfloat16):
        cast = delta(weight)

    assert plain.dtype == cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    assert torch.equal(plain, apply_map(weight, view, delta.transform()))


@pytest.mark.parametrize("setting", ["atoms", "overcomplete", "full"])
def test_maps_formed_once_give_the_gradients_of_maps_formed_in_every_pass(rng, perturb, setting):
    layer = nn.Conv2d(4, 8, 3, padding=1)
    injection = perturb(inject_one(layer, setting), 0.3)
    passes = [torch.randn(2, 4, 5, 5, generator=rng) for _ in range(3)]
    for x in passes:
        injection.model(x).square().mean().backward()
    expected = [p.grad.clone() for p in injection.parameters()]
    injection.model.zero_grad()
    deltas = list(injection.weights["0"].views.values())
    with form_once(deltas):
        assert all(d.transform() is d.transform() for d in deltas)
        for x in passes:
            injection.model(x).square().mean().backward()
    for parameter, gradient in zip(injection.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(d.held is None for d in deltas)


def test_a_pass_that_fails_leaves_no_gradient_and_no_held_map(rng):
    injection = inject_one(nn.Conv2d(4, 8, 3, padding=1), "full")
    deltas = list(injection.weights["0"].views.values())
    with pytest.raises(KeyboardInterrupt), form_once(deltas):
        injection.model(torch.randn(1, 4, 5, 5, generator=rng)).sum().backward()
        raise KeyboardInterrupt
    assert all(p.grad is None for p in injection.parameters())
    assert all(d.held is None for d in deltas)
