"""A file is written whole or not at all."""

import resource

import pytest

from sdatoms import read_atoms
from sdatoms.storage import write_whole

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_failing_write_leaves_the_old_file_whole(tmp_path, make_file):
    path = make_file()
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            read_atoms(path).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
