"""Photographs of every tab of the app: in the light, in the dark and at a phone's width.

The app is started on a free port over a folder of runs; where that holds none, one is trained first
through the app's own endpoint.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from gradio_client import Client
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from sdatoms.bench.app import WAIT, open_browser, serve_app

__all__ = ["LOOKS", "TABS", "keep_pictures", "photograph_app"]

ASSETS = Path(__file__).parents[2] / "assets"
LOOKS = {
    "light": ("light", 1280, 900),
    "dark": ("dark", 1280, 900),
    "phone": ("light", 390, 844),
    "phone-dark": ("dark", 390, 844),
}
DRAWN = """() => {
  const pictures = [...document.images].filter((i) => i.offsetParent);
  pictures.forEach((i) => { i.loading = 'eager'; });  // also those below the window
  return pictures.every((i) => i.complete && i.naturalWidth)
    && ![...document.querySelectorAll('.progress-text, .generating')].some((e) => e.offsetParent);
}"""
"""Every picture of the tab is there, and nothing is under way."""


def photograph_app(
    adapters_dir: str, output: Path, looks: Sequence[str], tabs: Sequence[str], chromium: str
) -> None:
    """A PNG a tab and look in `output`, of the app over a folder of runs."""
    output.mkdir(parents=True, exist_ok=True)
    with serve_app(adapters_dir) as server:
        client = Client(server.address, verbose=False)
        if not client.predict(api_name="/list_trainings"):
            train_one(client)
        with open_browser(chromium) as browser:
            shoot(browser, server.address, output, looks, tabs)


def train_one(client: Client) -> None:
    """Queue a training of the bundled hamburger and wait for its end."""
    run = client.predict("subjects/hamburger", "a sks hamburger", api_name="/train")["id"]
    print("training", run, flush=True)
    while (now := client.predict(run, api_name="/get_training"))["state"] not in ("done", "failed"):
        time.sleep(1)
    if now["state"] == "failed":
        raise SystemExit(now["error"])


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def show_first(page: Page) -> None:
    """The page as it opens."""


def show_generate(page: Page) -> None:
    page.locator("#cards button.try").first.click()
    expect(page.locator("#note")).to_contain_text("without, and with", timeout=WAIT)
    expect(page.locator("#paint")).to_be_enabled(timeout=WAIT)


def show_compare(page: Page) -> None:
    page.locator("#to-compare").click()
    expect(page.locator("#slider img").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#compare-paint")).to_be_enabled(timeout=WAIT)
    page.locator("#grid-strengths textarea, #grid-strengths input").fill("0, 0.5, 1")
    page.locator("#grid-paint").click()
    expect(page.locator("#grid-note")).to_contain_text("9 pictures", timeout=WAIT)


def show_atoms(page: Page) -> None:
    open_tab(page, "Atoms")
    expect(page.locator("#anatomy-words textarea, #anatomy-words input")).to_have_value(
        re.compile("atoms of"), timeout=WAIT
    )


def show_train(page: Page) -> None:
    open_tab(page, "Train")
    page.get_by_role("button", name="Try it with the hamburger").click()
    expect(page.locator("#train-gallery img").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#train-cost textarea")).to_have_value(
        re.compile("on this machine, samples aside"), timeout=WAIT
    )


def show_runs(page: Page) -> None:
    open_tab(page, "Runs")
    page.locator("#runs label").first.click()
    expect(page.locator("#run-samples img").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#run-loss svg")).to_be_visible(timeout=WAIT)


TABS = {
    "first": show_first,
    "generate": show_generate,
    "compare": show_compare,
    "atoms": show_atoms,
    "train": show_train,
    "runs": show_runs,
}


def shoot(
    browser: Browser, address: str, output: Path, looks: Sequence[str], tabs: Sequence[str]
) -> None:
    for look in looks:
        theme, width, height = LOOKS[look]
        context = browser.new_context(viewport={"width": width, "height": height})
        page = context.new_page()
        page.goto(f"{address}/?__theme={theme}")
        expect(page.locator("#note")).to_contain_text("is ready", timeout=WAIT)
        for name, show in TABS.items():
            if name in tabs or name == "generate":  # the other tabs take its prompt and atoms
                show(page)
            if name not in tabs:
                continue
            page.mouse.move(0, 0)
            page.wait_for_function(DRAWN)
            path = output / f"{name}-{look}.png"
            page.screenshot(path=path, full_page=True, animations="disabled")
            wide = page.evaluate("document.documentElement.scrollWidth")
            print(path, f"{wide} px wide" if wide > width else "", flush=True)
        context.close()


def keep_pictures(output: Path) -> None:
    """The two pictures of the README: the top of a tab, in few colours."""
    for name in ("train", "runs"):
        with Image.open(output / f"{name}-light.png") as shot:
            top = shot.convert("RGB").crop((0, 0, 1280, min(shot.height, 960)))
            top.quantize(128).save(ASSETS / f"app-{name}.png", optimize=True)
