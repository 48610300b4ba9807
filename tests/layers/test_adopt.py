"""What an adopted layer shares with its base, and what is not adopted."""

import pytest
import torch
from tiny.modules import make_base
from torch import nn

from sdatoms import (
    AtomConfig,
    AtomError,
    inject,
)
from sdatoms.layers.adopt import adopt

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("case", ["3x3", "linear"])
def test_an_atom_layer_shares_all_that_the_base_has(case):
    base, _ = make_base(case)
    base.mark = object()
    layer = adopt(base)

    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert layer.mark is base.mark
    assert isinstance(layer, type(base))
    assert list(layer.state_dict()) == list(base.state_dict())
    base.to(torch.float64)
    assert layer.weight is base.weight
    assert layer.weight.dtype == torch.float64


def test_what_is_no_plain_layer_is_not_adopted():
    with pytest.raises(AtomError, match="not ConvTranspose2d"):
        adopt(nn.ConvTranspose2d(3, 4, 3))
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(3, 4, 3))
    note = "ConvTranspose2d spreads its input, and filter atoms fit plain convolutions only"
    assert note in inject(model, AtomConfig("atoms")).report()[0].note
    with pytest.raises(AtomError, match=f"under 0; left out: {note}"):
        inject(nn.Sequential(model[0]), AtomConfig(target_modules="0"))
    hooked = nn.Conv2d(3, 4, 3)
    hooked.forward = lambda x: x
    with pytest.raises(AtomError, match="replaced by another library"):
        adopt(hooked)


def test_layers_of_other_libraries_are_left_out_by_name():
    from transformers.pytorch_utils import Conv1D

    class Scaled(nn.Linear):
        """A subclass whose forward may do anything."""

    parametrized = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    model = nn.Sequential(Conv1D(4, 4), Scaled(4, 4), parametrized, nn.Linear(4, 4))
    notes = [row.note for row in inject(model, AtomConfig("coefficients")).report()]
    assert notes[:3] == [
        "left out: Conv1D is a layer of another library",
        "left out: Scaled is a layer of another library",
        "left out: its weight is computed from others (weight_norm, pruning?)",
    ]


@pytest.mark.parametrize("lazy", [nn.LazyLinear(4), nn.LazyConv2d(4, 3)])
def test_layers_without_weights_are_refused(lazy):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), lazy)
    with pytest.raises(AtomError, match="no weights yet; run it once before injecting"):
        inject(model, AtomConfig("full"))
    assert type(model[0]) is nn.Conv2d
    assert model[0].weight.requires_grad
