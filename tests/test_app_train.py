"""The Train, Runs and Atoms tabs: endpoints over HTTP, and a journey in a headless Chromium."""

import re
import shutil

import pytest
from app_fixtures import adapters_dir, address, serve, studio, tiny_base  # noqa: F401
from gradio_client import Client, handle_file
from PIL import Image
from sdatoms_app.app import build_app
from sdatoms_app.train_page import TrainPage, open_queue
from training_tools import draw, wait_for

import sdatoms
from sdatoms.compose import compose

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OURS = {
    "check_pictures",
    "train_pictures",
    "measure_training",
    "list_folders",
    "train",
    "list_trainings",
    "get_training",
    "stop_training",
    "resume_training",
    "extend_training",
    "delete_training",
    "open_atoms",
    "show_atoms",
    "mute_atoms",
    "compare_atoms",
    "mix_atoms",
    "export_atoms",
}


@pytest.fixture(scope="module")
def client(address):  # noqa: F811
    client = Client(address, verbose=False)
    yield client
    client.close()


@pytest.fixture
def pictures(tmp_path):
    """Two fine pictures, a tiny one, a corrupt one with a name of markup."""
    paths = [draw(tmp_path / f"{k}.png", seed=k) for k in range(2)]
    paths.append(draw(tmp_path / "small.png", (20, 20), seed=5))
    paths.append(tmp_path / "<b>x<b>.png")
    paths[-1].write_bytes(paths[0].read_bytes()[:100])
    return paths


def test_every_endpoint_is_named_and_described(studio):  # noqa: F811
    named = build_app(studio).get_api_info()["named_endpoints"]
    assert OURS <= {name.strip("/") for name in named}
    for name in OURS:
        assert named[f"/{name}"]["description"], name


def test_pictures_are_judged_over_http(client, pictures):
    answer = client.predict([handle_file(p) for p in pictures], api_name="/check_pictures")
    assert any("2 fine, 1 tiny" in str(part) for part in answer)
    assert any("cannot be read" in str(part) for part in answer)


def test_pictures_that_cannot_be_used_are_refused_over_http(client, pictures):
    with pytest.raises(Exception, match="cannot be read"):
        files = [handle_file(p) for p in pictures]
        client.predict(files, "a dog", "Quick", {}, api_name="/train_pictures")
    with pytest.raises(Exception, match="no pictures"):
        client.predict([], "a dog", "Quick", {}, api_name="/train_pictures")
    with pytest.raises(Exception, match="no preset"):
        client.predict("../x", {}, api_name="/measure_training")


def test_listed_folders_are_offered(studio):  # noqa: F811
    page = TrainPage(studio, [])
    token, crops, verdict, *_ = page.add_folder("subjects/clay", "")
    assert len(crops) == 8 and verdict.startswith("8 fine")
    assert all(picture.caption for picture in page.open(token).list())
    with pytest.raises(Exception, match="no folder"):
        page.add_folder("../../etc", token)


@pytest.mark.parametrize(
    ("folder", "preset", "settings", "words"),
    [
        ("../../etc", "Quick", {}, "no folder"),
        ("subjects/clay", "../x", {}, "no preset"),
        ("subjects/clay", "Quick", {"output_dir": "/etc"}, "no setting"),
        ("subjects/clay", "Quick", {"max_train_steps": 10**9}, "at most"),
    ],
)
def test_trainings_that_cannot_be_are_refused(client, folder, preset, settings, words):
    with pytest.raises(Exception, match=words):
        client.predict(folder, "a dog", preset, settings, api_name="/train")
    assert client.predict(api_name="/list_trainings") == []


@pytest.mark.parametrize("run", ["../x", "/etc/passwd", "", "x" * 300, "con\0"])
def test_runs_that_are_not_listed_are_refused(client, run):
    for endpoint in ("get_training", "stop_training", "resume_training", "delete_training"):
        with pytest.raises(Exception, match="is listed; refresh"):
            client.predict(run, api_name=f"/{endpoint}")
    with pytest.raises(Exception, match="is listed; refresh"):
        client.predict(run, 5, api_name="/extend_training")


def test_a_training_is_queued_only_with_pictures_and_a_prompt(studio):  # noqa: F811
    page = TrainPage(studio, [])
    values = dict.fromkeys(page.names) | {"instance_prompt": "a dog"}
    with pytest.raises(Exception, match="no pictures"):
        page.start("", *values.values())
    values["instance_prompt"] = ""
    with pytest.raises(Exception, match="prompt of the pictures is empty"):
        page.start("", *values.values())
    values |= {"instance_prompt": "a dog", "with_prior_preservation": True}
    with pytest.raises(Exception, match="needs class_prompt"):
        page.start("", *values.values())
    assert page.queue.list() == []


def test_mixing_over_http_is_the_exact_sum(client, studio):  # noqa: F811
    ids = ["dog", "ink"]
    told, *_ = client.predict(ids, "../../My mix", 0.5, -1, 1, 1, 1, api_name="/mix_atoms")
    saved = list((studio.library.folder / "mixes").glob("my-mix-*.safetensors"))
    assert len(saved) == 1 and saved[0].stem in told
    files = [sdatoms.read_atoms(studio.library.find(id).path) for id in ids]
    assert sdatoms.read_atoms(saved[0]).sha256 == compose(files, [0.5, -1.0]).sha256
    with pytest.raises(Exception, match="at least two"):
        client.predict(["dog"], "x", 1, 1, 1, 1, 1, api_name="/mix_atoms")
    saved[0].unlink()


def test_exports_over_http_state_their_error(client, studio):  # noqa: F811
    client.predict("dog", api_name="/open_atoms")
    for form, words in (
        ("LoRA (diffusers)", "of the change lost"),
        ("Full difference (LyCORIS)", "exact"),
        ("Baked pipeline", "exact"),
    ):
        told, _ = client.predict("dog", form, 2, api_name="/export_atoms")
        assert words in told
    assert {p.name for p in (studio.outputs / "exports").iterdir()} == {
        "dog-lora-diffusers-rank-2.safetensors",
        "dog-diff.safetensors",
        "dog-baked",
    }


@pytest.mark.slow
def test_train_stop_look_and_use_in_a_browser(address, studio, pictures):  # noqa: F811
    """Upload, caption, reload, start, reload while it trains, stop; train again and use it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import expect, sync_playwright

    queue = open_queue(studio)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        foreign, errors = [], []
        page.on(
            "request",
            lambda r: (
                foreign.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None
            ),
        )
        page.on("pageerror", lambda e: errors.append(str(e)))

        def open_tab(name):
            page.get_by_role("tab", name=name, exact=True).click()

        def start(steps):
            page.locator("#train-max_train_steps input").fill(str(steps))
            page.locator("#train-validation_steps input").fill("0")
            page.locator("#train-start").click()
            page.wait_for_function(
                "() => /is queued/.test(document.querySelector('#train-result')"
                ".querySelector('input,textarea').value)"
            )
            return queue.list()[0].id

        page.goto(address)
        open_tab("Train")
        page.locator("#train-upload input[type=file]").set_input_files(pictures)
        verdict = page.locator("#train-verdict textarea")
        expect(verdict).to_have_value(re.compile("2 fine, 1 tiny"))
        assert page.locator("#train-gallery b").count() == 0  # names are text, never markup
        page.locator("#train-instance_prompt textarea").fill("a sks dog")
        page.locator("#train-caption textarea").fill("a sks dog on the beach")
        drafts = queue.root / ".drafts"
        wait_for(lambda: any("beach" in p.read_text() for p in drafts.glob("*/draft.json")))
        wait_for(lambda: any('sks dog"' in p.read_text() for p in drafts.glob("*/draft.json")))
        page.reload()
        open_tab("Train")
        expect(page.locator("#train-caption textarea")).to_have_value("a sks dog on the beach")
        expect(page.locator("#train-instance_prompt textarea")).to_have_value("a sks dog")
        page.get_by_role("button", name="Advanced").click()
        page.get_by_role("button", name="Steps and learning rate").click()
        page.get_by_role("button", name="Samples and checkpoints").click()
        long = start(20_000)
        open_tab("Runs")
        status = page.locator("#run-status")
        expect(status).to_contain_text(re.compile(r"step [1-9]\d* of 20000"))
        page.reload()
        before = queue.find(long).step
        open_tab("Runs")
        expect(status).to_contain_text("a sks dog")
        wait_for(lambda: queue.find(long).step > before)
        page.locator("#run-stop").click()
        expect(status).to_contain_text("stopped")
        assert queue.find(long).error == "" and any((queue.root / long / "checkpoints").iterdir())
        texts = list((queue.root / long / "instance_images").glob("*.txt"))
        assert [p.read_text() for p in texts] == ["a sks dog on the beach"]
        page.locator("#run-again").click()
        expect(page.locator("#train-instance_prompt textarea")).to_be_visible()
        page.get_by_role("button", name="Advanced").click()
        page.get_by_role("button", name="Steps and learning rate").click()
        page.get_by_role("button", name="Samples and checkpoints").click()
        short = start(2)
        open_tab("Runs")
        page.locator("#runs label", has_text=short).click()
        expect(status).to_contain_text("done")
        page.locator("#run-send").click()
        expect(page.locator("#atoms")).to_contain_text(f"runs/{short}")
        open_tab("Atoms")
        page.locator("#anatomy-refresh").click()
        page.locator("#anatomy-file input").click()
        page.get_by_role("option", name=f"runs/{short}").click()
        expect(page.locator("#anatomy-after img")).to_be_visible()
        cell = page.locator("#anatomy-heat button").nth(1)
        path = cell.get_attribute("data-path")
        cell.click()
        expect(page.locator("#anatomy-layer input")).to_have_value(re.compile(re.escape(path)))
        browser.close()
    assert not foreign and not errors
    assert Image.open(pictures[0]).size == (96, 80)
