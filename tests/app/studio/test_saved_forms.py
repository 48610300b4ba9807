"""Saved forms have plain names and nothing else."""

import pytest
from sdatoms_app.generate.form import DEFAULTS
from sdatoms_app.studio.saved_forms import SavedForms

from sdatoms import AtomError


def test_presets_are_saved_under_plain_names_only(tmp_path):
    presets = SavedForms(tmp_path / "presets")
    settings = DEFAULTS | {"adapters": []}
    presets.save("My preset_1", settings)
    assert presets.list() == ["My preset_1"] and presets.load("My preset_1") == settings
    for name in ("../x", "/etc/x", "a\0b", "CON", "x" * 41, "-rf", "", "ｘ", "a/b", "a.b"):
        with pytest.raises(AtomError, match="cannot be called"):
            presets.save(name, settings)
    (presets.folder / "bad.json").write_text("[1]")
    with pytest.raises(AtomError, match="damaged"):
        presets.load("bad")
    with pytest.raises(AtomError, match="there is no preset"):
        presets.load("other")
    presets.delete("My preset_1")
    assert presets.list() == ["bad"]
