"""Whatever people bring as a picture is read upright, in RGB, or refused by name."""

import io
import os

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdatoms import AtomError
from sdatoms.pictures import (
    draw_grid,
    find_pictures,
    make_thumbnail,
    read_picture,
    save_image,
    to_tensor,
)


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path, mode):
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    if mode == "P":
        picture = Image.new("P", (8, 8), 0)
        picture.putpalette([10, 20, 30])
        picture.save(tmp_path / "a.png", transparency=0)
    else:
        picture.convert(mode).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    assert read.mode == "RGB" and read.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["CMYK", "L", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "a.tiff"
    Image.new("RGB", (8, 8), "white").convert(mode).save(path)
    read = read_picture(path)
    assert read.mode == "RGB" and read.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_of_sixteen_bits_keeps_its_levels(tmp_path, suffix):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(np.asarray(read_picture(tmp_path / f"a.{suffix}"))[..., 1], levels)
    Image.fromarray(levels.astype(np.float32) / 255).save(tmp_path / "b.tiff")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "b.tiff"))[..., 1], levels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_profiles_are_followed(tmp_path, mode):
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile whose red is sRGB's blue, and the other way round.
    turned = plain.replace(b"rXYZ", b"....", 1).replace(b"bXYZ", b"rXYZ", 1)
    turned = turned.replace(b"....", b"bXYZ", 1)
    picture = Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode)
    for name, profile, expected in (
        ("plain", plain, (255, 0, 0)),
        ("turned", turned, (0, 0, 255)),
        ("broken", b"no profile", (255, 0, 0)),
    ):
        picture.save(tmp_path / f"{name}.png", icc_profile=profile)
        read = read_picture(tmp_path / f"{name}.png")
        assert read.mode == "RGB"
        assert np.abs(np.array(read.getpixel((4, 4))) - expected).max() <= 2, name
        # Saved again, it is still what it was.
        read.save(buffer := io.BytesIO(), "PNG")
        (tmp_path / "again.png").write_bytes(buffer.getvalue())
        again = read_picture(tmp_path / "again.png")
        assert np.abs(np.array(again.getpixel((4, 4))) - expected).max() <= 3, name


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_tensor_range_and_shape():
    x = to_tensor(Image.new("RGB", (5, 3), (255, 0, 128)))
    assert x.shape == (3, 3, 5) and x[0].min() == 1 and x[1].max() == -1


def test_files_that_are_no_pictures_are_told_apart(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "c.png").write_bytes(b"\x89PNG broken")
    pictures, others = find_pictures(tmp_path)
    assert [p.name for p in pictures] == ["b.png"] and [p.name for p in others] == [
        "a.txt",
        "c.png",
    ]


def test_missing_and_empty_folders_are_refused_by_name(tmp_path):
    with pytest.raises(AtomError, match=r"there is no folder .*nowhere"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(AtomError, match="holds no picture"):
        find_pictures(tmp_path)


def test_corrupt_picture_is_refused_by_name(tmp_path):
    picture = Image.effect_noise((64, 64), 50)
    picture.save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(AtomError, match=r"the picture 'a.jpg' cannot be read"):
        read_picture(tmp_path / "a.jpg")


def test_grid_holds_every_picture_where_its_label_says():
    rows = [
        [Image.new("RGB", (8, 8), c) for c in ("red", "blue")],
        [Image.new("RGB", (8, 8), "lime")],
    ]
    grid = draw_grid(rows, ["one", "two"], ["a", "b"], cell=32)
    colours = {c: n for n, c in grid.getcolors(1 << 20) or []}
    assert colours[255, 0, 0] == colours[0, 0, 255] == colours[0, 255, 0] == 32 * 32


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".JPEG"])
def test_a_picture_that_is_written_again_is_never_half_there(tmp_path, monkeypatch, suffix):
    path = save_image(Image.new("RGB", (64, 64), "red"), tmp_path / "new" / f"a{suffix}")
    before = path.read_bytes()
    seen = []
    replace = os.replace

    def look(source, target):
        seen.append(path.read_bytes())
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    save_image(Image.new("RGB", (64, 64), "blue"), path)
    assert seen == [before] and path.read_bytes() != before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with Image.open(path) as opened:
        assert opened.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")


def test_a_picture_that_cannot_be_encoded_leaves_the_old_one(tmp_path):
    path = save_image(Image.new("RGB", (8, 8)), tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(OSError, match="cannot write mode F"):
        save_image(Image.new("F", (8, 8)), path)
    with pytest.raises(AtomError, match=r"'a\.doc' has no suffix of a picture"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "a.doc")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_thumbnail_is_a_small_data_uri():
    uri = make_thumbnail(Image.effect_noise((512, 512), 50), 128)
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 16_000


def test_titles_of_two_lines_have_twice_the_room():
    row = [[Image.new("RGB", (8, 8), "red")]]
    none, one, two = (draw_grid(row, ["row"], t).height for t in ([], ["a title"], ["a\ntitle"]))
    assert two - none == 2 * (one - none) > 0
