"""Captions name what the picture shows, in sentences."""

import random
import re

import pytest
from bundled.base_data import TRIGGERS, read_held_out
from bundled.captions import WORDINGS, describe, pluralize
from bundled.modifiers import VALUES, Scene


def words_for(kind, value):
    """Any of these in a caption names the modifier."""
    if kind in WORDINGS:
        return [w.replace("{}", "").strip() for w in WORDINGS[kind][value]]
    return [str(value)]


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k, vs in VALUES.items() for v in vs])
def test_every_wording_names_the_modifier(kind, value):
    scene = Scene(**{kind: value}, second="2" if kind == "relation" else None)
    for seed in range(40):
        caption = describe("cat face", scene, random.Random(seed), "tree")
        assert any(w in caption for w in words_for(kind, value)), caption
        assert re.search(r"cat faces?\b", caption) and "  " not in caption


def test_captions_name_every_modifier_of_a_scene(gallery):
    rng = random.Random(0)
    for _ in range(400):
        example = gallery.draw_example(rng)
        for kind, value in example.scene.modifiers:
            assert any(w in example.caption for w in words_for(kind, value)), example


def test_the_plainest_sentence():
    scene = Scene(colour="orange", worn="top hat", place="beach")
    assert describe("cat", scene) == "an orange cat wearing a top hat on the beach"
    assert (
        describe("cat", scene, trigger="sks") == "an orange sks cat wearing a top hat on the beach"
    )
    scene = Scene(number=3, background="orange", turned="upside down")
    assert describe("fox", scene) == "three upside down foxes on an orange background"
    scene = Scene(relation="next to", second="x", style="line art")
    assert describe("owl", scene, second="apple") == "an owl next to an apple, as line art"


def test_three_in_ten_captions_have_a_trigger():
    rng = random.Random(0)
    captions = [describe("cat", Scene(colour="red"), rng) for _ in range(1000)]
    share = sum(any(t in c.split() for t in TRIGGERS) for c in captions) / 1000
    assert 0.25 < share < 0.35


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("cat face", "cat faces"),
        ("face with tears of joy", "faces with tears of joy"),
        ("cherry", "cherries"),
        ("church", "churches"),
        ("octopus", "octopuses"),
        ("sunglasses", "sunglasses"),
        ("man", "men"),
        ("key", "keys"),
    ],
)
def test_plurals(name, many):
    assert pluralize(name) == many


def test_the_held_out_list_is_read():
    assert {"octopus", "penguin", "crown"} <= read_held_out()
