"""Subjects in scenes: what is trained on is not asked for, and prompts say what they ask for."""

from bundled.base_data import read_held_out
from bundled.modifiers import KINDS, holds_held_out_pair
from bundled.scene_subjects import SCENE_SUBJECTS, SETTINGS, TRAINED, make_wish
from bundled.scenes import render

from sdatoms.evaluation.truth import list_truths


def test_settings_ask_for_every_kind_and_for_pairs_but_never_for_what_is_trained_on():
    kinds = [[kind for kind, _ in scene.modifiers] for scene in SETTINGS]
    assert {k[0] for k in kinds if len(k) == 1} == set(KINDS)
    assert sum(len(k) == 2 for k in kinds) >= 5 and not SETTINGS[0].modifiers
    assert len(set(SETTINGS)) == len(SETTINGS) >= 21 and not set(SETTINGS) & set(TRAINED)


def test_no_scene_trained_on_hides_the_subject_or_holds_a_held_out_pair():
    assert len(TRAINED) == 5
    for scene in TRAINED:
        assert not (scene.style or scene.turned or scene.colour or scene.size)
    assert not any(holds_held_out_pair(scene.modifiers) for scene in (*TRAINED, *SETTINGS))


def test_the_bundled_ones_are_those_that_the_script_makes():
    assert list_truths() == sorted(SCENE_SUBJECTS)
    names = {word for name in read_held_out() for word in name.split("_")}
    words = {"monkey": "see"}  # its emoji is called "see no evil"
    assert {words.get(name, name) for name in SCENE_SUBJECTS} <= names


def test_a_wish_is_the_rendering_of_its_sentence(gallery):
    for scene in SETTINGS:
        if scene.second:
            continue  # a thing that this gallery has not
        wish = make_wish(gallery, 0, scene, "cat", trigger="sks")
        assert wish.modifiers == dict(scene.modifiers) and "sks cat" in wish.prompt
        assert wish.picture == render(gallery.pictures[0], scene)
        assert (
            wish.group
            == ("plain", *(m[0] for m in scene.modifiers), "pair")[
                len(scene.modifiers) if len(scene.modifiers) < 2 else -1
            ]
        )
