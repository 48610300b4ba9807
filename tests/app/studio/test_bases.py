"""The bases that may be picked are the operator's choice."""

import shutil

import pytest
from sdatoms_app.studio.bases import Bases

from sdatoms import AtomError


def test_bases_are_the_operators_choice(tiny_base, adapters_dir, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    shutil.copy(adapters_dir / "ink.safetensors", tmp_path / "ink.safetensors")
    (tmp_path / "single.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    shutil.copytree(tiny_base, tmp_path / "second")
    bases = Bases(str(tiny_base), tmp_path)
    ids = [choice.id for choice in bases.list()]
    assert ids[0] == "tiny" and "models/second" in ids and "models/single.safetensors" in ids
    assert not any("ink" in id or "notes" in id for id in ids)
    assert bases.find_side("models/second") == 64 and bases.find_side("nothing") == 512
    for id in ("second", "models/../second", "runwayml/sd", str(tmp_path / "second")):
        with pytest.raises(AtomError, match="hub ids are not taken here"):
            bases.find(id)
    assert Bases(None, None, hub=True).find("owner/name").where == "owner/name"
    with pytest.raises(AtomError, match="no base"):
        Bases(None, None, hub=True).find("owner/../name")
