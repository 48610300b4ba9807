"""The Atoms tab in a headless Chromium."""

import re
import shutil

import pytest
from tiny.app import open_tab

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings


def test_a_cell_of_the_heat_map_opens_its_layer(open_page):
    from playwright.sync_api import expect

    page = open_page()
    open_tab(page, "Atoms")
    page.locator("#anatomy-file input").click()
    page.get_by_role("option", name="ink").click()
    expect(page.locator("#anatomy-after img")).to_be_visible()
    cell = page.locator("#anatomy-heat button").nth(1)
    path = cell.get_attribute("data-path")
    cell.click()
    expect(page.locator("#anatomy-layer input")).to_have_value(re.compile(re.escape(path)))


def test_a_file_made_after_the_server_started_is_in_a_new_page_s_list(open_page, studio):
    from playwright.sync_api import expect

    made = studio.library.folder / "made-since.safetensors"
    shutil.copy(studio.library.folder / "ink.safetensors", made)
    try:
        page = open_page()
        open_tab(page, "Atoms")
        page.locator("#anatomy-file input").click()
        expect(page.get_by_role("option", name="made-since")).to_be_visible()
    finally:
        made.unlink()


def test_a_followed_run_opens_every_new_checkpoint(open_page, studio):
    from playwright.sync_api import expect

    run = studio.library.folder / "live"

    def save(step):
        folder = run / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        shutil.copy(studio.library.folder / "ink.safetensors", folder / "atoms.safetensors")

    save(100)
    try:
        page = open_page()
        open_tab(page, "Atoms")
        page.get_by_text("Follow a training").click()
        page.locator("#anatomy-run input").click()
        page.get_by_role("option", name="live").click()
        expect(page.locator("#anatomy-file input")).to_have_value("live@100")
        expect(page.locator("#anatomy-course")).to_contain_text("Change of the weights")
        expect(page.locator("#anatomy-after img")).to_be_visible()
        save(200)
        expect(page.locator("#anatomy-file input")).to_have_value("live@200", timeout=60_000)
    finally:
        shutil.rmtree(run)


def test_files_picked_in_a_row_are_all_taken(open_page):
    """The second is picked before the server has answered to the first."""
    from playwright.sync_api import expect

    page = open_page()

    def pick(where):
        page.locator(f"{where} input").click()
        for name in ("dog", "ink"):
            page.get_by_role("option", name=re.compile(f"^{name} ·")).click()
        page.keyboard.press("Escape")

    pick("#atoms")
    expect(page.locator("#strength-1 input[type=number]")).to_be_visible()
    expect(page.locator("#enabled-0")).to_contain_text("dog")
    open_tab(page, "Atoms")
    page.get_by_role("button", name="Compare and mix files").click()
    pick("#anatomy-several")
    expect(page.locator("#anatomy-alike table")).to_contain_text("+1.000")
    page.locator("#anatomy-strength-1 input[type=number]").fill("0.5")
    page.locator("#anatomy-title input, #anatomy-title textarea").fill("both")
    page.locator("#anatomy-save").click()
    expect(page.locator("#anatomy-mixed input, #anatomy-mixed textarea")).to_have_value(
        re.compile(r"^both-\w+: [\d,]+ numbers, [\d,]+ bytes$")
    )
