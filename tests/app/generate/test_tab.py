"""Journeys through the page in a headless Chromium; nothing sleeps, everything waits for a sign."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from sdatoms_app.generate import compare
from tiny.pictures import draw

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
NAMELESS = """() => {
  const shown = (e) => e.offsetParent !== null || getComputedStyle(e).position === 'fixed';
  const named = (e) => [
    e.getAttribute('aria-label'), e.title, e.innerText, e.alt,
    e.placeholder, ...[...e.querySelectorAll('img[alt]')].map((i) => i.alt),
    ...[...(e.labels || [])].map((l) => l.innerText),
    ...(e.getAttribute('aria-labelledby') || '').split(' ').map(
      (id) => document.getElementById(id)?.innerText),
  ].some((text) => text && text.trim());
  return [...document.querySelectorAll('button, input, textarea, select, [role=button]')]
    .filter((e) => shown(e) && !named(e) && e.type !== 'hidden')
    .map((e) => e.outerHTML.slice(0, 160));
}"""


def finish(page):
    """Wait until the painting is over; returns the note and the newest picture's pixels."""
    from playwright.sync_api import expect

    fresh = page.locator("#note .note:not([data-old])")
    expect(fresh).to_be_visible()
    expect(page.locator("#paint")).to_be_enabled()
    expect(page.locator("#cancel")).to_be_disabled()
    note = fresh.inner_text()
    shown = page.locator("#result img").last
    if not shown.count():
        return note, None, b""
    data = page.request.get(shown.get_attribute("src")).body()
    with Image.open(io.BytesIO(data)) as opened:
        return note, np.array(opened.convert("RGB")), data


def begin(page):
    """Mark the note that stands there, then click Paint: the next note is this painting's."""
    page.evaluate("document.querySelector('#note .note')?.setAttribute('data-old', '')")
    page.locator("#paint").click()


def paint(page):
    begin(page)
    return finish(page)


SETTLED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Two frames on: what an accordion held back is there and listens."""


def unfold(page, *parts):
    for part in parts:
        page.locator(f"#{part} button").first.click()
        page.evaluate(SETTLED)


def set_steps(page, steps):
    unfold(page, "settings")
    page.locator("#steps input[type=number]").fill(str(steps))


def test_the_first_picture_takes_one_click(open_page, studio):
    """Nothing needs to be chosen: the page opens with a prompt, and Paint is the first click."""
    page = open_page()
    note, picture, _ = paint(page)
    assert picture.shape == (64, 64, 3) and "seed 0, no atoms, DDIM, 25 steps" in note
    recipe = studio.history.list()[0].recipe
    assert (recipe.prompt, recipe.negative_prompt, recipe.guidance_scale) == ("cat face", "", 7.5)


def test_one_click_on_a_card_generates_without_and_with_it(open_page, studio):
    from playwright.sync_api import expect

    page = open_page()
    set_steps(page, 2)
    page.evaluate("document.querySelector('#note .note')?.setAttribute('data-old', '')")
    page.get_by_role("button", name="Try dog").click()
    note, _, _ = finish(page)
    assert "“sks dog”, seed 0: without, and with dog at 1" in note
    expect(page.locator("#prompt textarea")).to_have_value("sks dog")
    expect(page.locator("#strength-0 input[type=number]")).to_be_visible()
    expect(page.locator("#result .thumbnail-item img")).to_have_count(2)
    expect(page.locator("#result")).to_contain_text("without adapter")
    first, second = (kept.recipe for kept in studio.history.list()[1::-1])
    assert not first.adapters and [used.name for used in second.adapters] == ["dog"]


def test_load_mix_and_clear_two_adapters(open_page):
    from playwright.sync_api import expect

    page = open_page()
    set_steps(page, 3)
    note, base, _ = paint(page)
    assert "seed 0, no atoms" in note
    assert page.locator("#cards b").count() == 0  # what files say is text, never markup
    page.get_by_role("button", name="Add dog").click()
    expect(page.locator("#strength-0 input[type=number]")).to_be_visible()
    page.locator("#cards").get_by_text("sks dog", exact=True).click()
    expect(page.locator("#prompt textarea")).to_have_value("cat face sks dog")
    page.locator("#prompt textarea").fill("cat face")
    page.get_by_role("button", name="Add ink").click()
    expect(page.locator("#strength-1 input[type=number]")).to_be_visible()
    page.locator("#strength-0 input[type=number]").fill("0.5")
    unfold(page, "blocks-1")
    page.locator("#up-1 input[type=number]").fill("0")
    note, mixed, _ = paint(page)
    assert "dog at 0.5, ink at 1/1/0" in note and not np.array_equal(mixed, base)
    page.locator("#enabled-0 input").uncheck()
    note, _, _ = paint(page)
    assert "dog" not in note
    page.get_by_role("button", name="Remove dog").click()
    expect(page.locator("#strength-1")).to_be_hidden()
    page.get_by_role("button", name="Remove ink").click()
    expect(page.locator("#strength-0")).to_be_hidden()
    note, again, _ = paint(page)
    assert "no atoms" in note and np.array_equal(again, base)


def choose(page, field, option):
    page.locator(f"#{field} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def test_a_sampler_brings_its_schedules_and_a_preset_its_size(open_page):
    from playwright.sync_api import expect

    page = open_page()
    set_steps(page, 3)
    choose(page, "scheduler", "DPM++ 2M")
    choose(page, "schedule", "Karras")
    choose(page, "size-presets", "64 × 96, portrait")
    expect(page.locator("#height input")).to_have_value("96")
    note, picture, _ = paint(page)
    assert picture.shape == (96, 64, 3) and "DPM++ 2M Karras, 3 steps" in note
    choose(page, "scheduler", "Euler a")
    expect(page.locator("#schedule input")).to_have_value("Normal")
    note, _, _ = paint(page)
    assert "Euler a, 3 steps" in note
    page.locator("#width input").fill("100")
    note, _, _ = paint(page)
    assert "the width is 100 px; it takes multiples of 8 px from 64 to 2048" in note


def test_a_dropped_picture_paints_itself_again(open_page, adapters_dir, tmp_path):
    from playwright.sync_api import expect

    page = open_page()
    set_steps(page, 3)
    page.locator("#drop input[type=file]").set_input_files(adapters_dir / "ink.safetensors")
    expect(page.locator("#note")).to_contain_text("is listed and chosen")
    expect(page.locator("#strength-0 input[type=number]")).to_be_visible()
    page.locator("#seed input").fill("123")
    page.locator("#prompt textarea").fill("cat <b>face</b>")
    note, first, data = paint(page)
    assert "seed 123, uploads/ink-" in note
    (tmp_path / "picture.png").write_bytes(data)
    fresh = open_page()
    fresh.locator("#drop input[type=file]").set_input_files(tmp_path / "picture.png")
    expect(fresh.locator("#note")).to_contain_text("as it was when")
    expect(fresh.locator("#strength-0 input[type=number]")).to_be_visible()
    _, again, _ = paint(fresh)
    assert np.array_equal(first, again)
    fresh.reload()  # the form is remembered
    expect(fresh.locator("#note")).to_contain_text("is ready")
    expect(fresh.locator("#strength-0 input[type=number]")).to_be_visible()
    fresh.locator("#drop input[type=file]").set_input_files(adapters_dir / "old.safetensors")
    expect(fresh.get_by_text(re.compile("no safetensors file")).first).to_be_visible()
    unfold(fresh, "history")
    fresh.locator("#history-search input, #history-search textarea").fill("123 ink")
    fresh.locator("#history-look").click()
    expect(fresh.locator("#past-note")).to_contain_text(re.compile(r"\d picture"))
    fresh.locator("#past img").first.click()
    expect(fresh.locator("#past-note")).to_contain_text("<b>face</b> · seed 123")
    assert fresh.locator("#past b, #past-note b, #result b").count() == 0  # recipes are text too
    fresh.locator("#past-send").click()
    expect(fresh.locator("#init-picture img")).to_be_attached()


def test_strengths_by_block_and_step_are_set_by_slider_and_as_text(open_page):
    from playwright.sync_api import expect

    page = open_page()
    set_steps(page, 2)
    page.get_by_role("button", name="Add dog").click()
    expect(page.locator("#strength-0 input[type=number]")).to_be_visible()
    unfold(page, "blocks-0")
    text = page.locator("#by-block-0 textarea, #by-block-0 input")
    page.locator("#table-0 input[data-block=mid]").fill("0.25")
    expect(text).to_have_value("mid=0.25")
    text.fill("mid=0.25, up.1=-0.5")
    expect(page.locator('#table-0 input[data-block="up.1"]')).to_have_value("-0.5")
    page.locator("#schedule-0 textarea, #schedule-0 input").fill("0 until 0.5, then 1")
    note, _, _ = paint(page)
    assert "dog at mid=0.25, up.1=-0.5 (0 until 0.5, then 1)" in note
    page.reload()  # the form is remembered
    expect(page.locator("#note")).to_contain_text("is ready")
    unfold(page, "blocks-0")
    expect(text).to_have_value("mid=0.25, up.1=-0.5")
    text.fill("mid=x")
    page.evaluate("document.querySelector('#note .note')?.setAttribute('data-old', '')")
    page.locator("#paint").click()
    expect(page.locator("#note [role=alert]")).to_contain_text("holds 'mid=x'")


def test_a_part_that_is_drawn_over_is_painted_anew(open_page, studio, tmp_path):
    from playwright.sync_api import expect

    page = open_page()
    set_steps(page, 4)
    path = draw(tmp_path / "photo.png", (96, 64), seed=4)
    unfold(page, "start-from")
    page.locator("#init-picture input[type=file]").set_input_files(path)
    expect(page.locator("#init-picture img")).to_be_attached()
    expect(page.locator("#width input")).to_have_value("80")  # its proportions, the base's area
    expect(page.locator("#height input")).to_have_value("56")
    page.locator("#width input").fill("96")
    page.locator("#height input").fill("64")
    unfold(page, "inpaint")
    page.locator("#mask-blur input[type=number]").fill("0")
    canvas = page.locator("#mask-drawing canvas").first
    expect(canvas).to_be_visible()
    # the photo has arrived below what is drawn
    expect(page.locator("#mask-drawing button[aria-label='Undo']")).to_be_enabled()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 10, y + 5, steps=5)
    page.mouse.up()
    _, painted, _ = paint(page)
    with Image.open(path) as opened:
        same = (painted == np.array(opened.convert("RGB"))).all(-1)
    recipe = studio.history.list()[0].recipe
    assert recipe.mask_sha256 and recipe.mask_blur == 0
    assert 0.5 < same.mean() < 1


def test_buttons_are_right_after_cancel_and_after_an_error(open_page):
    from playwright.sync_api import expect

    page = open_page()
    set_steps(page, 100)
    for field, value in (("batch", "8"), ("width", "192"), ("height", "192")):  # work for a while
        page.locator(f"#{field} input[type=number], #{field} input").first.fill(value)
    begin(page)
    expect(page.locator("#live img")).to_be_visible()
    expect(page.locator("#paint")).to_be_disabled()
    page.locator("#cancel").click()
    note, _, _ = finish(page)
    assert "Cancelled" in note
    expect(page.locator("#live")).to_be_hidden()
    page.locator("#prompt textarea").fill("")
    page.evaluate("document.querySelector('#note .note')?.setAttribute('data-old', '')")
    page.locator("#paint").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#note [role=alert]")).to_contain_text("prompt is empty")
    finish(page)
    page.locator("#prompt textarea").fill("cat")
    page.locator("#paint").click()
    expect(page.locator("#live img")).to_be_visible()
    page.reload()  # whoever leaves cancels, and finds the page ready
    expect(page.locator("#paint")).to_be_enabled()
    expect(page.locator("#cancel")).to_be_disabled()
    expect(page.locator("#note")).to_contain_text("is ready")
    page.locator("#prompt textarea").fill("cat")
    unfold(page, "settings")
    page.locator("#steps input[type=number]").fill("2")
    page.locator("#batch input[type=number]").fill("1")
    assert "seed" in paint(page)[0]


def test_compare_presets_and_names_on_a_phone_in_the_dark(open_page, monkeypatch):
    from playwright.sync_api import expect

    page = open_page("/?__theme=dark", viewport={"width": 390, "height": 844})
    page.get_by_role("button", name="Add dog").click()
    expect(page.locator("#strength-0 input[type=number]")).to_be_visible()
    unfold(
        page, "settings", "start-from", "inpaint", "second-pass", "presets", "history", "blocks-0"
    )
    page.locator("#steps input[type=number]").fill("2")
    page.locator("#preset-name input, #preset-name textarea").fill("mine")
    page.locator("#preset-save").click()
    expect(page.locator("#preset input")).to_have_value("mine")
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#to-compare").click()
    expect(page.locator("#slider img").first).to_be_visible()
    expect(page.locator("#compare-paint")).to_be_enabled()
    page.locator("#grid-strengths textarea, #grid-strengths input").fill("0, 1")
    page.locator("#grid-seeds textarea, #grid-seeds input").fill("5")
    page.locator("#grid-paint").click()
    expect(page.locator("#grid-note")).to_contain_text("2 pictures")
    expect(page.locator("#grid img")).to_be_visible()
    expect(page.locator("#grid-paint")).to_be_enabled()
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    monkeypatch.setattr(compare, "paint_grid", lambda *_: 1 // 0)  # what nobody foresaw
    page.locator("#grid-paint").click()
    expect(page.locator("#grid-note [role=alert]")).to_contain_text(
        "error of the app (ZeroDivision"
    )
    expect(page.locator("#grid-paint")).to_be_enabled()
