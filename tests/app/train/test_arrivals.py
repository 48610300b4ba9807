"""Files that somebody brings: every trainer's way to name a mask, and photos of any size."""

import random

import numpy as np
import pytest
from PIL import Image
from sdatoms_app.security import harden
from sdatoms_app.train import arrivals
from sdatoms_app.train.arrivals import reduce_photo, shrink_picture, sort_files
from sdatoms_app.train.drafts import Draft
from sdatoms_app.train.listed import list_files
from tiny.pictures import draw

from sdatoms.training.folder import check_folder

MASKS = (".mask", "-masklabel", "_masklabel", ".masklabel", "_mask", "-mask")
STEMS = ("dog", "my dog", "dog.v2", "halloween_mask", "a-mask-b", "Ü")


def draw_mask(path, size=(96, 80)):
    mask = np.zeros(size[::-1], np.uint8)
    mask[: size[1] // 2] = 255
    Image.fromarray(mask).save(path)
    return path


@pytest.mark.parametrize("ending", [*MASKS, *(ending.upper() for ending in MASKS)])
@pytest.mark.parametrize("stem", STEMS)
def test_every_trainers_mask_becomes_the_mask_of_its_picture(tmp_path, stem, ending):
    picture = draw(tmp_path / f"{stem}.png")
    mask = draw_mask(tmp_path / f"{stem}{ending}.png")
    for files in ([picture, mask], [mask, picture]):  # in whatever order they come
        draft = Draft(tmp_path / "drafts")
        assert draft.add(files) == []
        (only,) = draft.list()
        assert only.name == picture.name and only.mask is not None
    (tmp_path / "run").mkdir()
    draft.fill(tmp_path / "run")
    (source,) = check_folder(tmp_path / "run", "a dog").sources
    with Image.open(source.mask) as stored, Image.open(mask) as own:
        assert np.array_equal(stored, own)


@pytest.mark.parametrize("stem", ["halloween_mask", "gas-mask", "unmask", "mask"])
def test_a_picture_of_a_mask_is_a_picture(tmp_path, stem):
    draft = Draft(tmp_path / "drafts")
    assert draft.add([draw(tmp_path / f"{stem}.png")]) == []
    assert [(p.name, p.mask) for p in draft.list()] == [(f"{stem}.png", None)]


def test_what_was_taken_as_a_picture_stays_one(tmp_path):
    draft = Draft(tmp_path / "drafts")
    for name in ("dog_mask.png", "dog.png"):
        assert draft.add([draw(tmp_path / name, seed=len(name))]) == []
    assert [(p.name, p.mask) for p in draft.list()] == [("dog_mask.png", None), ("dog.png", None)]


def test_masks_come_later_are_replaced_and_go_with_their_picture(tmp_path):
    picture = draw(tmp_path / "dog.png")
    draft = Draft(tmp_path / "drafts")
    draft.add([picture])
    assert draft.add([draw_mask(tmp_path / "dog.mask.png")]) == []
    first = draft.list()[0].mask.read_bytes()
    assert draft.add([draw_mask(tmp_path / "dog-masklabel.png", (48, 40))]) == []
    assert draft.list()[0].mask.read_bytes() != first
    draft.remove(draft.list()[0].id)
    draft.add([picture])
    assert draft.list()[0].mask is None


def test_masks_that_fit_no_picture_are_refused_in_a_line_each(tmp_path):
    picture = draw(tmp_path / "dog.png")
    wrong = draw_mask(tmp_path / "dog.mask.png", (80, 96))
    stray = draw_mask(tmp_path / "cat.mask.png")
    broken = tmp_path / "dog_mask.png"
    broken.write_bytes(b"\x89PNG no")
    refused = Draft(tmp_path / "drafts").add([picture, wrong, stray, broken])
    assert len(refused) == 3 and not any("\n" in line for line in refused)
    said = "\n".join(sorted(refused))
    assert "80×96" in said and "cat.mask.png" in said and "dog_mask.png" in said


@pytest.mark.parametrize("seed", range(20))
def test_folders_are_sorted_as_their_names_say(tmp_path, seed):
    """Any pictures, some with masks and captions: each companion finds its own, none is trained."""
    dice = random.Random(seed)
    stems = dice.sample([f"{word}{k}" for word in ("cat", "dog-", "x.y") for k in range(9)], 6)
    masks = {s: f"{s}{dice.choice(MASKS)}.png" for s in stems if dice.random() < 0.5}
    texts = {s: f"{s}{dice.choice(['.txt', '.png.txt', '.caption', '.TXT'])}" for s in stems}
    names = [*(f"{s}.png" for s in stems), *masks.values(), *texts.values(), "README.txt"]
    dice.shuffle(names)
    for name in names:
        (tmp_path / name).write_bytes(b"")
    found = sort_files([tmp_path / name for name in names])
    assert {p.stem for p in found.pictures} == set(stems)
    assert {stem: p.name for p, stem in found.masks} == masks
    assert {stem: p.name for p, stem in found.captions} == texts
    assert [p.name for p in found.strays] == ["README.txt"]
    assert {p.name for p in list_files(tmp_path)} == set(names) - {"README.txt"}


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_phones_picture_is_taken_and_kept_smaller(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # to put it back
    harden(local=True, offline=False)
    exif = Image.Exif()
    exif[0x0112] = 6
    fast = {"png": {"compress_level": 1}, "webp": {"method": 0}}.get(kind, {})
    photo = Image.new("RGB", (8064, 6048), "teal")
    photo.save(path := tmp_path / f"48mp.{kind}", exif=exif, **fast)
    draft = Draft(tmp_path / "drafts")
    assert draft.add([path]) == []
    with Image.open(draft.list()[0].path) as kept:
        assert kept.size == (2048, 2731)  # upright now
        pixel = kept.convert("RGB").getpixel((9, 9))
        assert max(abs(a - b) for a, b in zip(pixel, (0, 128, 128), strict=True)) <= 4


def test_photos_of_more_pixels_than_are_opened_are_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(arrivals, "OPENED_PIXELS", 10_000)
    monkeypatch.setattr(arrivals, "LEAST_SIDE", 32)
    photo = draw(tmp_path / "photo.jpg", (800, 600))
    (tmp_path / "out").mkdir()
    with Image.open(reduce_photo(photo, tmp_path / "out")) as smaller:
        assert smaller.size == (100, 75)
    assert shrink_picture(tmp_path / "out" / "photo.jpg").size == (43, 32)
    plain = draw(tmp_path / "plain.png", (800, 600))
    assert reduce_photo(plain, tmp_path / "out") == plain
    monkeypatch.setattr(arrivals, "REDUCED_PIXELS", 20_000)
    assert reduce_photo(photo, tmp_path / "out") == photo
