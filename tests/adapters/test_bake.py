"""Laws of the sums that are baked: chunks change nothing, one cast, and its loss is told."""

import pytest
import torch
from tiny.atoms import VARIANTS
from torch import nn

from sdatoms import AtomConfig, inject, load_atoms
from sdatoms.adapters import bake
from sdatoms.adapters.bake import copy_weight, sum_maps, write_sum
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


LAYERS = {
    "convolution": lambda: nn.Conv2d(24, 16, 3),
    "grouped": lambda: nn.Conv2d(24, 16, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(16, 16, (3, 1), groups=16),
    "linear": lambda: nn.Linear(20, 12),
}


@pytest.fixture
def make_terms(perturb, rng):
    """A layer of some dtype, its delta as trained, and the maps an atom file has for it."""

    def make(kind, variant, dtype=torch.float32):
        model = nn.Sequential(LAYERS[kind]()).to(dtype)
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(model[0].weight.shape, generator=rng))
        injection = perturb(inject(model, AtomConfig(variant, target_modules="0")))
        trained = injection.layers["0"].delta_weight().detach()
        file = pack_atoms({"model": injection})
        injection.eject()
        return model, trained, [(1.0, m) for m in file.maps("model")["0"]], file

    return make


@pytest.mark.parametrize("chunk", [1, 300, 1 << 18])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_sums_are_the_trained_delta_whatever_the_chunk(
    kind, variant, chunk, make_terms, monkeypatch, tolerance
):
    model, trained, terms, _ = make_terms(kind, variant)
    monkeypatch.setattr(bake, "CHUNK", chunk)
    weight = model[0].weight.detach()
    close = tolerance[torch.float32]
    torch.testing.assert_close(sum_maps(weight, terms), trained, **close)
    written = torch.full_like(weight, torch.nan)
    assert write_sum(written, weight, terms) == (0.0, 0.0)
    torch.testing.assert_close(written, weight + trained, **close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_rounded_once_and_the_loss_is_told(dtype, make_terms):
    model, _, terms, _ = make_terms("convolution", "overcomplete", dtype)
    pristine = model[0].weight.detach()
    weight, delta = torch.empty_like(pristine), sum_maps(pristine, terms)
    lost, whole = write_sum(weight, pristine, terms)
    assert torch.equal(weight, (pristine.float() + delta).to(dtype))
    torch.testing.assert_close(whole**0.5, float(delta.norm()), rtol=1e-4, atol=0)
    gone = (weight.float() - pristine.float() - delta).norm()
    torch.testing.assert_close(lost**0.5, float(gone), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("dtype", "change", "loss"),
    [
        (torch.bfloat16, 1e-3, 0.80),
        (torch.float16, 1e-3, 0.21),
        (torch.bfloat16, 1e-2, 0.17),
        (torch.float16, 1e-2, 0.02),
        (torch.float32, 1e-3, 0.0),
        (torch.float64, 1e-3, 0.0),
    ],
)
def test_the_rounding_loss_of_every_dtype_is_the_stated_one(dtype, change, loss, rng):
    """Variant `atoms`, fewer atoms than the rank, a relative change of 0.1 % and 1 %."""
    model = nn.Sequential(nn.Conv2d(64, 64, 3)).to(dtype)
    injection = inject(model, AtomConfig("atoms", num_atoms=4))
    with torch.no_grad():
        for atoms in injection.parameters():
            draw = torch.randn(atoms.shape, generator=rng)
            atoms.copy_(change * draw / draw.square().mean().sqrt())
    file = pack_atoms({"model": injection})
    injection.eject()
    weight = model[0].weight.detach()
    lost, whole = write_sum(
        torch.empty_like(weight), weight.clone(), [(1.0, m) for m in file.maps("model")["0"]]
    )
    found = (lost / whole) ** 0.5 if whole else 0.0
    assert found == pytest.approx(loss, rel=0.15)


def test_nothing_to_add_leaves_the_pristine_weight(make_terms):
    model, *_ = make_terms("linear", "coefficients")
    weight = torch.empty_like(model[0].weight)
    write_sum(weight, model[0].weight.detach(), [])
    assert torch.equal(weight, model[0].weight)
    assert not sum_maps(model[0].weight, []).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_copies_hold_the_same_bits_in_memory_of_their_own(dtype, rng):
    weight = torch.randn(6, 5, 3, 3, generator=rng).to(dtype)
    for source in (weight, weight.to(memory_format=torch.channels_last), nn.Parameter(weight)):
        twin = copy_weight(source)
        assert torch.equal(twin, source) and twin.dtype == dtype
        assert twin.is_contiguous() and not twin.requires_grad
        twin.zero_()
        assert weight.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_write_behind_autograds_back_is_seen(variant, make_terms):
    model, _, _, file = make_terms("convolution", variant)
    pristine = model[0].weight.detach().clone()
    adapters = load_atoms(model, file, name="a")
    baked = model[0].weight.detach().clone()
    model[0].weight.data.view(-1)[7] += 1e-3  # `.data` counts no version
    with pytest.raises(ValueError, match="was written to by something else"):
        adapters.clear()
    model[0].weight.data.copy_(baked)
    adapters.clear()
    assert torch.equal(model[0].weight, pristine)
