"""Settings given in Python are of the kinds that flags and files make them."""

from pathlib import Path

import numpy as np
import pytest

from sdatoms import AtomError, TrainConfig
from sdatoms.training.kinds import check_kinds


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_train_steps": "5"}, "--max_train_steps is '5'; it takes a whole number"),
        ({"max_train_steps": 5.0}, "--max_train_steps is 5.0; it takes a whole number"),
        ({"max_train_steps": True}, "--max_train_steps is True; it takes a whole number"),
        ({"max_train_steps": None}, "--max_train_steps is None; it takes a whole number"),
        ({"learning_rate": "1e-3"}, "--learning_rate is '1e-3'; it takes a number"),
        ({"instance_data_dir": 5}, "--instance_data_dir is 5; it takes a text"),
        ({"max_train_steps": np.int64(5)}, "--max_train_steps is .*5.*; it takes a whole number"),
        ({"use_ema": 1}, "--use_ema is 1; it takes True or False"),
        ({"validation_prompts": "a dog"}, "--validation_prompts is 'a dog'; it takes a tuple of"),
        ({"validation_prompts": (1,)}, r"--validation_prompts is \(1,\); it takes a tuple of"),
        ({"atom_variant": ["atoms"]}, r"--atom_variant is \['atoms'\]; it takes atoms"),
    ],
)
def test_another_kind_is_refused_in_a_sentence(settings, said):
    with pytest.raises(AtomError, match=f"^{said}"):
        TrainConfig(**settings)


def test_defaults_whole_rates_and_paths_fit():
    check_kinds(TrainConfig(learning_rate=1, seed=3))
    config = TrainConfig(instance_data_dir=Path("a") / "b", output_dir=Path("c"))
    assert (config.instance_data_dir, config.output_dir) == ("a/b", "c")
