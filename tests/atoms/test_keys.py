"""The grammar of tensor names: what is joined comes apart again, and hostile names are refused."""

import pytest

from sdatoms import AtomError
from sdatoms.atoms.keys import join_key, read_kind, split_key


@pytest.mark.parametrize("view", ["spatial", "block"])
@pytest.mark.parametrize("name", ["encoder", "atoms", "inner_atoms", "base_atoms"])
def test_keys_come_apart_as_they_were_joined(view, name):
    key = f"unet.down.0.conv.{join_key(view, name)}"
    assert split_key(key) == ("unet", "down.0.conv", view, name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("conv.spatial.atoms", "spatial"),
        ("a.block.b.spatial.inner_coefficients", "spatial"),
        ("a.spatial.b.block.atoms", "block"),
        ("conv.block_2.atoms", "block"),
        ("conv.sparse.base_atoms", "spatial"),
        ("conv.sparse.block_base_atoms", "block"),
    ],
)
def test_the_kind_of_a_tensor_is_that_of_its_view(name, kind):
    assert read_kind(name) == kind


@pytest.mark.parametrize("name", ["", "conv.weight", "conv.lora.atoms", "conv.sparse.codes"])
def test_names_of_other_tensors_have_no_kind(name):
    with pytest.raises(AtomError):
        read_kind(name)
