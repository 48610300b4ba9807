"""True pictures: written and read the same, found by the prompt, and only where they are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny.pictures import draw_noise

from sdatoms import AtomError
from sdatoms.evaluation import truth as module
from sdatoms.evaluation.probe import load_probe
from sdatoms.evaluation.truth import (
    KNOWN,
    Truth,
    Wish,
    choose_prompts,
    find_truth,
    list_truths,
    read_truth,
    write_truth,
)
from sdatoms.storage import find_assets, list_subjects, read_subject

GROUPS = (
    *("colour", "background", "place", "worn", "number", "size", "relation", "turned", "style"),
    "pair",
)


@pytest.fixture
def truth():
    plain, *others = draw_noise(((64, 64),) * 9)
    wishes = [
        Wish(f"a sks cat {n}", "place", {"place": "beach"}, p, plain, "a cat")
        for n, p in enumerate(others)
    ]
    return Truth("cat", (Wish("a sks cat", "plain", {}, plain, plain, "a cat"), *wishes))


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_what_was_written_is_read_again_to_the_pixel(truth, tmp_path, monkeypatch):
    write_truth(truth, tmp_path / "truth")
    monkeypatch.setattr(module, "find_assets", lambda: tmp_path)
    again = read_truth("cat")
    assert list_truths() == ["cat"]
    for one, other in zip(truth.wishes, again.wishes, strict=True):
        assert same(one.picture, other.picture) and same(one.plain, other.plain)
        assert replace(one, picture=None, plain=None) == replace(other, picture=None, plain=None)


def test_damaged_or_missing_ones_are_refused(truth, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_assets", lambda: tmp_path)
    with pytest.raises(AtomError, match=r"no true pictures of '\.\./cat'"):
        read_truth("../cat")
    write_truth(truth, tmp_path / "truth")
    path = tmp_path / "truth" / "cat.json"
    for text in ("[", "[{}]", path.read_text().replace('"cell": 8', '"cell": 80')):
        path.write_text(text)
        with pytest.raises(AtomError, match="cannot be read"):
            read_truth("cat")


def test_a_folder_has_them_when_it_names_bundled_ones(tmp_path):
    assert find_truth(None) is find_truth(tmp_path) is None
    about = tmp_path / "subject.json"
    for text in ("{", "[]", "{}", '{"truth": "../robot"}', '{"truth": ["robot"]}', '{"truth": 3}'):
        about.write_text(text)
        assert find_truth(tmp_path) is None, text
    about.write_text('{"truth": "robot"}')
    assert find_truth(tmp_path).name == "robot"


def test_prompts_are_those_of_the_truth_where_the_trigger_is_its_own(truth):
    assert choose_prompts(truth, "a sks cat") == [f"a sks cat {n}" for n in range(8)]
    assert choose_prompts(truth, "a sks cat", ("place",)) == ["a sks cat 0"]
    assert choose_prompts(truth, "a ohwx cat")[0].startswith("a ohwx cat, ")
    assert len(choose_prompts(None, "a sks cat")) == 5
    assert choose_prompts(None, "") == []


def test_at_least_six_subjects_have_five_scenes_and_twenty_prompts_of_every_kind():
    assert len(list_truths()) >= 6
    for name in list_truths():
        folder, about = read_subject(name)
        assert about["truth"] == name and len(list(folder.glob("*.png"))) == 5
        assert (folder / "LICENSE").is_file() and "Apache" in about["licence"]
        wishes = read_truth(name).wishes
        assert wishes[0].prompt == about["instance_prompt"] and not wishes[0].modifiers
        assert {wish.group for wish in wishes} == {"plain", *GROUPS}
        prompts = {wish.prompt for wish in wishes}
        assert len(prompts) == len(wishes) >= 21 and all("sks" in p for p in prompts)
        captions = {path.read_text().strip() for path in folder.glob("*.txt")}
        assert len(captions) == 5 and not captions & prompts


def test_the_nth_prompt_of_every_subject_asks_for_the_same():
    asked = lambda name: [(w.group, w.modifiers) for w in read_truth(name).wishes]
    assert all(asked(name) == asked(KNOWN) for name in list_truths())


def test_the_probe_knows_all_that_is_asked_for():
    values = load_probe().values
    for wish in read_truth(KNOWN).wishes:
        assert all(value in values[kind] for kind, value in wish.modifiers.items())


def test_the_older_kinds_of_task_are_still_there():
    assert {"cat", "octopus", "penguin", "ink", "clay"} <= set(list_subjects())
    sizes = [path.stat().st_size for path in (find_assets() / "truth").iterdir()]
    assert max(sizes) < 80_000 and sum(sizes) < 65_000 * len([*list_truths(), KNOWN])
    json.loads((find_assets() / "truth" / "known.json").read_text())
