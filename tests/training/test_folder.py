"""Before any model is loaded, all that is wrong with a folder of pictures is named."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny.pictures import save_pictures

from sdatoms import AtomError
from sdatoms.training.folder import check_folder


def test_captions_come_from_metadata_then_text_then_the_prompt(make_pictures):
    folder = make_pictures(sizes=((20, 20),) * 3)
    (folder / "0.txt").write_text("not this")
    (folder / "1.txt").write_text("a blue wall\n")
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a red wall"}\n')
    found = check_folder(folder, "a wall")
    assert [s.prompt for s in found.sources] == ["a red wall", "a blue wall", "a wall"]
    assert found.notes == ()
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "words": "a wide wall"}\n')
    assert check_folder(folder, "x", caption_column="words").sources[0].prompt == "a wide wall"


@pytest.mark.parametrize("limit", [60_000_000, 100_000_000])
def test_every_problem_is_named_at_once(make_pictures, monkeypatch, limit):
    """Over Pillow's limit it warns, which the app makes an error; over twice that it refuses."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    folder = make_pictures(sizes=((20, 20),) * 3)
    whole = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("1", (15_000, 13_000)).save(folder / "vast.png")
    Image.new("L", (20, 10)).save(folder / "1.mask.png")
    Image.new("L", (20, 20)).save(folder / "9.mask.png")
    row = {"file_name": "absent.png", "text": "x"}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(AtomError) as error:
        check_folder(folder, "x")
    for words in (
        "cannot be read as pictures: 0.png, broken.jpg, phone.HEIC, vast.png (more than 100",
        "masks without a picture: 9.mask.png",
        "the mask 1.mask.png is 20×10 px where its picture is 20×20",
        "names absent pictures: absent.png",
    ):
        assert words in str(error.value)


def test_what_is_odd_but_usable_is_noted(make_pictures):
    folder = make_pictures(sizes=((20, 20),) * 2)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    near = np.asarray(Image.open(folder / "1.png")).astype(int) + 1
    Image.fromarray(near.clip(0, 255).astype("uint8")).save(folder / "near.webp", lossless=True)
    Image.new("RGB", (4, 30), "red").save(folder / "small.png")
    frames = [Image.new("RGB", (20, 20), color) for color in ("blue", "green")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "notes.md").write_text("hello")
    found = check_folder(folder, "x", resolution=16)
    assert [s.path.name for s in found.sources] == [
        "0.png",
        "1.png",
        "copy.png",
        "moving.gif",
        "near.webp",
        "small.png",
    ]
    assert found.notes == (
        "ignored 1 files that are no pictures in pictures: notes.md",
        "tiny pictures, scaled up a lot to be trained on: small.png (4×30 px)",
        "animated pictures, only their first frame is used: moving.gif",
        "duplicate pictures: copy.png = 0.png",
        "pictures that look alike: near.webp ≈ 1.png",
    )


def test_masks_are_found_beside_pictures_or_in_a_folder(make_pictures, tmp_path):
    folder = make_pictures(sizes=((20, 20),) * 2)
    Image.new("L", (20, 20)).save(folder / "0.mask.png")
    assert [s.mask is not None for s in check_folder(folder, "x").sources] == [True, False]
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (40, 40)).save(masks / "1.png")
    found = check_folder(folder, "x", mask_dir=masks).sources
    assert [s.mask for s in found] == [None, masks / "1.png"]
    with pytest.raises(AtomError, match="--mask_data_dir: there is no folder"):
        check_folder(folder, "x", mask_dir=tmp_path / "none")


@pytest.mark.parametrize(
    "line", ["no json", '["0.png"]', '{"file_name": "0.png"}', '{"file_name": 1, "text": "x"}']
)
def test_metadata_that_cannot_be_read_is_refused_by_its_line(make_pictures, line):
    folder = make_pictures()
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n' + line)
    with pytest.raises(AtomError, match="line 2 of"):
        check_folder(folder, "x")


def lay_diffusers(folder):
    rows = [{"file_name": "train/0.png", "text": ["a dog", "a dog asleep"]}]
    (folder / "metadata.jsonl").write_text(json.dumps(rows[0]))
    return save_pictures(folder / "train", ((20, 20),) * 2)


def lay_kohya(folder):
    place = save_pictures(folder / "10_sks dog", ((20, 20),) * 2)
    (place / "0.caption").write_text("a dog\na dog asleep\n")
    (place / "0.npz").write_bytes(b"latents")
    return place


def lay_onetrainer(folder):
    place = save_pictures(folder / "dog", ((20, 20),) * 2)
    (place / "0.txt").write_text("a dog\r\n\r\na dog asleep")
    Image.new("L", (20, 20), 255).save(place / "1-masklabel.png")
    Image.new("RGB", (20, 20)).save(place / "1-condlabel.png")
    return place


def lay_ai_toolkit(folder):
    place = save_pictures(folder / "dog", ((20, 20),) * 2)
    (place / "0.json").write_text(json.dumps({"caption": "a dog\na dog asleep"}))
    (place / "_latent_cache").mkdir()
    (place / ".aitk_size.json").write_text("{}")
    (place / "masks").mkdir()
    Image.new("L", (20, 20), 255).save(place / "masks" / "1.png")
    return place


@pytest.mark.parametrize("lay", [lay_diffusers, lay_kohya, lay_onetrainer, lay_ai_toolkit])
def test_other_trainers_folders_are_read_as_they_lie(tmp_path, lay):
    place = lay(tmp_path)
    first, second = check_folder(tmp_path, "a pet").sources
    assert (first.path, first.captions, first.own) == (
        *(place / "0.png", ("a dog", "a dog asleep"), True),
    )
    assert (second.prompt, second.captions, second.own) == ("a pet", (), False)
    masked = lay in (lay_onetrainer, lay_ai_toolkit)
    assert [s.mask is not None for s in (first, second)] == [False, masked]


@pytest.mark.parametrize("relative", [True, False])
def test_tables_may_name_pictures_by_absolute_paths(make_pictures, tmp_path, monkeypatch, relative):
    folder = make_pictures("dogs", ((20, 20),) * 2)
    save_pictures(folder / "more", ((20, 20),), seed=1)
    (tmp_path / "link").symlink_to(folder)
    names = [folder / "0.png", tmp_path / "link" / "1.png", folder / "more" / "0.png"]
    rows = [{"file_name": str(name), "text": f"words {k}"} for k, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    for place in (folder.relative_to(tmp_path) if relative else folder, tmp_path / "link"):
        found = check_folder(place, "x")
        assert [s.prompt for s in found.sources] == ["words 0", "words 1", "words 2"]


@pytest.mark.parametrize(
    "name", ["/somewhere/else.png", "../else.png", "/a\0b/0.png", "a\0b.png", "\ud800.png", "/", ""]
)
def test_absent_pictures_of_a_table_are_named_wherever_they_would_lie(
    make_pictures, tmp_path, monkeypatch, name
):
    folder = make_pictures("dogs")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
    monkeypatch.chdir(tmp_path)
    for place in (folder, folder.relative_to(tmp_path)):
        with pytest.raises(AtomError, match="names absent pictures: "):
            check_folder(place, "x")


def test_repeats_of_folders_that_fill_memory_are_refused(tmp_path):
    for name in ("99999_a", "99998_b", "99997_c"):
        save_pictures(tmp_path / name, ((20, 20),) * 4)
    with pytest.raises(AtomError, match="ask for 1199976 pictures a round; at most 1000000 fit"):
        check_folder(tmp_path, "x")
