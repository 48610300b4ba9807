"""The changes a file makes, measured without loading it: those of its deltas."""

import pytest
from tiny.atoms import VARIANTS, measure_deltas

import sdatoms
from sdatoms.adapters.changes import measure_changes


@pytest.mark.parametrize("variant", VARIANTS)
def test_changes_are_those_of_the_deltas(make_unet, make_file, variant):
    file, unet = sdatoms.read_atoms(make_file(variant=variant)), make_unet()
    rows = measure_changes(file, unet)
    found = measure_deltas(file, unet)
    assert {row.path for row in rows} == set(found)
    for row in rows:
        expected = found[row.path].norm() / unet.get_submodule(row.path).weight.detach().norm()
        assert row.change == pytest.approx(float(expected), rel=1e-4)
        assert row.block in ("down", "mid", "up")
    assert sum(row.parameters for row in rows) == file.num_parameters


def test_changes_do_not_see_adapters_that_are_baked_in(make_unet, make_file):
    file, unet = sdatoms.read_atoms(make_file(variant="atoms")), make_unet()
    before = measure_changes(file, unet)
    sdatoms.load_atoms(unet, file, name="x", strength=3.0)
    assert measure_changes(file, unet) == before
