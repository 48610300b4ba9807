"""A zip is read as its folder would be, and nothing of it leads out of its place."""

import random
import stat
import zipfile

import pytest
from tiny.pictures import save_pictures

from sdatoms import AtomError
from sdatoms.training import archives
from sdatoms.training.archives import extract_zip, unpack_zip
from sdatoms.training.inputs import check_inputs


@pytest.fixture
def packed(tmp_path):
    """A folder of pictures with what lies beside them, as a zip."""
    folder = save_pictures(tmp_path / "dog")
    (folder / "0.txt").write_text("a red wall")
    path = tmp_path / "dog.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"10_dog/{file.name}")
        archive.writestr("__MACOSX/10_dog/._0.png", b"x")
        archive.writestr("setup.exe", b"x")
    return path


def test_a_zip_is_read_as_a_folder(packed, train_config):
    found = check_inputs(train_config(instance_data_dir=str(packed)))
    assert [s.name for s in found.sources] == [f"10_dog/{k}.png" for k in range(4)]
    assert found.sources[0].prompt == "a red wall"
    assert "left in the zip dog.zip: setup.exe" in found.notes
    assert unpack_zip(packed)[0] == unpack_zip(packed)[0]


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/x.png", "C:\\x.png", "..\\x.png"])
def test_a_path_out_of_a_zip_is_refused(tmp_path, name):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(AtomError, match="leads out of it"):
        unpack_zip(path)
    assert {p.name for p in tmp_path.iterdir()} == {"bad.zip"}


def test_links_locks_lies_and_bombs(tmp_path, monkeypatch):
    path = tmp_path / "links.zip"
    link = zipfile.ZipInfo("0.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    folder, passed = unpack_zip(path)
    assert passed == ["0.png"] and not list(folder.iterdir())
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", b"\0" * 5000)
    monkeypatch.setattr(archives, "MAX_BYTES", 4999)
    with pytest.raises(AtomError, match="unpacks to more than"):
        unpack_zip(bomb)
    (tmp_path / "none.zip").write_bytes(b"PK no zip")
    with pytest.raises(AtomError, match="cannot be read"):
        unpack_zip(tmp_path / "none.zip")


@pytest.mark.parametrize("method", [0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_of_any_kind_is_one_sentence(tmp_path, method):
    """Bytes are changed, all over the file, or its end is missing."""
    draw, path = random.Random(method), tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("é/0.png", draw.randbytes(120))
        archive.writestr("0.txt", "a wall " * 20)
    whole, refused = path.read_bytes(), 0
    for number in range(300):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 2, 8))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.randrange(len(data)) if number % 10 == 0 else None])
        folder = tmp_path / f"{number}"
        folder.mkdir()
        try:
            extract_zip(path, folder)
        except AtomError as error:
            refused += 1
            assert "the zip 'damaged.zip'" in str(error) and "\n" not in str(error)
    assert refused > 150


@pytest.mark.parametrize("place", [10, 6])
def test_unknown_compressions_and_locks_are_one_sentence(tmp_path, place):
    """In the table at the end: the method of a file, or its flags."""
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", b"x")
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02") + place
    data[start : start + 2] = b"\x61\x00"
    path.write_bytes(data)
    with pytest.raises(AtomError, match=r"the zip 'damaged\.zip'"):
        unpack_zip(path)
