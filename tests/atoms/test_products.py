"""Products of two factors: the same layer read from its weight and from its activations."""

import pytest
import torch
from torch import nn

from sdatoms.atoms.block_deltas import ProductDelta
from sdatoms.atoms.decompose import View
from sdatoms.atoms.products import (
    apply_factors,
    compare_factors,
    factor_shapes,
    fold_factors,
    mix_channels,
    run_factors,
)

CASES = [(groups, each) for groups in (1, 2) for each in (False, True)]


def make(groups, each, rng, dtype=torch.float64, block=(4, 2)):
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=groups).to(dtype).requires_grad_(False)
    view = View("channel", tuple(conv.weight.shape), groups, block)
    factors = [0.2 * torch.randn(s, generator=rng, dtype=dtype) for s in factor_shapes(view, each)]
    return conv, view, factors


@pytest.mark.parametrize(("groups", "each"), CASES)
def test_activations_and_weight_give_one_layer(groups, each, rng):
    conv, view, factors = make(groups, each, rng)
    x = torch.randn(2, 8, 5, 4, generator=rng, dtype=torch.float64)
    y = run_factors(x, *factors, conv.bias, conv, 1)
    change = apply_factors(conv.weight, view, *factors)
    tuned = torch.nn.functional.conv2d(x, conv.weight + change, conv.bias, padding=1, groups=groups)
    torch.testing.assert_close(y, tuned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("groups", "each"), CASES)
def test_gradients_are_those_of_finite_differences(groups, each, rng):
    conv, _, factors = make(groups, each, rng)
    x = torch.randn(1, 8, 3, 3, generator=rng, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, *factors)]
    run = lambda x, left, right: run_factors(x, left, right, conv.bias, conv, 1)
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("each", [False, True])
def test_some_output_channels_change_as_they_do_in_the_whole(each, rng):
    conv, view, factors = make(1, each, rng, torch.float32)
    whole = apply_factors(conv.weight, view, *factors)
    parts = [apply_factors(conv.weight[s : s + 4], view, *factors, s) for s in (0, 4, 8, 12)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_shared_factors_are_one_full_map_of_the_block(rng):
    conv, view, factors = make(2, False, rng)
    folded = view.fold(view.rows(conv.weight) @ fold_factors(*factors))
    torch.testing.assert_close(folded.float(), apply_factors(conv.weight, view, *factors))


@pytest.mark.parametrize("each", [False, True])
def test_autocast_rounds_neither_factors_nor_sums_of_a_float32_input(each, rng):
    conv, _, factors = make(1, each, rng, torch.float32)
    x = torch.randn(2, 8, 5, 4, generator=rng)
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        y = run_factors(x, *factors, conv.bias, lambda z: seen.append(z) or conv(z), 1)
    plain = x + mix_channels(x, factors[1], 1)
    torch.testing.assert_close(seen[0], plain)
    assert y.dtype == torch.bfloat16


def test_zero_factors_leave_the_layers_own_bits(rng):
    linear = nn.Linear(8, 12)
    x = torch.randn(5, 8, generator=rng)
    zeros = torch.zeros(4, 4), torch.zeros(2, 2)
    turned = torch.randn(3, 8, 5, generator=rng).mT
    with torch.no_grad():
        for rows in (x, turned):
            assert torch.equal(run_factors(rows, *zeros, linear.bias, linear, -1), linear(rows))


@pytest.mark.parametrize("each", [False, True])
def test_inner_products_are_those_of_the_full_maps(each, rng):
    _, _, first = make(1, each, rng)
    _, _, second = make(1, each, rng)
    pairs = [
        [(a, b) for a in (f[0] if each else [f[0]]) for b in (f[1] if each else [f[1]])]
        for f in (first, second)
    ]
    expected = [
        float((fold_factors(*one) * fold_factors(*other)).sum())
        for one, other in zip(*pairs, strict=True)
    ]
    found = compare_factors(tuple(first), tuple(second))
    torch.testing.assert_close(found, sum(expected) / len(expected))


def test_a_delta_says_what_it_is():
    view = View("channel", (12, 8, 3, 3), 1, (4, 2))
    assert repr(ProductDelta(view, True, torch.zeros(1))) == (
        "ProductDelta(product 4x2, each, parameters=64)"
    )
