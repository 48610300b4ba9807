"""The app: its library and handlers, its API over HTTP, and a journey in a headless Chromium."""

import io
import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from PIL import Image
from sdatoms_app.app import STYLE, THEME, build_app, find_port
from sdatoms_app.library import Library
from sdatoms_app.studio import Studio

import sdatoms
from sdatoms.pipeline import load_base, paint

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one run's atoms, a loose file, a checkpoint and two files that are no atoms."""
    root = tmp_path_factory.mktemp("adapters")
    pipe = load_base()
    for seed, path in enumerate(("dog/atoms.safetensors", "styles.safetensors")):
        injection = sdatoms.inject(pipe.unet, sdatoms.AtomConfig(variant="atoms"))
        with torch.no_grad():
            for parameter in injection.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.add_(noise * 0.2)
        sdatoms.save_atoms(root / path, {"unet": injection}, trigger="<b>sks</b>")
        injection.eject()
    shutil.copytree(root / "dog", root / "run" / "checkpoints" / "step-000001")
    (root / "old.safetensors").write_bytes(b"\x80\x04K\x01.")
    (root / "notes.txt").write_text("nothing")
    return root


@pytest.fixture(scope="module")
def studio(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("library") / "adapters"
    shutil.copytree(folder, copy)
    return Studio(None, Library(copy), tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def address(studio):
    with warnings.catch_warnings():  # gradio's and uvicorn's own
        warnings.simplefilter("ignore")
        app = build_app(studio)
        _, url, _ = app.launch(
            server_name="127.0.0.1",
            server_port=find_port(),
            prevent_thread_lock=True,
            quiet=True,
            theme=THEME,
            css=STYLE,
        )
    yield url
    app.close()


def ask(studio, **changes):
    settings = {
        "negative_prompt": "",
        "seed": 3,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "scheduler": "DDIM",
        "strengths": {},
    }
    return studio.paint("cat face", **(settings | changes))


def test_library_lists_atom_files_by_id(folder):
    entries = {entry.id: entry for entry in Library(folder).list()}
    assert set(entries) == {"dog", "styles"}
    assert entries["dog"].parameters == sdatoms.read_atoms(entries["dog"].path).num_parameters


@pytest.mark.parametrize("id", ["../dog", "/etc/passwd", "run/checkpoints/step-000001", "old", ""])
def test_ids_that_are_not_listed_are_refused(folder, id):
    with pytest.raises(sdatoms.AtomError, match="is listed; refresh"):
        Library(folder).find(id)


def test_uploads_are_checked_and_get_a_safe_name(folder, tmp_path):
    library = Library(tmp_path / "library")
    hostile = tmp_path / "..hidden; rm -rf $HOME.safetensors"
    shutil.copy(folder / "styles.safetensors", hostile)
    entry = library.add(hostile)
    assert entry.path.parent == tmp_path / "library" / "uploads"
    assert entry.path.name.startswith("hidden-rm-rf-home-")
    assert [e.id for e in library.list()] == [entry.id]
    with pytest.raises(sdatoms.AtomError, match="no safetensors file"):
        library.add(folder / "old.safetensors")
    assert len(library.list()) == 1


def test_painting_leaves_the_base_and_equals_the_library(studio):
    first = ask(studio)
    both = ask(studio, strengths={"dog": 0.7, "styles": -0.5})
    assert first.adapted is None and both.adapted is not None
    assert np.array_equal(first.base, both.base)
    assert np.array_equal(ask(studio).base, first.base)
    pipe = load_base()
    adapters = sdatoms.load_atoms(pipe, studio.library.find("dog").path, strength=0.7)
    adapters.load(studio.library.find("styles").path, strength=-0.5)
    again = paint(pipe, ["cat face"], [3], num_inference_steps=3, guidance_scale=5.0)[0]
    assert np.array_equal(again, both.adapted)
    recipe = json.loads(Image.open(both.paths[1]).text["sdatoms"])
    assert recipe["atoms"] == {"dog": 0.7, "styles": -0.5} and recipe["seed"] == 3


def test_strength_zero_paints_the_base(studio):
    painted = ask(studio, strengths={"dog": 0.0})
    assert np.array_equal(painted.base, painted.adapted)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": 101},
        {"scheduler": "x"},
        {"strengths": {"x": 1}},
    ],
)
def test_numbers_out_of_range_are_refused(studio, changes):
    with pytest.raises(sdatoms.AtomError):
        ask(studio, **changes)


def test_api_generates_and_refuses_in_words(address, folder):
    client = Client(address, verbose=False)
    base, adapted, note, seed = client.predict(
        "cat face",
        "",
        2,
        5,
        "DDIM",
        11,
        False,
        ["dog"],
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        api_name="/generate",
    )
    assert seed == 11 and "dog at 1" in note
    assert not np.array_equal(Image.open(base), Image.open(adapted))
    with pytest.raises(Exception, match="not in the list of choices"):
        client.predict(
            "cat",
            "",
            2,
            5,
            "DDIM",
            1,
            False,
            ["../../etc/passwd"],
            1,
            1,
            1,
            1,
            1,
            api_name="/generate",
        )
    with pytest.raises(Exception, match="no safetensors file"):
        client.predict(handle_file(folder / "old.safetensors"), [], api_name="/upload")
    client.close()


def test_first_picture_in_a_browser(address, studio, folder):
    """Open the page, choose atoms, set a strength, paint; drop a file; no request leaves the
    machine."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        foreign, errors = [], []
        page.on(
            "request",
            lambda r: (
                foreign.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None
            ),
        )
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(address)
        page.locator("#paint").click()
        expect(page.locator("#base-picture img")).to_be_visible(timeout=60_000)
        expect(page.locator("#note textarea")).to_have_value(re.compile("seed 0, no atoms"))
        page.locator("#atoms input").click()
        page.get_by_role("option", name="dog").click()
        page.keyboard.press("Escape")
        strength = page.locator("#strength-0 input[type=number]")
        expect(strength).to_be_visible()
        strength.fill("0.5")
        page.locator("#paint").click()
        expect(page.locator("#adapted-picture img")).to_be_visible(timeout=60_000)
        expect(page.locator("#note textarea")).to_have_value(re.compile("dog at 0.5"))
        source = page.locator("#adapted-picture img").get_attribute("src")
        shown = Image.open(io.BytesIO(page.request.get(source).body()))
        expected = studio.paint(
            "cat face in sks style",
            negative_prompt="",
            seed=0,
            num_inference_steps=25,
            guidance_scale=5,
            scheduler="DDIM",
            strengths={"dog": 0.5},
        ).adapted
        assert np.array_equal(shown.convert("RGB"), expected)
        page.locator("#upload input[type=file]").set_input_files(folder / "styles.safetensors")
        expect(page.locator("#strength-1 input[type=number]")).to_be_visible()
        assert (
            page.locator("b").filter(has_text="sks").count() == 0
        )  # metadata is text, never markup
        browser.close()
    assert not foreign and not errors
