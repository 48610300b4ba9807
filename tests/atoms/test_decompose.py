"""Laws of the views and of the linear decomposition."""

from itertools import pairwise

import pytest
import torch

from sdatoms import AtomError
from sdatoms.atoms.decompose import (
    CHUNK,
    View,
    fit_encoder,
    measure_gram,
    relative_error,
    split_side,
)

pytestmark = pytest.mark.usefixtures("one_thread")

KERNELS = [(), (1, 1), (3, 3), (3, 1), (7, 7)]
VIEWS = [("spatial", (1, 1)), ("channel", (2, 3)), ("joint", (2, 3)), ("joint", (4, 1))]


def make_weight(rng, groups=1, kernel=(3, 3), o=8, i=6):
    return torch.randn(groups * o, i, *kernel, generator=rng)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("kind", "block"), VIEWS)
def test_rows_and_fold_are_exact_inverses(rng, kind, block, kernel, groups):
    weight = make_weight(rng, groups, kernel)
    view = View(kind, tuple(weight.shape), groups, block)

    rows = view.rows(weight)

    assert rows.shape == (view.height, view.width)
    assert torch.equal(view.fold(rows), weight)
    other = torch.randn(rows.shape, generator=rng)
    assert torch.equal(view.rows(view.fold(other)), other)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@pytest.mark.parametrize("kind", ["channel", "joint"])
def test_a_row_is_one_block_of_one_group(kind, kernel):
    groups, o, i = 3, 4, 6
    weight = torch.empty(groups * o, i, *kernel)
    for row in range(groups * o):
        for column in range(i):
            # The group, and the block within it, that this filter belongs to.
            weight[row, column] = row // o * 100 + row % o // 2 * 10 + column // 3
    view = View(kind, tuple(weight.shape), groups, (2, 3))

    rows = view.rows(weight)

    assert torch.equal(rows, rows[:, :1].expand_as(rows))


def test_a_block_that_would_cross_a_group_is_refused():
    with pytest.raises(AtomError, match="4×1 blocks do not divide 6×8 channels per group"):
        View("channel", (12, 8), 2, (4, 1))


@pytest.mark.parametrize(("size", "asked", "side"), [(8, 4, 4), (6, 4, 3), (7, 4, 1), (2, 4, 2)])
def test_a_side_is_the_largest_divisor_not_above_the_asked_one(size, asked, side):
    assert split_side(size, asked) == side


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("kind", "block"), VIEWS)
def test_the_gram_matrix_is_the_plain_product(rng, kind, block, groups):
    weight = make_weight(rng, groups, o=CHUNK // 100 // groups // 4 * 4, i=12)
    assert CHUNK < weight.numel() < 2 * CHUNK  # so two chunks are added up
    view = View(kind, tuple(weight.shape), groups, block)
    rows = view.rows(weight.double())

    torch.testing.assert_close(measure_gram(weight, view), rows.T @ rows, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("num_atoms", [1, 4, None])
@pytest.mark.parametrize(("kind", "block"), VIEWS)
def test_columns_of_the_coefficients_are_orthogonal(rng, kind, block, num_atoms):
    weight = make_weight(rng, o=16).double()
    view = View(kind, tuple(weight.shape), 1, block)
    encoder = fit_encoder(measure_gram(weight, view), num_atoms)

    coefficients = view.rows(weight) @ encoder

    gram = coefficients.T @ coefficients
    # Each column has the norm that makes relative changes equal in all layers and views.
    expected = weight.square().sum() / encoder.numel() * torch.eye(len(gram)).double()
    torch.testing.assert_close(gram, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))


@pytest.mark.parametrize("num_atoms", [1, 4, None])
@pytest.mark.parametrize("rms", [1e-3, 0.1])
@pytest.mark.parametrize(("kind", "block"), VIEWS)
def test_the_rms_of_the_atoms_delta_is_the_relative_change(rng, kind, block, rms, num_atoms):
    weight = make_weight(rng, o=16).double() * 7
    view = View(kind, tuple(weight.shape), 1, block)
    encoder = fit_encoder(measure_gram(weight, view), num_atoms)
    delta = torch.randn(encoder.shape[1], view.width, generator=rng).double()
    delta *= rms / delta.square().mean().sqrt()

    change = view.rows(weight) @ encoder @ delta

    assert float(change.norm() / weight.norm()) == pytest.approx(rms, rel=1e-9)


@pytest.mark.parametrize(("kind", "block"), VIEWS)
def test_more_atoms_reconstruct_better_and_complete_atoms_exactly(rng, kind, block):
    weight = make_weight(rng, o=64)
    view = View(kind, tuple(weight.shape), 1, block)
    gram = measure_gram(weight, view)

    encoders = [fit_encoder(gram, m) for m in range(1, view.width + 1)]
    errors = [relative_error(gram, encoder) for encoder in encoders]

    assert all(a > b for a, b in pairwise(errors))
    assert errors[-1] < 1e-6
    rows = view.rows(weight.double())
    coefficients = rows @ encoders[0]
    best = coefficients @ torch.linalg.lstsq(coefficients, rows).solution
    assert errors[0] == pytest.approx(float((rows - best).norm() / rows.norm()), rel=1e-9)


def test_atoms_are_cut_at_the_rank(rng):
    filters = torch.randn(2, 9, generator=rng)
    weight = (torch.randn(60, 2, generator=rng) @ filters).reshape(10, 6, 3, 3)
    view = View("spatial", (10, 6, 3, 3))
    gram = measure_gram(weight, view)

    assert fit_encoder(gram, None).shape == (9, 2)
    assert fit_encoder(gram, 5).shape == (9, 2)
    assert relative_error(gram, fit_encoder(gram, None)) < 1e-6


def test_the_encoder_is_deterministic_and_its_signs_are_fixed(rng):
    weight = make_weight(rng)
    view = View("spatial", tuple(weight.shape))

    encoder = fit_encoder(measure_gram(weight, view), None)

    assert torch.equal(encoder, fit_encoder(measure_gram(weight.clone(), view), None))
    assert torch.equal(encoder, fit_encoder(measure_gram(-weight, view), None))
    assert (encoder.gather(0, encoder.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(0.0, "zero everywhere"), (float("nan"), "NaN or infinite"), (float("inf"), "NaN or inf")],
)
def test_weights_without_a_filter_subspace_are_refused(value, sentence):
    weight = torch.full((4, 4, 3, 3), value)
    view = View("spatial", (4, 4, 3, 3))

    with pytest.raises(AtomError, match=sentence):
        fit_encoder(measure_gram(weight, view), None)
