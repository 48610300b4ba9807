"""The settings of atoms are one list: every command offers them, and each reaches the layers."""

import argparse
from dataclasses import fields, replace

import pytest

from sdatoms import AtomConfig, AtomError, TrainConfig, inject
from sdatoms.atoms.config import ATOM_FLAGS, read_atom_flags
from sdatoms.classifiers.finetune import add_finetune
from sdatoms.classifiers.finetune import make_atom_config as make_finetune_config
from sdatoms.cli.inject import add_inject
from sdatoms.cli.train import add_train
from sdatoms.settings import build_config, list_flags
from sdatoms.training.config import make_atom_config

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "atom_variant": "full",
    "atom_decomposition": "sparse",
    "num_atoms": 2,
    "num_inner_atoms": 1,
    "block_atoms": 3,
    "block_share": 0.05,
    "block_size": 2,
    "block_view": "channel",
    "block_form": "product",
    "block_factors": "each",
    "sparsity": 0.4,
}
"""Flag → a value other than its default."""
BESIDE = {
    "sparsity": {"atom_decomposition": "sparse"},
    "block_factors": {"block_form": "product"},
}
"""Flags that matter beside another only."""


@pytest.fixture
def commands():
    """Command → its parser, and the config its parsed flags ask for."""

    def parse(add):
        parser = argparse.ArgumentParser(prog="x")
        add(parser)
        return parser

    return {
        "inject": (parse(add_inject), lambda args: AtomConfig(**read_atom_flags(vars(args)))),
        "train": (
            parse(add_train),
            lambda args: make_atom_config(
                build_config(TrainConfig, {k: v for k, v in vars(args).items() if k in NAMES}, "")
            ),
        ),
        "finetune": (
            parse(add_finetune),
            lambda args: replace(make_finetune_config(args, 0), variant=args.method),
        ),
    }


NAMES = {field.name for field in fields(TrainConfig)}


def spell(command, settings):
    words = [str(word) for flag, value in settings.items() for word in (f"--{flag}", value)]
    if command != "finetune":
        return words
    words = ["--method" if word == "--atom_variant" else word for word in words]
    return ["--model", "m", "--data", "d", *words]


def test_every_setting_is_tried():
    assert set(SETTINGS) == set(ATOM_FLAGS) <= NAMES
    defaults = AtomConfig()
    for flag, value in SETTINGS.items():
        assert getattr(defaults, ATOM_FLAGS[flag]) != value


@pytest.mark.parametrize("command", ["inject", "train", "finetune"])
def test_every_command_offers_every_setting(commands, command):
    offered = list_flags(commands[command][0])
    missing = {f"--{flag}" for flag in ATOM_FLAGS} - offered
    assert missing == ({"--atom_variant"} if command == "finetune" else set())


@pytest.mark.parametrize("command", ["inject", "train", "finetune"])
@pytest.mark.parametrize("flag", SETTINGS)
def test_a_setting_reaches_the_layers(commands, command, flag, make_convnet):
    plain = {"atom_variant": "overcomplete" if flag == "atom_variant" else "full"}
    plain |= BESIDE.get(flag, {})
    parser, configure = commands[command]
    configs = [
        configure(parser.parse_args(spell(command, settings)))
        for settings in (plain, plain | {flag: SETTINGS[flag]})
    ]
    wanted = AtomConfig(**read_atom_flags(plain | {flag: SETTINGS[flag]}))
    assert configs[1] == wanted
    rows = [inject(make_convnet(), config).report() for config in configs]
    assert rows[0] != rows[1]


def test_settings_that_exclude_each_other_are_refused_by_name(commands):
    parser, configure = commands["train"]
    args = parser.parse_args(["--block_atoms", "2", "--block_share", "0.1"])
    with pytest.raises(AtomError, match="block_atoms is 2 beside a block_share"):
        configure(args)
