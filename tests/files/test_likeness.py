"""Laws of likeness: the cosine of two changes, with what they have in common."""

import pytest
import torch
from tiny.atoms import VARIANTS, measure_deltas

import sdatoms
from sdatoms.files.compose import compose
from sdatoms.files.likeness import compare_files


@pytest.mark.parametrize("variant", VARIANTS)
def test_likeness_of_a_file_to_itself_its_negative_and_others(make_file, variant):
    a = sdatoms.read_atoms(make_file("a", seed=1, variant=variant))
    b = sdatoms.read_atoms(make_file("b", seed=2, variant=variant))
    matrix = compare_files([a, compose([a], [-2.0]), b])
    assert matrix[0][0].cosine == pytest.approx(1)
    assert matrix[0][1].cosine == pytest.approx(-1)
    assert matrix[0][2].cosine == pytest.approx(matrix[2][0].cosine)
    assert abs(matrix[0][2].cosine) < 0.5
    assert matrix[0][2].exact == matrix[0][2].common > 0
    assert matrix[0][2].same_base


def test_likeness_is_the_cosine_of_the_weights_changes(make_unet, make_file):
    a = sdatoms.read_atoms(make_file("a", seed=1, variant="atoms"))
    b = compose([a, sdatoms.read_atoms(make_file("b", seed=2, variant="atoms"))], [1.0, 0.5])
    unet = make_unet()
    found = [sorted(measure_deltas(file, unet).items()) for file in (a, b)]
    flat = [torch.cat([delta.flatten() for _, delta in pairs]) for pairs in found]
    expected = torch.nn.functional.cosine_similarity(*flat, dim=0)
    assert compare_files([a, b])[0][1].cosine == pytest.approx(float(expected), abs=1e-3)


def test_likeness_tells_other_bases_and_other_encoders(make_unet, make_file, perturb, tmp_path):
    a = sdatoms.read_atoms(make_file("a", variant="atoms"))
    injection = perturb(sdatoms.inject(make_unet(seed=7), sdatoms.AtomConfig(variant="atoms")))
    path = sdatoms.save_atoms(tmp_path / "other.safetensors", {"unet": injection})
    likeness = compare_files([a, sdatoms.read_atoms(path)])[0][1]
    assert not likeness.same_base and likeness.exact == 0 < likeness.common
    blocks = sdatoms.read_atoms(make_file("c", variant="coefficients"))
    apart = compare_files([a, blocks])[0][1]
    assert apart.cosine == 0 and apart.common == 0


PRODUCT = {"block_form": "product", "block_size": 4}


@pytest.mark.parametrize(
    "form",
    [PRODUCT, PRODUCT | {"block_factors": "each"}, {"block_form": "shared"}],
    ids=["product", "product each", "shared"],
)
def test_likeness_of_products_is_that_of_their_changes(make_unet, make_file, form):
    """White filters give the cosine of the changes; random ones come near."""
    a, b = (
        sdatoms.read_atoms(make_file(name, seed=seed, variant="coefficients", **form))
        for seed, name in enumerate("ab")
    )
    mixed = compose([a, b], [1.0, 0.5])
    unet = make_unet()
    found = [sorted(measure_deltas(file, unet).items()) for file in (a, mixed)]
    flat = [torch.cat([delta.flatten() for _, delta in pairs]) for pairs in found]
    expected = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    matrix = compare_files([a, mixed, compose([a], [-1.0])])
    assert matrix[0][1].cosine == pytest.approx(expected, abs=0.1)
    assert matrix[0][0].cosine == pytest.approx(1) and matrix[0][2].cosine == pytest.approx(-1)
    assert matrix[0][1].common > 0 and matrix[0][1].same_base
