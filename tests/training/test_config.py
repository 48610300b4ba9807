"""Flags: what they take, what does not go together, and that files and help hold all of them."""

from dataclasses import asdict, fields

import pytest

from sdatoms import AtomConfig, AtomError
from sdatoms.cli.parser import LineParser
from sdatoms.settings import add_flags, build_config, read_config_file, read_field_help
from sdatoms.training.checks import MANY, RANGES
from sdatoms.training.config import TrainConfig
from sdatoms.training.run_folder import write_toml


def test_every_flag_has_one_line_of_help():
    texts = read_field_help(TrainConfig)
    for field in fields(TrainConfig):
        assert texts[field.name].endswith("."), field.name
        assert len(texts[field.name]) < 130, field.name


@pytest.mark.parametrize("name", RANGES)
def test_numbers_out_of_range_are_refused_by_name(name):
    least, most = RANGES[name]
    with pytest.raises(AtomError, match=f"--{name} is .*; it takes"):
        TrainConfig(**{name: least - 1})
    if most < float("inf"):
        with pytest.raises(AtomError, match=f"--{name} is .*; it takes"):
            TrainConfig(**{name: most * 2 + 1})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"with_prior_preservation": True}, "needs --class_prompt"),
        ({"prior_preservation_mode": "prediction"}, "needs --with_prior_preservation"),
        (
            {
                "prior_preservation_mode": "prediction",
                "with_prior_preservation": True,
                "class_prompt": "x",
                "class_data_dir": "y",
            },
            "--class_data_dir is not read",
        ),
        ({"prior_share": 0.25}, "--prior_share needs --prior_preservation_mode"),
        (
            {
                "prior_preservation_mode": "prediction",
                "with_prior_preservation": True,
                "class_prompt": "x",
                "prior_share": 0.25,
                "train_batch_size": 1,
            },
            "--prior_share 0.25 of batches of 1 is 0 rows",
        ),
        ({"use_8bit_adam": True, "optimizer": "adafactor"}, "name two optimizers"),
        ({"optimizer": "prodigy", "block_learning_rate": 1e-3}, "finds one rate for all"),
        ({"text_encoder_lr": 1e-3}, "--text_encoder_lr needs --train_text_encoder"),
        ({"early_stopping_patience": 2}, "--early_stopping_patience needs --best_metric"),
        ({"best_metric": "x", "validation_steps": 0}, "--best_metric is measured on samples"),
        ({"validation_prompt": "x", "validation_prompts": ("y",)}, "both name prompts"),
        (
            {"loss_type": "huber", "huber_schedule": "exponential", "huber_c": 2.0},
            "--huber_schedule exponential falls from 1",
        ),
        ({"mixed_precision": "fp8"}, "--mixed_precision is 'fp8'; it takes no | fp16 | bf16"),
        ({"resolution": 12}, "--resolution is 12; it takes a multiple of 8"),
        ({"learning_rate": 0.0}, "--learning_rate is 0.0; it takes a number above 0"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(flags, words):
    with pytest.raises(AtomError) as error:
        TrainConfig(**flags)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_flags_and_files_give_the_same_config(tmp_path):
    parser = LineParser(prog="train")
    add_flags(parser, TrainConfig)
    words = ["--validation_prompts", "a b", "c", "--optimizer_args", "x=1", "--ema_decay", "0.5"]
    config = build_config(TrainConfig, vars(parser.parse_args(words)), "the command line")
    assert (config.validation_prompts, config.optimizer_args) == (("a b", "c"), ("x=1",))
    path = tmp_path / "config.toml"
    path.write_text(write_toml(asdict(config)))
    assert build_config(TrainConfig, read_config_file(path), "the file") == config


@pytest.mark.parametrize("value", [3, ["a", 1], {"a": "b"}])
def test_lists_of_texts_are_checked(value):
    with pytest.raises(AtomError, match=r"validation_prompts is .* where a list of texts fits"):
        build_config(TrainConfig, {"validation_prompts": value}, "the file")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_trainer_passes_the_decomposition_on():
    from sdatoms.training.config import TrainConfig, make_atom_config

    config = make_atom_config(TrainConfig(atom_decomposition="sparse", num_atoms=12))
    assert (config.decomposition, config.num_atoms) == ("sparse", 12)


TEXTS = [f.name for f in fields(TrainConfig) if f.type in ("str", "str | None")]
WORDS = {
    *("instance_prompt", "class_prompt", "validation_prompt", "trigger", "initializer_concept"),
    *("caption_prefix", "caption_suffix", "caption_column", "image_column", "token_abstraction"),
    *("aspect_ratio_buckets", "optimizer", "lr_scheduler", "lr_step_rules", "best_metric"),
    *("validation_scheduler", "report_to"),
}
"""Flags whose text names no place."""


@pytest.mark.parametrize("name", sorted(set(TEXTS) - WORDS))
def test_no_flag_that_names_a_place_takes_what_no_path_holds(name):
    with pytest.raises(AtomError, match=f"--{name} is .*; no path holds a NUL"):
        TrainConfig(**{name: "a\0b"})


NUMBERS = [
    f.name
    for f in fields(TrainConfig)
    if f.type.split(" ")[0] in ("int", "float")
    and f.name not in {field.name for field in fields(AtomConfig)}
]


@pytest.mark.parametrize("name", sorted({*NUMBERS, "seed"} - {"prodigy_beta3"}))
def test_numbers_that_no_run_can_count_with_are_refused_in_a_short_sentence(name):
    for value in (10**400, 16**6000):
        with pytest.raises(AtomError, match=f"--{name} is ") as error:
            TrainConfig(**{name: value})
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", [n for n, r in RANGES.items() if r[1] == MANY])
def test_steps_may_be_as_many_as_any_run_takes(name):
    assert getattr(TrainConfig(best_metric="auto", **{name: MANY}), name) == MANY
    with pytest.raises(AtomError, match=f"--{name} is {MANY + 1}; it takes at most {MANY}"):
        TrainConfig(**{name: MANY + 1})
