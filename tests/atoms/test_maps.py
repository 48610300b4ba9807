"""ΔD is formed in one way, whether a module trains it or a file holds it."""

import pytest
import torch

from sdatoms.atoms.decompose import View, fit_encoder, measure_gram
from sdatoms.atoms.deltas import AtomDelta, ChannelDelta, OvercompleteDelta
from sdatoms.atoms.maps import LayerMap

VIEW = View("spatial", (6, 4, 3, 3))
KINDS = {
    "atoms": AtomDelta,
    "overcomplete": lambda view, encoder: OvercompleteDelta(view, encoder, 3),
    "channel": ChannelDelta,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_the_delta_of_the_module_that_trained_it(kind, rng):
    weight = torch.randn(VIEW.shape, generator=rng)
    delta = KINDS[kind](VIEW, fit_encoder(measure_gram(weight, VIEW), 5))
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    found = LayerMap("spatial", (1, 1), 1, (3, 3), delta.state_dict())
    assert found.delta.dtype == torch.float64
    torch.testing.assert_close(found.delta.float(), delta.delta_atoms())
    torch.testing.assert_close(found.transform.float(), delta.transform())
    assert found.channels == (None if kind == "atoms" else VIEW.channels)
