"""Scenes: the same in, the same out; what is held out stays out; what is asked for is seen."""

import random

import numpy as np
import pytest
from bundled.modifiers import HELD_OUT_PAIRS, VALUES, Scene, list_pairs
from bundled.places import paint_place
from bundled.scenes import render

EVERY = [(kind, value) for kind, values in VALUES.items() for value in values]


def paint(gallery, concept=0, seed=0, **modifiers):
    second = gallery.pictures[2] if "relation" in modifiers else None
    scene = Scene(**modifiers, second="2" if second else None)
    return np.asarray(render(gallery.pictures[concept], scene, seed, second), np.float32)


@pytest.mark.parametrize(("kind", "value"), EVERY)
def test_every_modifier_changes_the_picture_and_is_the_same_again(gallery, kind, value):
    plain, changed = paint(gallery), paint(gallery, **{kind: value})
    assert changed.shape == (64, 64, 3)
    assert np.abs(changed - plain).mean() > 4
    assert np.array_equal(changed, paint(gallery, **{kind: value}))


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_one_kind_differ_from_each_other(gallery, kind):
    shown = [paint(gallery, **{kind: value}) for value in VALUES[kind]]
    for i, a in enumerate(shown):
        assert all(np.abs(a - b).mean() > 1.5 for b in shown[:i])


def test_the_seed_moves_details_of_a_place_alone(gallery):
    assert np.array_equal(
        paint(gallery, seed=0, colour="red"), paint(gallery, seed=1, colour="red")
    )
    a, b = paint(gallery, seed=0, place="rain"), paint(gallery, seed=1, place="rain")
    assert 0 < np.abs(a - b).mean() < 20


def test_a_rendering_leaves_the_painted_place_as_it_was(gallery):
    before = np.asarray(paint_place("beach", 0)).copy()
    paint(gallery, place="beach", worn="top hat")
    assert np.array_equal(np.asarray(paint_place("beach", 0)), before)


def test_what_is_worn_stands_out_above_the_outline(gallery):
    """A hat reaches higher than the subject, glasses do not."""
    top = lambda x: np.flatnonzero((x < 250).any((1, 2)))[0]
    bare = 64 - 44  # where the subject begins that leaves room for a hat
    assert top(paint(gallery, worn="top hat")) < bare - 6
    assert top(paint(gallery, worn="sunglasses")) >= bare - 1


@pytest.mark.parametrize(
    ("modifiers", "message"),
    [
        ({"colour": "mauve"}, "one of red"),
        ({"place": "beach", "background": "red"}, "do not go together"),
        ({"style": "line art", "colour": "red"}, "do not go together"),
        ({"number": 2, "worn": "cap"}, "do not go together"),
        ({"relation": "above"}, "needs a second thing"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(modifiers, message):
    with pytest.raises(ValueError, match=message):
        Scene(**modifiers)


def test_a_relation_and_its_picture_come_together(gallery):
    with pytest.raises(ValueError, match="both or neither"):
        render(gallery.pictures[0], Scene(relation="above", second="2"))


def test_one_pair_in_ten_is_held_out_and_the_choice_is_fixed():
    pairs = list_pairs()
    assert len(HELD_OUT_PAIRS) == round(0.1 * len(pairs)) and set(pairs) >= HELD_OUT_PAIRS
    assert (("colour", "red"), ("background", "red")) not in pairs
    kinds = {frozenset((a[0], b[0])) for a, b in HELD_OUT_PAIRS}
    assert len(kinds) > 10


def test_training_never_draws_a_held_out_pair_and_the_test_always_does(gallery):
    rng = random.Random(0)
    holds = lambda e: any(set(pair) <= set(e.scene.modifiers) for pair in HELD_OUT_PAIRS)
    assert not any(holds(gallery.draw_example(rng)) for _ in range(1500))
    assert all(holds(gallery.draw_example(rng, kinds=2, held_out_pair=True)) for _ in range(50))


def test_draws_follow_the_seed_and_reach_every_value(gallery):
    rng = random.Random(3)
    examples = [gallery.draw_example(rng) for _ in range(3000)]
    again = random.Random(3)
    assert examples[:20] == [gallery.draw_example(again) for _ in range(20)]
    seen = {m for e in examples for m in e.scene.modifiers}
    assert seen == set(EVERY) - set().union(*gallery.unseen)
    counts = [len(e.scene.modifiers) for e in examples]
    assert set(counts) == {1, 2, 3}


def test_a_second_thing_is_another_one(gallery):
    rng = random.Random(0)
    related = [e for e in (gallery.draw_example(rng) for _ in range(500)) if e.scene.relation]
    assert related
    assert all(gallery.find(e.scene.second) != e.concept for e in related)
