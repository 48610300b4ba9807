"""A file is written whole or not at all, and a hub is asked only where there is one."""

import os
import socket
import stat

import pytest
from huggingface_hub import constants
from tiny.limits import little_room

from sdatoms import read_atoms
from sdatoms.storage import is_out_of_reach, reach_hub, write_whole

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


def find(*_, **__):
    return []


def lose_first(find_nothing):
    answers = iter([find_nothing])
    return lambda *_, **__: next(answers, find)()


@pytest.mark.parametrize(
    ("name", "found", "proxy", "out"),
    [
        ("owner/none", lambda nothing: nothing, "", True),
        ("owner/none", lambda nothing: find, "", False),
        ("owner/none", lambda nothing: nothing, "http://proxy:3128", False),
        ("owner/none", lose_first, "", False),
        ("here", lambda nothing: nothing, "", False),
    ],
    ids=["offline", "online", "behind a proxy", "an answer is lost", "a folder"],
)
def test_a_hub_is_out_of_reach_where_its_name_is_nobodys(
    name, found, proxy, out, tmp_path, monkeypatch, offline
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", found(offline))
    monkeypatch.setenv("https_proxy", proxy)
    assert is_out_of_reach(name) == out
    with pytest.raises(KeyError), reach_hub(name):
        assert out == constants.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what the user asked for stays
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: 1 // 0)  # and nobody is asked
    with reach_hub(name):
        assert constants.HF_HUB_OFFLINE


def test_openings_side_by_side_leave_the_hub_as_it_was(monkeypatch, offline):
    one, two = reach_hub("owner/one"), reach_hub("owner/two")
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE
    two.__exit__(None, None, None)
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(socket, "getaddrinfo", find)
    with reach_hub("owner/one"):  # whose downloads another's lost answer does not end
        monkeypatch.setattr(socket, "getaddrinfo", offline)
        with reach_hub("owner/two"):
            assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "link to a pipe"])
def test_nothing_but_a_file_is_written_over(kind, tmp_path):
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe" if kind == "pipe" else path
        if kind != "pipe":
            path.symlink_to(tmp_path / "pipe")
    before = {p.name: p.lstat().st_mode for p in tmp_path.iterdir()}
    with pytest.raises(OSError, match="is a"):
        write_whole(path, b"new")
    assert {p.name: p.lstat().st_mode for p in tmp_path.iterdir()} == before


def test_a_file_is_as_open_as_its_owner_lets_new_ones_be(tmp_path):
    for mask, mode in ((0o077, 0o600), (0o022, 0o644), (0o002, 0o664)):
        former = os.umask(mask)
        try:
            write_whole(tmp_path / "a", b"a")
        finally:
            os.umask(former)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_every_name_that_a_folder_takes_is_written(tmp_path):
    for name in ("n" * 255, "ü" * 127, "𝄞" * 63):
        write_whole(tmp_path / name, b"a")
        assert [p.name for p in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
