"""What a file holds adds up to the file."""

import pytest
from tiny.atoms import VARIANTS

import sdatoms
from sdatoms.files.contents import measure_budget


@pytest.mark.parametrize("variant", VARIANTS)
def test_budget_adds_up_to_the_file(make_file, variant):
    path = make_file(variant=variant)
    file, budget = sdatoms.read_atoms(path), measure_budget(path)
    assert budget.prefix + budget.header + budget.tensors == budget.file == path.stat().st_size
    assert budget.parameters == file.num_parameters
    assert sum(share.bytes for share in budget.layers.values()) == budget.tensors
    assert sum(share.parameters for share in budget.layers.values()) == file.num_parameters
    assert budget.tensors - budget.encoders == 4 * file.num_parameters
