"""What a checkpoint holds comes back to the bit, without a pickle."""

import json
import math

import pytest
import torch

from sdatoms.training.checkpoints import pack_state, unpack_state


def test_nested_states_come_back_as_they_were():
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp": torch.randn(2, 3)}, 1: {}},
        "groups": [{"betas": (0.9, 0.99), "lr": 1e-3 / 3, "name": "x", "params": [0, 1]}],
        "rest": [None, True, 7, math.inf, -0.0],
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": {},
        "tensor": {"tensor": "t00000"},
    }
    tensors, text = pack_state(state)
    json.loads(text)
    back = unpack_state(tensors, text)
    assert torch.equal(back["state"][0].pop("exp"), state["state"][0].pop("exp"))
    assert torch.equal(back["bytes"], state["bytes"]) and back["bytes"].dtype == torch.uint8
    back["bytes"] = state["bytes"] = None
    assert repr(back) == repr(state)


def test_what_is_no_state_is_refused():
    with pytest.raises(TypeError, match="cannot hold a function"):
        pack_state({"f": repr and (lambda: None)})
