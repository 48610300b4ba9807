"""Laws of the settings: refused by name, and the same after a trip through a file."""

import json
import re
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
        ({"num_inner_atoms": 0}, "num_inner_atoms is 0"),
        ({"num_inner_atoms": 2**63}, "num_inner_atoms is 9223372036854775808; it takes at most"),
        ({"seed": None}, "seed is None"),
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


def test_numbers_nobody_gave_read_as_numbers_and_stay_open():
    open_numbers = AtomConfig()
    assert (open_numbers.num_inner_atoms, open_numbers.block_size) == (3, 4)
    assert open_numbers == AtomConfig(num_inner_atoms=None, block_size=None)
    assert hash(open_numbers) == hash(AtomConfig())
    assert open_numbers.may_lower("block_size")
    given = AtomConfig(block_size=4)
    assert given.block_size == 4
    assert not given.may_lower("block_size")
    assert given != open_numbers  # a small layer gets smaller blocks from the one only


@pytest.mark.parametrize("settings", [{}, {"num_inner_atoms": 3}, {"block_size": 4, "seed": 2}])
def test_what_is_equal_asks_for_the_same_layers(make_convnet, settings):
    one, other = AtomConfig("full", **settings), AtomConfig(**{"variant": "full"} | settings)
    assert one == other
    assert hash(one) == hash(other)
    assert inject(make_convnet(), one).report() == inject(make_convnet(), other).report()


def test_stored_configs_open_as_they_were_meant():
    """Numbers and the names of those that were open, as every file so far holds them; files older
    than that entry hold numbers that stand."""
    stored = {"variant": "full", "num_inner_atoms": 3, "block_size": 4}
    both = ["num_inner_atoms", "block_size"]
    assert AtomConfig.from_dict(stored | {"defaults": both}) == AtomConfig("full")
    held = AtomConfig.from_dict(stored)
    assert held == AtomConfig.from_dict(stored | {"defaults": []})
    assert not held.may_lower("block_size")
    assert AtomConfig().to_dict()["block_size"] == 4
    assert AtomConfig().to_dict()["defaults"] == both


def test_replacing_one_number_leaves_the_other_open():
    changed = replace(AtomConfig(), block_size=2)
    assert changed == AtomConfig(block_size=2)
    assert changed.may_lower("num_inner_atoms")


def test_products_have_a_block_side_of_their_own():
    product = AtomConfig("coefficients", block_form="product")
    assert product.block_size == 16 and product.may_lower("block_size")
    assert AtomConfig.from_dict(product.to_dict()) == product
    assert not AtomConfig("coefficients", block_form="product", block_size=16).may_lower(
        "block_size"
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"block_form": "product", "decomposition": "sparse"}, "decomposition 'sparse'"),
        ({"block_form": "product", "block_atoms": 3}, "block_atoms is 3"),
        ({"block_form": "product", "block_share": 0.1}, "block_share is 0.1"),
        ({"block_factors": "each"}, "block_form 'map' has no place"),
        ({"block_form": "kron"}, "map | product | shared"),
    ],
)
def test_what_a_product_has_no_place_for_is_refused(settings, named):
    with pytest.raises(AtomError, match=re.escape(named)):
        AtomConfig("coefficients", **settings)
