"""Fixtures of the app's tests: a tiny base on disk, a folder of atom files, a studio, a server, a
headless Chromium."""

import gc
import os
import shutil
import signal
import warnings

import pytest
import torch
from PIL import Image
from sdatoms_app.app import build_app, find_port, launch_settings
from sdatoms_app.studio.library import Library
from sdatoms_app.studio.orders import Order
from sdatoms_app.studio.studio import Studio
from sdatoms_app.train.page import open_queue
from tiny.app import connect
from tiny.limits import HANG
from tiny.pictures import draw
from tiny.pipelines import save_base

import sdatoms
from sdatoms.diffusion.open import load_base
from sdatoms.pictures import make_thumbnail

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The directory of a tiny pipeline."""
    return save_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapters_dir(tiny_base, tmp_path_factory):
    """A run's atoms and checkpoint, a loose file with hostile texts, a pickle and a text file."""
    root = tmp_path_factory.mktemp("adapters")
    pipe = load_base(str(tiny_base))
    thumbnail = make_thumbnail(Image.new("RGB", (32, 32), "teal"))
    for seed, path in enumerate(
        (
            "dog/atoms.safetensors",
            "dog/checkpoints/step-000100/atoms.safetensors",
            "ink.safetensors",
        )
    ):
        injection = sdatoms.inject(pipe.unet, sdatoms.AtomConfig(variant="atoms"))
        with torch.no_grad():
            for parameter in injection.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.add_(noise * 0.2)
        trigger = "sks dog" if seed < 2 else "<b>ink</b><img src=x onerror=alert(1)>"
        sdatoms.save_atoms(
            root / path,
            {"unet": injection},
            trigger=trigger,
            base_model=str(tiny_base),
            thumbnail=thumbnail,
        )
        injection.eject()
    (root / "old.safetensors").write_bytes(b"\x80\x04K\x01.")
    (root / "notes.txt").write_text("nothing")
    return root


@pytest.fixture(scope="module")
def studio(tiny_base, adapters_dir, tmp_path_factory):
    """A studio with a library of its own; its lists and outputs last for one test module."""
    copy = tmp_path_factory.mktemp("library") / "adapters"
    shutil.copytree(adapters_dir, copy)
    return Studio(str(tiny_base), Library(copy), tmp_path_factory.mktemp("outputs"))


@pytest.fixture
def order():
    """A small order: two steps of the base alone."""
    return Order("cat face", seed=3, num_inference_steps=2)


@pytest.fixture
def paint(studio, order):
    """Paint an order and return what was kept."""
    return lambda wanted=order: list(studio.paint(wanted))


@pytest.fixture(scope="module")
def serve():
    """Serve a studio from a thread; returns its address without the last slash. `apps` holds what
    is served."""
    apps = []

    def start(studio, **settings):
        with warnings.catch_warnings():  # gradio's and uvicorn's own
            warnings.simplefilter("ignore")
            apps.append(build_app(studio))
            _, url, _ = apps[-1].launch(
                server_name="127.0.0.1",
                server_port=find_port(),
                prevent_thread_lock=True,
                quiet=True,
                **launch_settings(studio),
                **settings,
            )
        return url.rstrip("/")

    start.apps = apps
    yield start
    while apps:
        apps.pop().close()
    gc.collect()  # gradio leaves loops and sockets to the collector: here, not in another test


@pytest.fixture(scope="module")
def address(serve, studio):
    return serve(studio)


@pytest.fixture(scope="module")
def client(address):
    client = connect(address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def endpoints(studio):
    """The functions under the endpoints by name, as Gradio calls them: no server runs."""
    events = build_app(studio).fns.values()
    return {event.api_name: event.fn for event in events if event.api_visibility == "public"}


@pytest.fixture
def pictures(tmp_path):
    """Two fine pictures, a tiny one, a corrupt one with a name of markup."""
    paths = [draw(tmp_path / f"{k}.png", seed=k) for k in range(2)]
    paths.append(draw(tmp_path / "small.png", (20, 20), seed=5))
    paths.append(tmp_path / "<b>x<b>.png")
    paths[-1].write_bytes(paths[0].read_bytes()[:100])
    return paths


@pytest.fixture
def queue(studio):
    """The app's trainings; what is still under way at the end is ended."""
    queue = open_queue(studio)
    yield queue
    for training in queue.list():
        if training.pid:
            os.kill(training.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * HANG)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


FORGET = """if (location.protocol === 'http:' && !sessionStorage.getItem('began')) {
  localStorage.clear();
  sessionStorage.setItem('began', 'yes');
}"""
"""At a page's first script, not when it is loaded again."""


@pytest.fixture(scope="module")
def profile(browser):
    """One profile, so that the app's scripts are fetched and compiled once."""
    profile = browser.new_context()
    profile.add_init_script(FORGET)
    yield profile
    profile.close()


@pytest.fixture
def open_page(profile, address):
    """Open the app in a tab that remembers nothing; at the end, no error and no foreign request."""
    from playwright.sync_api import expect

    pages, foreign, errors = [], [], []

    def open(path="/", viewport=None):
        page = profile.new_page()
        pages.append(page)
        if viewport:
            page.set_viewport_size(viewport)
        page.set_default_timeout(1000 * HANG)
        own = (address, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else foreign.append(r.url))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(address + path)
        expect(page.locator("#note")).to_contain_text("is ready")
        return page

    yield open
    for page in pages:
        page.close()
    assert not foreign and not errors
