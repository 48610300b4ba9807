"""Presets for real bases: every setting has its reason, and steps go by pictures."""

import pytest
from PIL import Image

from sdatoms.training.presets import PRESETS, expand_preset
from sdatoms.training.real_presets import REAL_PRESETS, UNMEASURED, Pace, count_pictures


@pytest.mark.parametrize("name", REAL_PRESETS)
def test_every_setting_has_a_reason_and_the_preset_says_that_it_is_not_measured(name):
    preset = REAL_PRESETS[name]
    assert preset.reasons.keys() == preset.settings.keys() == PRESETS[name].settings.keys()
    assert all(len(reason) > 10 for reason in preset.reasons.values())
    assert UNMEASURED in PRESETS[name].about


@pytest.mark.parametrize("name", REAL_PRESETS)
def test_subjects_train_what_won_on_the_bundled_base_and_a_style_what_won_on_styles(name):
    settings = REAL_PRESETS[name].settings
    won = PRESETS["style" if name.endswith("style") else "best"].settings
    looks = ("max_train_steps", "validation_steps", "checkpointing_steps")
    for setting, value in won.items():
        assert setting in ("learning_rate", "block_size", *looks) or settings[setting] == value


def test_every_base_has_every_kind_of_subject():
    names = [f"{b}-{s}" for b in ("sd15", "sdxl") for s in ("pet", "object", "face", "style")]
    assert list(REAL_PRESETS) == names


def test_steps_rise_with_pictures_between_their_bounds_and_end_on_a_sample():
    pace = Pace(100, 400, 1200)
    assert [pace.count_steps(n) for n in (0, 1, 4, 5, 12, 500)] == [400, 400, 400, 500, 1200, 1200]
    for preset in REAL_PRESETS.values():
        counts = [preset.pace.count_steps(n) for n in range(1, 200)]
        assert counts == sorted(counts) and counts[0] >= preset.pace.least
        assert not any(steps % preset.settings["validation_steps"] for steps in counts)


def test_steps_go_by_the_folder_and_what_is_given_wins(tmp_path):
    for k in range(9):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{k}.png")
    Image.new("L", (8, 8)).save(tmp_path / "0.mask.png")
    (tmp_path / "0.txt").write_text("a dog")
    assert count_pictures(str(tmp_path)) == 9
    given = {"instance_data_dir": str(tmp_path), "instance_prompt": "a sks dog"}
    assert expand_preset("sd15-pet", given)["max_train_steps"] == 900
    assert expand_preset("sd15-pet", given | {"max_train_steps": 7})["max_train_steps"] == 7
    assert expand_preset("sd15-pet", {})["max_train_steps"] == 500
    assert expand_preset("pet", given)["max_train_steps"] == 100  # the bundled base's own
