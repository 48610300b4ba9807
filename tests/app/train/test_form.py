"""What a visitor may set of the trainer, field by field."""

from dataclasses import fields

import gradio as gr
import pytest
from sdatoms_app.train.form import (
    FIRST,
    PRESETS,
    build_fields,
    change_preset,
    check_settings,
    list_settings,
)
from sdatoms_app.train.offered import CAPS, CHOICES, GROUPS, HIDDEN, PLAIN

import sdatoms
from sdatoms.training.config import TrainConfig


def test_every_field_of_the_trainer_is_offered_or_hidden_on_purpose():
    """Whoever adds a setting decides here whether visitors may choose it, and how far."""
    offered = [name for names in GROUPS.values() for name in names]
    assert len(offered) == len(set(offered))
    assert {*offered, *HIDDEN} == {field.name for field in fields(TrainConfig)}
    assert not set(offered) & set(HIDDEN) and all(HIDDEN.values())
    kinds = list_settings()
    assert set(kinds) == set(offered) >= {*PLAIN, *CHOICES}
    assert {name for name, kind in kinds.items() if kind is int} == set(CAPS)


def test_every_widget_shows_what_the_first_preset_does():
    """What a form says that nobody touched is what the trainer does with that preset."""
    with gr.Blocks():
        widgets = build_fields()
    assert set(widgets) == set(list_settings()) - set(PLAIN)
    untouched = check_settings({name: widget.value for name, widget in widgets.items()})
    assert TrainConfig(**untouched) == TrainConfig(**PRESETS[FIRST])


def test_samples_take_no_more_steps_than_their_sampler():
    given = {"validation_scheduler": "LCM", "num_inference_steps": 60}
    with pytest.raises(sdatoms.AtomError, match="LCM"):
        check_settings(given)
    assert check_settings(given | {"num_inference_steps": 50})


@pytest.mark.parametrize("name", CAPS)
def test_whole_numbers_have_an_end(name):
    with pytest.raises(sdatoms.AtomError, match=f"{name} is {CAPS[name] + 1}; it takes at most"):
        check_settings({name: CAPS[name] + 1})


@pytest.mark.parametrize("name", [*CHOICES, "loss_type", "load_in", "atom_variant"])
def test_words_are_those_offered(name):
    with pytest.raises(sdatoms.AtomError, match=name):
        check_settings({name: "torch.optim.SGD"})


@pytest.mark.parametrize(
    "name",
    [
        "output_dir",
        "instance_data_dir",
        "class_data_dir",
        "pretrained_model_name_or_path",
        "revision",
        "variant",
        "resume_from_checkpoint",
        "--output_dir=/etc",
        "nonsense",
    ],
)
def test_what_is_the_operators_cannot_be_set(name):
    assert name not in list_settings()
    with pytest.raises(sdatoms.AtomError, match="no setting"):
        check_settings({name: "/etc"})


@pytest.mark.parametrize(
    "values",
    [
        {"max_train_steps": 0},
        {"max_train_steps": "many"},
        {"learning_rate": float("inf")},
        {"atom_variant": "lora"},
        {"resolution": 63},
        {"instance_prompt": "x" * 2001},
    ],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(sdatoms.AtomError):
        check_settings(values)


@pytest.mark.parametrize("name", ["max_train_steps", "learning_rate", "seed"])
@pytest.mark.parametrize(
    "value", [10**400, -(10**400), float("nan"), "nan", "9" * 400, 1e300, [], {}, ["a"]], ids=str
)
def test_values_of_any_kind_are_refused_in_a_sentence(name, value):
    with pytest.raises(sdatoms.AtomError, match=name) as caught:
        check_settings({name: value})
    assert len(str(caught.value)) < 250


def test_settings_come_as_the_trainer_types_them():
    values = {"max_train_steps": 5.0, "learning_rate": 1, "num_atoms": None, "block_view": ""}
    checked = check_settings(values | {"instance_prompt": '"; touch pwned; "'})
    assert checked == {
        "max_train_steps": 5,
        "learning_rate": 1.0,
        "instance_prompt": '"; touch pwned; "',
    }
    assert all(check_settings(preset) for preset in PRESETS.values())


def test_presets_that_keep_the_class_read_it_from_the_prompt():
    chosen = change_preset("Pet", {"instance_prompt": "a sks cat"})
    assert chosen["with_prior_preservation"] and chosen["class_prompt"] == "a cat"
    mine = {"instance_prompt": "a sks cat", "with_prior_preservation": False}
    assert not change_preset("Pet", mine)["with_prior_preservation"]
    assert "class_prompt" not in change_preset("Quick", {"instance_prompt": "a sks cat"})
