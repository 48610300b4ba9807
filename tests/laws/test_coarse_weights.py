"""Weights stored as 8-bit floating-point numbers: refused in a sentence, and nothing is changed."""

import pytest
import torch

from sdatoms import AtomConfig, AtomError, inject, load_atoms, load_base

pytestmark = pytest.mark.usefixtures("one_thread")
COARSE = [torch.float8_e4m3fn, torch.float8_e5m2]


def read_dtypes(model):
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


def cast(model, dtype, way):
    if way == "layerwise":
        model.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)
    else:
        model.to(dtype)


@pytest.mark.parametrize("way", ["layerwise", "to"])
@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("variant", ["atoms", "full"])
def test_atoms_go_into_no_model_of_8_bits(make_unet, make_file, variant, dtype, way):
    file, unet = make_file(variant=variant), make_unet()
    cast(unet, dtype, way)
    before = read_dtypes(unet)
    for call in (
        lambda: inject(unet, AtomConfig(variant)),
        lambda: load_atoms(unet, file),
    ):
        with pytest.raises(AtomError, match=rf"stored as {dtype}, whose rounding is larger"):
            call()
        assert read_dtypes(unet) == before


@pytest.mark.parametrize("way", ["layerwise", "to"])
@pytest.mark.parametrize("dtype", COARSE)
def test_a_model_with_atoms_is_not_cast_to_8_bits(make_unet, perturb, dtype, way):
    unet = make_unet()
    injection = perturb(inject(unet, AtomConfig("full")))
    kept = {name: p.clone() for name, p in injection.named_parameters()}
    with pytest.raises(AtomError, match=f"atoms cannot be cast to {dtype}"):
        cast(unet, dtype, way)
    for name, parameter in injection.named_parameters():
        assert torch.equal(parameter, kept[name]), name


def test_a_file_is_loaded_before_the_cast(make_unet, make_file, run_unet):
    file, unet, other = make_file(size=0.5), make_unet(), make_unet()
    adapters = load_atoms(unet, file, name="dog")
    plain = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    other.load_state_dict(plain)
    for model in (unet, other):
        cast(model, torch.float8_e4m3fn, "layerwise")
    assert torch.equal(run_unet(unet), run_unet(other))
    with pytest.raises(AtomError, match="float8"):
        adapters.set_strengths({"dog": 0.5})


def test_bases_are_opened_in_16_bits_or_more(tiny_base):
    with pytest.raises(AtomError, match="a base is opened in 16 or 32 bits"):
        load_base(str(tiny_base), dtype=torch.float8_e4m3fn)
