"""Captions are drawn by rules, and a draw is a function of its key."""

import random

import pytest

from sdatoms.training.caption_rules import CaptionRules, draw_caption, list_captions

TAGS = ("sks dog", "on grass", "sun", "red ball")


def draw_many(captions, rules, count=60):
    return [draw_caption(captions, rules, random.Random(str(k))) for k in range(count)]


def test_plain_rules_change_nothing():
    text = "a sks dog,on  {grass|sand} [trigger]"
    assert (
        set(draw_many((text,), CaptionRules()))
        == {text}
        == set(list_captions((text,), CaptionRules()))
    )


@pytest.mark.parametrize("keep", range(5))
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_tags_move_and_drop_out_behind_those_that_are_kept(keep, dropout, shuffle):
    rules = CaptionRules(shuffle=shuffle, keep_tokens=keep, tag_dropout=dropout)
    found = [text.split(", ") for text in draw_many((", ".join(TAGS),), rules) if text]
    assert all(tags[:keep] == list(TAGS[:keep]) for tags in found)
    assert all(len(set(tags)) == len(tags) and set(tags) <= set(TAGS) for tags in found)
    assert ({len(tags) for tags in found} == {4}) == (not dropout or keep == 4)
    orders = {tuple(tags) for tags in found if len(tags) == 4}
    assert (len(orders) > 1) == (shuffle and keep < 3)
    listed = list_captions((", ".join(TAGS),), rules)
    assert (listed is None) == (len({tuple(tags) for tags in found}) > 1)


def test_one_of_several_captions_and_of_a_wildcard_is_drawn():
    lines = ("a {red|blue} dog", "a cat")
    assert set(draw_many(lines, CaptionRules())) == set(lines)
    assert set(draw_many(lines, CaptionRules(wildcards=True))) == {
        *("a red dog", "a blue dog", "a cat")
    }
    assert list_captions(lines, CaptionRules(wildcards=True)) is None
    assert list_captions(lines, CaptionRules(dropout=0.1)) == [*lines, ""]
    assert set(draw_many(lines, CaptionRules(dropout=1.0))) == {""}


def test_prefix_suffix_and_trigger_stand_where_they_belong():
    rules = CaptionRules(prefix="photo of", suffix="outside", trigger="sks")
    assert draw_many(("a [trigger] dog and [name]",), rules, 1) == [
        "photo of a sks dog and sks outside"
    ]
