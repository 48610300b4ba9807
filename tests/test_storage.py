"""A file is written whole or not at all, and a hub is asked only where there is one."""

import socket

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


def find_nothing(*_, **__):
    raise socket.gaierror(-2, "Name or service not known")


def lose_first():
    answers = iter([find_nothing])
    return lambda *_, **__: next(answers, lambda: [])()


@pytest.mark.parametrize(
    ("name", "found", "proxy", "out"),
    [
        ("owner/none", find_nothing, "", True),
        ("owner/none", lambda *_, **__: [], "", False),
        ("owner/none", find_nothing, "http://proxy:3128", False),
        ("owner/none", lose_first(), "", False),
        ("here", find_nothing, "", False),
    ],
    ids=["offline", "online", "behind a proxy", "an answer is lost", "a folder"],
)
def test_a_hub_is_out_of_reach_where_its_name_is_nobodys(
    name, found, proxy, out, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", found)
    for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert is_out_of_reach(name) == out
    with pytest.raises(KeyError), reach_hub(name):
        assert out == constants.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what the user asked for stays
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: 1 // 0)  # and nobody is asked
    with reach_hub(name):
        assert constants.HF_HUB_OFFLINE


def test_openings_side_by_side_leave_the_hub_as_it_was(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
    for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    one, two = reach_hub("owner/one"), reach_hub("owner/two")
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE
    two.__exit__(None, None, None)
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with reach_hub("owner/one"):  # whose downloads another's lost answer does not end
        monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
        with reach_hub("owner/two"):
            assert not constants.HF_HUB_OFFLINE
