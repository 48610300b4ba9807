"""Kept pictures are found again by what they show and by what made them."""

from dataclasses import replace

import pytest

from sdatoms import AtomError


def test_history_is_found_by_atom_file_words_and_seed(studio, paint, order):
    kept = paint(replace(order, prompt="a zebra", seed=77, adapters=(("dog", 0.5),)))[0]
    for search in ("zebra", "ZEBRA dog", "77", kept.recipe.adapters[0].sha256[:10]):
        assert studio.history.list(search)[0].id == kept.id
    assert studio.history.list("zebra ink") == []
    assert studio.history.find(kept.id) == kept
    for id in ("../../etc/passwd", "2026-01-01/1", "", kept.id + "0"):
        with pytest.raises(AtomError, match="in the history"):
            studio.history.find(id)


def test_a_picture_that_is_gone_hides_no_other(studio, paint):
    kept = paint()[0]
    gone = kept.path.with_name("1.png")
    gone.symlink_to(kept.path.with_name("nothing.png"))
    assert kept.id in {found.id for found in studio.history.list()}
    with pytest.raises(AtomError, match="in the history"):
        studio.history.find(f"{kept.path.parent.name}/1")
    gone.unlink()
