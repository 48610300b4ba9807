"""A file is written whole or not at all."""

import pytest
from tiny.limits import little_room

from sdatoms import read_atoms
from sdatoms.storage import write_whole

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_failing_write_leaves_the_old_file_whole(tmp_path, make_file):
    path = make_file()
    before = path.read_bytes()
    with little_room(len(before) // 2), pytest.raises(OSError, match="too large"):
        read_atoms(path).save(path)

    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
