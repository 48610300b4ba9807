"""Photograph every tab of the app: in the light, in the dark and at a phone's width.

The app is started on a free port over a folder of runs; where that holds none, one is trained first
through the app's own endpoint. `--assets` keeps the two pictures that the README shows.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradio_client import Client
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sdatoms_app.app import find_port

LOOKS = {
    "light": ("light", 1280, 900),
    "dark": ("dark", 1280, 900),
    "phone": ("light", 390, 844),
    "phone-dark": ("dark", 390, 844),
}
WAIT = 120_000
DRAWN = """() => {
  const pictures = [...document.images].filter((i) => i.offsetParent);
  pictures.forEach((i) => { i.loading = 'eager'; });  // also those below the window
  return pictures.every((i) => i.complete && i.naturalWidth)
    && ![...document.querySelectorAll('.progress-text, .generating')].some((e) => e.offsetParent);
}"""
"""Every picture of the tab is there, and nothing is under way."""
PROMPT = "a sks octopus wearing a santa hat"


@contextmanager
def serve_app(adapters_dir: str) -> Iterator[str]:
    """The app in a process of its own, over the bundled base; yields its address."""
    port = find_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sdatoms", "ui", "--offline", "--port", str(port)]
        command += ["--adapters-dir", adapters_dir, "--outputs-dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            next(line for line in server.stdout if "Running on" in line)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


@contextmanager
def open_browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


def train_one(client):
    """Queue a training of the bundled octopus and wait for its end."""
    run = client.predict("subjects/octopus", "a sks octopus", api_name="/train")["id"]
    print("training", run, flush=True)
    while (now := client.predict(run, api_name="/get_training"))["state"] not in ("done", "failed"):
        client.predict(api_name="/list_bases")
    if now["state"] == "failed":
        raise SystemExit(now["error"])


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def unfold(page: Page, *parts: str) -> None:
    for part in parts:
        page.locator(f"#{part} button").first.click()


def show_generate(page: Page) -> None:
    page.locator("#prompt textarea").fill(PROMPT)
    octopus = page.locator("#cards button.pick[data-id*=octopus]")
    (octopus if octopus.count() else page.locator("#cards button.pick")).first.click()
    expect(page.locator("#strength-0 input[type=number]")).to_be_visible(timeout=WAIT)
    unfold(page, "settings")
    page.locator("#batch input[type=number]").fill("4")
    page.keyboard.press("Tab")  # the number counts once it is left
    page.locator("#paint").click()
    expect(page.locator("#note")).to_contain_text("seed 0 to 3", timeout=WAIT)
    unfold(page, "settings")


def show_compare(page: Page) -> None:
    page.locator("#to-compare").click()
    expect(page.locator("#slider img").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#compare-paint")).to_be_enabled(timeout=WAIT)
    page.locator("#grid-strengths textarea, #grid-strengths input").fill("0, 0.5, 1")
    page.locator("#grid-paint").click()
    expect(page.locator("#grid-note")).to_contain_text("9 pictures", timeout=WAIT)


def show_atoms(page: Page) -> None:
    open_tab(page, "Atoms")
    page.locator("#anatomy-file input").click()
    page.get_by_role("option").first.click()
    expect(page.locator("#anatomy-words textarea, #anatomy-words input")).to_have_value(
        re.compile("atoms of"), timeout=WAIT
    )


def show_train(page: Page) -> None:
    open_tab(page, "Train")
    page.locator("#train-folder input").click()
    page.get_by_role("option", name="subjects/octopus").click()
    page.locator("#train-take").click()
    expect(page.locator("#train-gallery img").first).to_be_visible(timeout=WAIT)
    page.locator("#train-instance_prompt textarea").fill("a sks octopus")


def show_runs(page: Page) -> None:
    open_tab(page, "Runs")
    page.locator("#runs label").first.click()
    expect(page.locator("#run-samples img").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#run-loss svg")).to_be_visible(timeout=WAIT)


TABS = {
    "generate": show_generate,
    "compare": show_compare,
    "atoms": show_atoms,
    "train": show_train,
    "runs": show_runs,
}


def shoot(browser, address, output, looks, tabs):
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


def keep(output):
    """The two pictures of the README: the top of a tab, in few colours."""
    for name in ("train", "runs"):
        with Image.open(output / f"{name}-light.png") as shot:
            top = shot.convert("RGB").crop((0, 0, 1280, min(shot.height, 960)))
            top.quantize(128).save(Path("assets") / f"app-{name}.png", optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters-dir", default="outputs")
    parser.add_argument("--output", default="outputs/shots", type=Path)
    parser.add_argument("--looks", nargs="+", default=list(LOOKS), choices=list(LOOKS))
    parser.add_argument("--tabs", nargs="+", default=list(TABS), choices=list(TABS))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--assets", action="store_true", help="keep the README's pictures too")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with serve_app(args.adapters_dir) as address:
        client = Client(address, verbose=False)
        if not client.predict(api_name="/list_trainings"):
            train_one(client)
        with open_browser(args.chromium) as browser:
            shoot(browser, address, args.output, args.looks, args.tabs)
    if args.assets:
        keep(args.output)


if __name__ == "__main__":
    main()
