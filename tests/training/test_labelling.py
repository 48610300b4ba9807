"""Captions and masks go into files that are one picture's alone; nothing of a person's is lost."""

import json
import os
import random

import pytest
from PIL import Image

from sdatoms import AtomError
from sdatoms.pictures import list_pictures, read_picture, read_sidecar
from sdatoms.training.folder import check_folder
from sdatoms.training.labelling import caption_pictures, mask_pictures
from sdatoms.training.masks import match_masks

OWN = ("dog.png", "dog.jpg", "Dog.png", "dog.png.png", "cat.png", "dog_mask.gif")
"""Names of pictures, some of which differ in suffix or capitals alone."""
BESIDE = {
    "txt": ("dog.txt", "dog.png.txt", "DOG.caption", "dog.jpg.txt", "cat.png.caption"),
    "mask.png": ("dog.mask.png", "dog.png.mask.png", "dog-masklabel.png", "masks/dog.jpg"),
}


def say(picture):
    """A caption that only one picture here has."""
    return f"a picture {picture.width} wide"


def cover(picture):
    return Image.new("L", picture.size, 255)


def lay(folder, names):
    """Pictures of these names, no two as wide."""
    folder.mkdir()
    for k, name in enumerate(names):
        Image.new("RGB", (20 + k, 20 + k), (9 * k, 0, 99)).save(folder / name)
    return folder


def read_widths(folder):
    return {path.name: read_picture(path).width for path in folder.iterdir() if path.name in OWN}


def read_masks(folder):
    """Picture → its mask, as trainings read them."""
    pictures, masks = list_pictures(folder)[0], list_pictures(folder / "masks")[0]
    return match_masks(pictures, masks)[1]


def test_pictures_that_share_a_stem_have_captions_and_masks_of_their_own(tmp_path):
    folder = lay(tmp_path / "dogs", ("dog.png", "dog.jpg", "cat.png"))
    assert all(row.made for row in caption_pictures(folder, say))
    assert all(row.made for row in mask_pictures(folder, cover))
    assert {p.name for p in folder.iterdir()} == {
        *("dog.png", "dog.jpg", "cat.png", "dog.png.txt", "dog.jpg.txt", "cat.txt"),
        *("dog.png.mask.png", "dog.jpg.mask.png", "cat.mask.png"),
    }
    for source in check_folder(folder, "").sources:
        assert source.prompt == f"a picture {source.size[0]} wide"
        assert source.mask and read_picture(source.mask).size == source.size
    for rows in (caption_pictures(folder, say), mask_pictures(folder, cover)):
        assert [(row.made, row.had) for row in rows] == [(False, True)] * 3


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", BESIDE)
def test_what_is_made_is_read_back_and_what_was_there_is_kept(tmp_path, what, overwrite):
    """Of any pictures with any files of a person beside them."""
    draw = random.Random(0)
    for number in range(12):
        folder = lay(tmp_path / f"{number}", draw.sample(OWN[:5], draw.randint(2, 5)))
        (folder / "masks").mkdir()
        (folder / "dog.mask").write_text("a note")
        for k, name in enumerate(draw.sample(BESIDE[what], draw.randint(1, 4))):
            if what == "txt":
                (folder / name).write_text(f"my words {k}")
            else:
                Image.new("L", (20, 20), 10 + k).save(folder / name)
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        widths = read_widths(folder)
        call = caption_pictures if what == "txt" else mask_pictures
        rows = list(call(folder, say if what == "txt" else cover, overwrite=overwrite))
        assert len(rows) == len(widths)
        history = folder / ".captions.jsonl"
        kept = history.read_text() if history.exists() else ""
        copies = {p.read_bytes() for p in folder.rglob(".earlier/*")}
        for path, data in before.items():
            if path.exists() and path.read_bytes() == data:
                continue
            assert overwrite and (data in copies or data.decode(errors="replace") in kept), path
        for path in (row.path for row in rows if row.made):
            if what == "txt":
                assert read_sidecar(path) == f"a picture {widths[path.name]} wide"
            else:
                assert read_picture(read_masks(folder)[path]).width == widths[path.name]


def test_names_that_differ_in_capitals_alone_are_left_with_a_word(tmp_path):
    folder = lay(tmp_path / "dogs", ("dog.png", "Dog.png"))
    if len(list(folder.iterdir())) == 1:
        pytest.skip("capitals are one here")
    held = sorted(folder.iterdir())
    for rows in (caption_pictures(folder, say), mask_pictures(folder, cover)):
        assert all("rename" in row.text and not (row.made or row.had) for row in rows)
    assert sorted(folder.iterdir()) == held


def test_a_caption_of_two_pictures_is_neither_written_over_nor_lost(tmp_path):
    folder = lay(tmp_path / "dogs", ("dog.png", "dog.jpg"))
    (folder / "dog.txt").write_text("mine")
    rows = list(caption_pictures(folder, say, overwrite=True))
    assert [row.made for row in rows] == [False] * 2
    assert "dog.txt is another picture's caption too; name it dog.jpg.txt" in rows[0].text
    assert {s.prompt for s in check_folder(folder, "").sources} == {"mine"}


def test_places_that_are_taken_are_passed_by(tmp_path):
    folder = lay(tmp_path / "dogs", ("dog.png",))
    (folder / "dog.txt").mkdir()
    (folder / "dog.mask.png").write_bytes(b"half a picture")
    assert next(caption_pictures(folder, say)).made and next(mask_pictures(folder, cover)).made
    assert (folder / "dog.png.txt").is_file() and (folder / "dog.png.mask.png").is_file()
    assert (folder / "dog.mask.png").read_bytes() == b"half a picture"
    os.symlink(folder / "none.txt", folder / "cat.txt")
    Image.new("RGB", (30, 30)).save(folder / "cat.png")
    assert [row.made for row in caption_pictures(folder, say)] == [True, False]
    assert (folder / "cat.txt").is_symlink() and (folder / "cat.png.txt").is_file()


def test_all_masks_of_a_picture_are_kept_when_it_is_masked_anew(tmp_path):
    folder = lay(tmp_path / "dogs", ("dog.png",))
    (folder / "masks").mkdir()
    for k, name in enumerate(("masks/dog.png", "dog-masklabel.png", "dog.mask.png")):
        Image.new("L", (20, 20), k).save(folder / name)
    (row,) = mask_pictures(folder, cover, overwrite=True)
    (source,) = check_folder(folder, "").sources
    assert row.made and source.mask == folder / "dog.mask.png"
    kept = [read_picture(p).getpixel((0, 0))[0] for p in folder.rglob(".earlier/*")]
    assert sorted(kept) == [0, 1, 2]


@pytest.mark.parametrize("trigger", ["\udcff", "a \ud800 dog"])
def test_a_trigger_that_is_no_text_is_refused_before_anything_is_written(tmp_path, trigger):
    folder = lay(tmp_path / "dogs", ("dog.png",))
    with pytest.raises(AtomError, match=r"--trigger is .* no text"):
        list(caption_pictures(folder, say, trigger=trigger))
    assert len(list(folder.iterdir())) == 1


def test_half_characters_and_lines_of_a_model_become_one_line_of_text(tmp_path):
    folder = lay(tmp_path / "dogs", ("dog.png",))
    (row,) = caption_pictures(folder, lambda picture: "a\n \ud800 dog", trigger=" sks\ndog ")
    assert row.text == "sks dog, a ? dog" == (folder / "dog.txt").read_text()


def test_captions_of_pictures_whose_names_are_no_text_are_kept_and_written(tmp_path):
    folder, name = tmp_path / "dogs", os.fsdecode(b"d\xffg")
    folder.mkdir()
    try:
        (folder / f"{name}.txt").write_text("mine")
    except OSError:
        pytest.skip("names are text here")
    Image.new("RGB", (20, 20)).save(folder / f"{name}.png")
    (row,) = caption_pictures(folder, say, overwrite=True)
    assert row.made and (folder / f"{name}.txt").read_text() == "a picture 20 wide"
    (kept,) = map(json.loads, (folder / ".captions.jsonl").read_text().splitlines())
    assert (kept["file_name"], kept["text"]) == (f"{name}.png", "mine")


def test_captions_that_a_table_gives_by_absolute_paths_are_seen(tmp_path, monkeypatch):
    folder = lay(tmp_path / "dogs", ("dog.png", "cat.png"))
    rows = [{"file_name": str(folder / "dog.png"), "text": "mine"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    relative = folder.relative_to(tmp_path)
    made = [row.made for row in caption_pictures(relative, say)]
    assert made == [True, False] and not (folder / "dog.txt").exists()
    with pytest.raises(AtomError, match="stands in a table"):
        list(caption_pictures(relative, say, overwrite=True))
