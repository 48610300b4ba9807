"""Laws of sparse coding: optimality, determinism, and what sparsity and more atoms do."""

import pytest
import torch

from sdatoms import AtomError
from sdatoms.atoms.sparse import Solver, encode_rows, learn_atoms, measure_penalty

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rows(rng):
    """Filters about as far from white as those of trained networks."""
    turn = torch.linalg.qr(torch.randn(9, 9, generator=rng)).Q
    return 0.02 * torch.randn(1500, 9, generator=rng) * torch.linspace(1, 0.5, 9) @ turn


@pytest.mark.parametrize("num_atoms", [4, 9, 12])
@pytest.mark.parametrize("sparsity", [0.03, 0.3])
def test_codes_are_optimal(rows, num_atoms, sparsity):
    """The lasso's conditions: the residual's correlation is λ·sign on used atoms, at most λ
    elsewhere."""
    atoms = learn_atoms(rows, num_atoms, sparsity, rounds=5)
    penalty = measure_penalty(rows, sparsity)
    codes = encode_rows(rows, atoms, penalty, Solver(iterations=2000))
    correlation = (rows - codes @ atoms) @ atoms.T
    used = codes != 0
    assert used.any() and not used.all()
    assert (correlation[used] - penalty * codes[used].sign()).abs().max() < 1e-3 * penalty
    assert correlation[~used].abs().max() < 1.001 * penalty


@pytest.mark.parametrize("num_atoms", [4, 9])
def test_codes_drift_by_no_more_than_rounding(rows, num_atoms):
    """In float32 as in float64 to 6e-7, from weights in 16 bits to 4e-4 and 5e-3."""
    atoms = learn_atoms(rows, num_atoms, 0.15)
    penalty = measure_penalty(rows, 0.15)
    codes = encode_rows(rows, atoms, penalty)
    exact = solve_in_float64(rows, atoms, penalty)
    drift = lambda other: float((other - exact).norm() / exact.norm())
    assert drift(codes.double()) <= 6e-7
    for dtype, limit in ((torch.float16, 4e-4), (torch.bfloat16, 5e-3)):
        assert drift(encode_rows(rows.to(dtype), atoms, penalty).double()) <= limit
    other = encode_rows(rows, learn_atoms(rows, num_atoms, 0.15, seed=9), penalty)
    assert drift(other.double()) > 0.1


def solve_in_float64(rows, atoms, penalty):
    """Plain proximal gradient steps until nothing moves."""
    rows, atoms = rows.double(), atoms.double()
    gram = atoms @ atoms.T
    step = 1 / float(torch.linalg.eigvalsh(gram)[-1])
    target = rows @ atoms.T
    codes = torch.zeros_like(target)
    for _ in range(1000):
        codes = torch.nn.functional.softshrink(
            torch.addmm(codes + step * target, codes, gram, alpha=-step), step * penalty
        )
    return codes


def test_codes_do_not_depend_on_what_is_coded_beside_them(rows):
    atoms = learn_atoms(rows, 9, 0.15, rounds=3)
    penalty = measure_penalty(rows, 0.15)
    whole = encode_rows(rows, atoms, penalty)
    torch.testing.assert_close(
        whole[:100], encode_rows(rows[:100], atoms, penalty), atol=1e-6, rtol=1e-4
    )
    many = encode_rows(rows.repeat(12, 1), atoms, penalty)
    torch.testing.assert_close(whole, many[-len(whole) :], atol=1e-6, rtol=1e-4)
    assert torch.equal(whole, encode_rows(rows, atoms, penalty))


def test_codes_cut_off_at_the_last_iteration_are_a_function_of_their_rows(rows):
    """A solver that stops before it has converged is as deterministic, and no worse with time."""
    atoms = learn_atoms(rows, 36, 0.15, rounds=3)
    penalty = measure_penalty(rows, 0.15)
    excess = []
    for iterations in (5, 20, 100, 2000):
        solver = Solver(iterations=iterations)
        codes = encode_rows(rows, atoms, penalty, solver)
        assert torch.equal(codes, encode_rows(rows, atoms, penalty, solver))
        alone = encode_rows(rows[:100], atoms, penalty, solver)
        assert (codes[:100] - alone).norm() < 1e-3 * alone.norm()
        misfit = (rows - codes @ atoms).double().square().sum() / 2
        excess.append(float(misfit + penalty * codes.double().abs().sum()))
    assert excess[0] > excess[1] > excess[2] >= excess[3] * (1 - 1e-6)


def test_codes_that_are_right_stay(rows):
    atoms = learn_atoms(rows, 9, 0.15, rounds=3)
    penalty = measure_penalty(rows, 0.15)
    codes = encode_rows(rows, atoms, penalty)
    again = encode_rows(rows, atoms, penalty, Solver(iterations=1), start=codes)
    torch.testing.assert_close(again, codes, atol=1e-7, rtol=1e-5)


def test_more_sparsity_means_fewer_codes_and_a_larger_error(rows):
    atoms = learn_atoms(rows, 12, 0.15, rounds=10)
    density, errors = [], []
    for sparsity in (0.015, 0.15, 0.6):
        codes = encode_rows(rows, atoms, measure_penalty(rows, sparsity))
        density.append(float((codes != 0).float().mean()))
        errors.append(float((rows - codes @ atoms).norm() / rows.norm()))
    assert density[0] > density[1] > density[2] and errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("scale", [2.0**10, 2.0**-80])
def test_sparsity_is_relative_to_the_scale_of_the_weight(rows, scale):
    atoms = learn_atoms(rows, 9, 0.15)
    assert torch.allclose(atoms, learn_atoms(rows * scale, 9, 0.15), atol=1e-4)
    codes = encode_rows(rows, atoms, measure_penalty(rows, 0.15))
    scaled = encode_rows(rows * scale, atoms, measure_penalty(rows * scale, 0.15))
    torch.testing.assert_close(codes, scaled / scale, atol=1e-5, rtol=1e-3)


def test_more_atoms_serve_better(rows):
    errors = []
    for num_atoms in (3, 6, 9):
        atoms = learn_atoms(rows, num_atoms, 0.03, rounds=10)
        codes = encode_rows(rows, atoms, measure_penalty(rows, 0.03))
        errors.append(float((rows - codes @ atoms).norm() / rows.norm()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


def test_atoms_are_unit_and_a_function_of_the_seed(rows):
    atoms = learn_atoms(rows, 12, 0.15, seed=3)
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(12))
    assert torch.equal(atoms, learn_atoms(rows, 12, 0.15, seed=3))
    assert not torch.allclose(atoms, learn_atoms(rows, 12, 0.15, seed=4), atol=1e-2)


def test_planted_atoms_are_found():
    generator = torch.Generator().manual_seed(1)
    planted = torch.nn.functional.normalize(torch.randn(9, 9, generator=generator), dim=1)
    codes = torch.randn(10_000, 9, generator=generator) * (
        torch.rand(10_000, 9, generator=generator) < 0.15
    )
    found = learn_atoms(codes @ planted, 9, 0.15, rounds=60)
    nearest = (found @ planted.T).abs().max(0).values
    assert nearest.min() > 0.9 and (nearest > 0.999).sum() >= 7


def test_there_are_no_more_atoms_than_filters(rows):
    few = torch.cat([rows[:5], torch.zeros(20, 9)])
    atoms = learn_atoms(few, 9, 0.15)
    assert atoms.shape == (5, 9)
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("rows", "words"),
    [(torch.zeros(20, 9), "zero everywhere"), (torch.full((20, 9), torch.nan), "NaN")],
)
def test_weights_without_filters_are_refused(rows, words):
    with pytest.raises(AtomError, match=words):
        learn_atoms(rows, 4, 0.1)
