"""A bundled subject is known again, and its samples are asked for what has a true picture."""

import pytest
from sdatoms_app.train.drafts import Draft
from sdatoms_app.train.subjects import (
    ask_known,
    draw_subjects,
    find_subject,
    list_digests,
    list_offered,
)
from tiny.pictures import save_pictures

from sdatoms.evaluation.truth import find_truth
from sdatoms.pictures import find_pictures
from sdatoms.storage import read_subject

SUBJECT, ABOUT = read_subject("hamburger")
ASKED = {"instance_prompt": ABOUT["instance_prompt"], "max_train_steps": 3}


@pytest.fixture
def draft(tmp_path):
    draft = Draft(tmp_path / "drafts")
    assert draft.add(find_pictures(SUBJECT)[0]) == []
    return draft


def test_every_subject_in_scenes_is_offered_and_known_by_its_pictures():
    assert "hamburger" in list_offered() and "clay" not in list_offered()
    for name, folder in list_offered().items():
        own = [digest for digest, subject in list_digests().items() if subject == name]
        assert len(own) == 5 and find_subject(own) == folder
        assert f'data-subject="{name}"' in draw_subjects()


def test_a_training_of_its_pictures_has_its_true_pictures(draft, tmp_path):
    (tmp_path / "run").mkdir()
    draft.fill(tmp_path / "run")
    assert find_truth(tmp_path / "run").name == "hamburger"


def test_a_picture_of_somebody_among_them_makes_it_another_subject(draft, tmp_path):
    draft.add(find_pictures(save_pictures(tmp_path / "mine", ((70, 70),)))[0])
    assert find_subject([picture.id for picture in draft.list()]) is None
    (tmp_path / "run").mkdir()
    draft.fill(tmp_path / "run")
    assert find_truth(tmp_path / "run") is None
    assert find_subject([]) is None


@pytest.mark.parametrize("wanted, each", [(4, 1), (5, 1), (6, 2), (0, 0)])
def test_samples_are_of_prompts_with_true_pictures(wanted, each):
    settings = ask_known(ASKED | {"num_validation_images": wanted}, SUBJECT)
    found = find_truth(SUBJECT).find(settings["validation_prompts"])
    assert len(found) == 5 and None not in found
    assert settings["num_validation_images"] == each
    assert settings["max_train_steps"] == 3


@pytest.mark.parametrize(
    "changes, folder",
    [
        ({"validation_prompt": "a sks hamburger in a box"}, SUBJECT),
        ({"instance_prompt": "a zwx burger"}, SUBJECT),
        ({}, None),
        ({}, read_subject("clay")[0]),
    ],
)
def test_what_was_asked_for_otherwise_stays(changes, folder):
    assert ask_known(ASKED | changes, folder) == ASKED | changes
