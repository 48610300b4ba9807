"""Laws of the settings: refused by name, and the same after a trip through a file."""

import json
from dataclasses import replace

import pytest

from sdatoms import AtomConfig, AtomError, inject

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"variant": "lora"}, r"variant is 'lora'; it takes atoms \| overcomplete"),
        ({"decomposition": "qr"}, "decomposition is 'qr'"),
        ({"block_view": "spatial"}, "block_view is 'spatial'"),
        ({"num_atoms": 0}, "num_atoms is 0; it takes a whole number of at least 1"),
        ({"num_inner_atoms": None}, "num_inner_atoms is None"),
        ({"block_atoms": -1}, "block_atoms is -1"),
        ({"block_share": 0}, "block_share is 0; it takes a number above 0 and at most 1"),
        ({"block_share": 1.5}, r"block_share is 1\.5"),
        ({"block_share": float("nan")}, "block_share is nan"),
        ({"block_share": True}, "block_share is True"),
        (
            {"block_share": 0.1, "block_atoms": 2},
            "block_atoms is 2 beside a block_share of 0.1; one of",
        ),
        ({"block_size": True}, "block_size is True"),
        ({"block_size": 2.5}, r"block_size is 2\.5"),
        ({"seed": -1}, "seed is -1"),
        ({"sparsity": 0}, "sparsity is 0; it takes a number above 0 and below 1"),
        ({"sparsity": 1.0}, r"sparsity is 1\.0"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"sparsity": "0.1"}, "sparsity is '0.1'"),
        ({"sparsity": True}, "sparsity is True"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": 5}, "target_modules is 5"),
        ({"defaults": ["seed"]}, "defaults names 'seed'"),
        ({"num_atom": 4}, "no setting 'num_atom'; did you mean 'num_atoms'?"),
        ({"zzz": 4}, "no setting 'zzz'; known are variant"),
    ],
)
def test_settings_are_refused_by_name(settings, sentence):
    with pytest.raises(AtomError, match=sentence):
        AtomConfig.from_dict(settings)


@pytest.mark.parametrize(
    "config",
    [
        AtomConfig(),
        AtomConfig("atoms", "sparse", num_atoms=12, sparsity=0.3),
        AtomConfig("full", num_atoms=4, num_inner_atoms=3, block_size=2, block_view="channel"),
        AtomConfig("coefficients", block_size=16, block_share=0.1),
        AtomConfig(target_modules=["a.*", "b"], exclude_modules="c", block_atoms=7, seed=9),
    ],
)
def test_a_config_survives_json(config):
    back = AtomConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert AtomConfig(**config.to_dict()) == config


def test_a_config_from_a_file_asks_for_the_same_layers(make_convnet):
    first = inject(make_convnet(), AtomConfig("full"))
    config = AtomConfig.from_dict(json.loads(json.dumps(first.config.to_dict())))
    second = inject(make_convnet(), config)

    assert second.report() == first.report()
    explicit = inject(make_convnet(), replace(config, num_inner_atoms=4))
    assert explicit.config.may_lower("block_size")
    assert not explicit.config.may_lower("num_inner_atoms")
    assert explicit.report()[0].parameters > first.report()[0].parameters
