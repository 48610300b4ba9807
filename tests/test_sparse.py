"""Laws of sparse coding: optimality, determinism, and what sparsity and more atoms do."""

import pytest
import torch

from sdatoms import AtomError
from sdatoms.sparse import encode_rows, learn_atoms, measure_penalty


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3000, 9, generator=generator) @ torch.randn(9, 9, generator=generator) * 0.02


@pytest.mark.parametrize("num_atoms", [4, 9, 12])
@pytest.mark.parametrize("sparsity", [0.01, 0.1])
def test_codes_are_optimal(rows, num_atoms, sparsity):
    """The lasso's conditions: the residual's correlation is λ·sign on used atoms, at most λ
    elsewhere."""
    atoms = learn_atoms(rows, num_atoms, sparsity, rounds=5)
    penalty = measure_penalty(rows, sparsity)
    codes = encode_rows(rows, atoms, penalty, iterations=2000)
    correlation = (rows - codes @ atoms) @ atoms.T
    used = codes != 0
    assert used.any() and not used.all()
    assert (correlation[used] - penalty * codes[used].sign()).abs().max() < 1e-3 * penalty
    assert correlation[~used].abs().max() < 1.001 * penalty


def test_codes_do_not_depend_on_what_is_coded_beside_them(rows):
    atoms = learn_atoms(rows, 9, 0.05, rounds=3)
    penalty = measure_penalty(rows, 0.05)
    whole = encode_rows(rows, atoms, penalty)
    torch.testing.assert_close(
        whole[:100], encode_rows(rows[:100], atoms, penalty), atol=1e-6, rtol=1e-4
    )
    assert torch.equal(whole, encode_rows(rows, atoms, penalty))


def test_more_sparsity_means_fewer_codes_and_a_larger_error(rows):
    atoms = learn_atoms(rows, 12, 0.05)
    density, errors = [], []
    for sparsity in (0.005, 0.05, 0.2):
        codes = encode_rows(rows, atoms, measure_penalty(rows, sparsity))
        density.append(float((codes != 0).float().mean()))
        errors.append(float((rows - codes @ atoms).norm() / rows.norm()))
    assert density[0] > density[1] > density[2] and errors[0] < errors[1] < errors[2]


def test_sparsity_is_relative_to_the_scale_of_the_weight(rows):
    atoms = learn_atoms(rows, 9, 0.05)
    assert torch.allclose(atoms, learn_atoms(rows * 1024, 9, 0.05), atol=1e-4)
    small = encode_rows(rows, atoms, measure_penalty(rows, 0.05))
    large = encode_rows(rows * 1024, atoms, measure_penalty(rows * 1024, 0.05))
    torch.testing.assert_close(small * 1024, large, atol=1e-3, rtol=1e-3)


def test_more_atoms_serve_better(rows):
    errors = []
    for num_atoms in (3, 6, 9):
        atoms = learn_atoms(rows, num_atoms, 0.01)
        codes = encode_rows(rows, atoms, measure_penalty(rows, 0.01))
        errors.append(float((rows - codes @ atoms).norm() / rows.norm()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


def test_atoms_are_unit_and_a_function_of_the_seed(rows):
    atoms = learn_atoms(rows, 12, 0.05, seed=3)
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(12))
    assert torch.equal(atoms, learn_atoms(rows, 12, 0.05, seed=3))
    assert not torch.allclose(atoms, learn_atoms(rows, 12, 0.05, seed=4), atol=1e-2)


def test_planted_atoms_are_found():
    generator = torch.Generator().manual_seed(1)
    planted = torch.nn.functional.normalize(torch.randn(9, 9, generator=generator), dim=1)
    codes = torch.randn(20_000, 9, generator=generator) * (
        torch.rand(20_000, 9, generator=generator) < 0.15
    )
    found = learn_atoms(codes @ planted, 9, 0.05, rounds=60)
    nearest = (found @ planted.T).abs().max(0).values
    assert nearest.min() > 0.9 and (nearest > 0.999).sum() >= 7


@pytest.mark.parametrize(
    ("rows", "words"),
    [(torch.zeros(20, 9), "zero everywhere"), (torch.full((20, 9), torch.nan), "NaN")],
)
def test_weights_without_filters_are_refused(rows, words):
    with pytest.raises(AtomError, match=words):
        learn_atoms(rows, 4, 0.1)
