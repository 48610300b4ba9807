"""The picture to start from as the page's widgets hand it over."""

import pytest
from PIL import Image
from sdatoms_app.generate.canvas import SHOWN, Canvas, fit_sides, read_drawing, shrink_picture

from sdatoms import AtomError

CANVAS = Canvas(*[None] * 3)


def draw_strokes(size=(40, 20), alpha=255):
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    layer.paste((255, 0, 0, alpha), (0, 0, 10, 20))
    return layer


def test_what_was_drawn_becomes_a_mask():
    mask = read_drawing({"background": None, "layers": [draw_strokes()], "composite": None})
    assert mask.mode == "L" and mask.getbbox() == (0, 0, 10, 20) and mask.getextrema() == (0, 255)
    assert read_drawing({"layers": [draw_strokes(alpha=8), draw_strokes()]}).getbbox()
    for empty in (None, {}, {"layers": []}, {"layers": [draw_strokes(alpha=0)]}):
        assert read_drawing(empty) is None


def test_a_masks_own_file_counts_before_the_drawing_and_none_without_a_picture(tmp_path):
    Image.new("RGBA", (40, 20), (255, 0, 0, 0)).save(tmp_path / "picture.png")
    mask = Image.new("RGBA", (40, 20), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 5, 20))
    mask.save(tmp_path / "mask.png")
    init, given = str(tmp_path / "picture.png"), str(tmp_path / "mask.png")
    drawing = {"layers": [draw_strokes()]}
    both = CANVAS.read(init, drawing, given)
    assert both["init_picture"].getpixel((0, 0)) == (255, 255, 255)  # transparency over white
    assert both["mask"].getbbox() == (0, 0, 5, 20)
    assert CANVAS.read(init, drawing, None)["mask"].getbbox() == (0, 0, 10, 20)
    assert CANVAS.read(None, drawing, None) == {"init_picture": None, "mask": None}


def test_pictures_are_shown_small_and_sides_stay_within_the_servers(tmp_path):
    path = str(tmp_path / "photo.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1000, 2000)).save(path, exif=exif)
    assert shrink_picture(path).size == (SHOWN, SHOWN // 2) and shrink_picture(None) is None
    assert fit_sides(path, 64, 2048) == (88, 48)
    width, height = fit_sides(path, 1024, 1024)
    assert width <= 1024 and width / height == pytest.approx(2, 0.05)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(AtomError, match="cannot be read"):
        shrink_picture(str(tmp_path / "x.png"))
