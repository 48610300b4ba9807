"""Concepts and masks on the Train tab, in a headless Chromium."""

import re
import zipfile

import pytest
from tiny.app import open_tab
from tiny.limits import wait_for
from tiny.pictures import save_pictures

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]


def test_a_zip_becomes_concepts_that_are_edited_and_a_mask_is_painted(open_page, queue, tmp_path):
    from playwright.sync_api import expect

    path = tmp_path / "img.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, seed in (("10_sks dog", 1), ("5_zwx cat", 2)):
            for file in save_pictures(tmp_path / name, ((90, 70),), seed=seed).iterdir():
                archive.write(file, f"{name}/{file.name}")
    page = open_page()
    open_tab(page, "Train")
    page.locator("#train-upload input[type=file]").set_input_files(str(path))
    verdict = page.locator("#train-verdict textarea")
    expect(verdict).to_have_value(re.compile("sks dog: 1 picture\nzwx cat: 1 picture"))
    page.get_by_role("button", name="Several concepts").click()
    expect(page.locator("#train-concept textarea, #train-concept input")).to_have_value("sks dog")
    table = page.locator("#train-concepts")
    table.get_by_text("sks dog", exact=True).locator("visible=true").nth(1).dblclick()
    page.keyboard.press("Control+A")
    page.keyboard.type("photo of a sks dog")
    page.keyboard.press("Enter")
    drafts = queue.root / ".drafts"
    read = lambda: "".join(p.read_text() for p in drafts.glob("*/draft.json"))
    wait_for(lambda: '"photo of a sks dog"' in read())
    page.get_by_role("button", name="Mask of this picture").click()
    page.locator("#train-draw").click()
    # the picture has arrived below what is drawn
    expect(page.locator("#train-editor button[aria-label='Undo']")).to_be_enabled()
    box = page.locator("#train-editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=8)
    page.mouse.up()
    page.locator("#train-keep-mask").click()
    expect(verdict).to_have_value(re.compile("1 masked"))
    (mask,) = drafts.glob("*/*.mask.png")
    assert mask.stat().st_size
