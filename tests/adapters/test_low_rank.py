"""Laws of low rank: as good as the singular value decomposition, at the shapes of real layers."""

import pytest
import torch

from sdatoms.adapters.low_rank import factor

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(320, 36), (4, 2880), (320, 2880), (640, 640), (1280, 320), (2560, 320), (320, 1280)]
"""conv_in, conv_out, a resnet's, attention's, the time embedding's and a feed-forward's layers of
Stable Diffusion 1.5."""


def make_matrix(shape, kind):
    generator = torch.Generator().manual_seed(sum(shape))
    flat = torch.randn(shape, generator=generator)
    if kind == "flat":
        return flat
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    steps = torch.arange(len(s))
    fall = {"falling": 1 / (1 + steps), "steep": 0.5**steps, "low rank": (steps < 3).float()}
    return (u * fall[kind]) @ v


@pytest.mark.parametrize("kind", ["flat", "falling", "steep", "low rank"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_factor_is_as_near_as_the_singular_values_allow(shape, kind):
    matrix = make_matrix(shape, kind)
    values = torch.linalg.svdvals(matrix.double())
    for rank in (1, 4, 16, 64):
        up, down = factor(matrix, rank)
        r = min(rank, *shape)
        assert (up.shape, down.shape) == ((shape[0], r), (r, shape[1]))
        error = float((matrix.double() - up.double() @ down.double()).norm())
        least = float(values[r:].norm())
        assert error <= 1.001 * least + 1e-6 * float(values.norm()), (rank, error / least)
        torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), rtol=1e-3, atol=1e-6)


def test_a_matrix_has_the_same_factors_at_every_call():
    matrix = make_matrix((320, 2880), "flat")
    state = torch.get_rng_state()
    first, second = factor(matrix, 4), factor(matrix, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_becomes_nothing():
    up, down = factor(torch.zeros(12, 30), 4)
    assert torch.equal(up @ down, torch.zeros(12, 30))
    assert torch.isfinite(up).all() and torch.isfinite(down).all()
