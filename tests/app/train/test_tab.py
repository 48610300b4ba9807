"""The Train, Runs and Atoms tabs: endpoints over HTTP, and a journey in a headless Chromium."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from sdatoms_app.app import build_app, find_port
from sdatoms_app.queue.queue import Queue
from sdatoms_app.queue.worker import write_json
from sdatoms_app.studio.library import Library
from sdatoms_app.studio.studio import Studio
from sdatoms_app.train.form import read_preset
from sdatoms_app.train.measure import make_key
from sdatoms_app.train.page import TrainPage, open_queue
from tiny.limits import wait_for
from tiny.pictures import draw

import sdatoms
from sdatoms.files.compose import compose

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
STEPS = 20_000
"""More than any machine takes while a test looks on."""
ENDPOINTS = Path(__file__).parents[2] / "app_endpoints.json"


@pytest.fixture(scope="module")
def client(address):
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


def list_endpoints(app):
    """What programs may ask for, by name: what it takes, with types and defaults, what it gives."""

    def write(parameter):
        default = f" = {json.dumps(parameter['parameter_default'])}"
        given = default if parameter["parameter_has_default"] else ""
        return f"{parameter['parameter_name']}: {parameter['python_type']['type']}{given}"

    return {
        name.strip("/"): {
            "about": endpoint.get("description", ""),
            "takes": [write(parameter) for parameter in endpoint["parameters"]],
            "gives": [answer["python_type"]["type"] for answer in endpoint["returns"]],
        }
        for name, endpoint in sorted(app.get_api_info()["named_endpoints"].items())
    }


def test_the_endpoints_are_those_written_down(studio):
    """Programs rely on them: whoever changes one changes `app_endpoints.json` on purpose."""
    found = list_endpoints(build_app(studio))
    assert found == json.loads(ENDPOINTS.read_text())
    for name, endpoint in found.items():
        assert len(endpoint["about"]) > 20, name
        assert not any("param_" in words or "Literal[]" in words for words in endpoint["takes"])


def test_pictures_are_judged_over_http(client, pictures):
    answer = client.predict([handle_file(p) for p in pictures], api_name="/check_pictures")
    assert any("2 fine, 1 tiny" in str(part) for part in answer)
    assert any("cannot be read" in str(part) for part in answer)


def test_trainings_over_http(client, studio, pictures):
    """Uploads are trained on, the run is extended and deleted; a cost once measured is known."""

    def wait(run, *states):
        def look():
            now = client.predict(run, api_name="/get_training")
            return now if now["state"] in states else None

        return wait_for(look)

    settings = {"max_train_steps": 1, "validation_steps": 0}
    files = [handle_file(path) for path in pictures[:2]]
    run = client.predict(files, "a sks dog", "Quick", settings, api_name="/train_pictures")["id"]
    done = wait(run, "done", "failed")
    assert done["atoms"] and (done["step"], done["total"]) == (1, 1)
    assert client.predict(run, 1000, api_name="/extend_training")["total"] == 1001
    client.predict(run, api_name="/stop_training")
    wait(run, "stopped")
    assert client.predict(run, api_name="/resume_training")["state"] in ("queued", "starting")
    client.predict(run, api_name="/stop_training")
    wait(run, "stopped")
    assert client.predict(run, api_name="/delete_training") is True
    assert client.predict(api_name="/list_trainings") == []
    page = TrainPage(studio, [])
    facts = {"minutes": "1", "memory": "1 GiB"}
    key = make_key(page.with_base(read_preset("Quick", settings)))
    write_json(page.measured.path, {key: facts})
    assert client.predict("Quick", settings, api_name="/measure_training") == facts


def test_pictures_that_cannot_be_used_are_refused_over_http(client, pictures):
    with pytest.raises(Exception, match="cannot be read"):
        files = [handle_file(p) for p in pictures]
        client.predict(files, "a dog", "Quick", {}, api_name="/train_pictures")
    with pytest.raises(Exception, match="no pictures"):
        client.predict([], "a dog", "Quick", {}, api_name="/train_pictures")
    with pytest.raises(Exception, match="no preset"):
        client.predict("../x", {}, api_name="/measure_training")


def test_listed_folders_are_offered(studio):
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


def test_a_training_is_queued_only_with_pictures_and_a_prompt(studio):
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


def test_files_are_looked_into_over_http(client, studio):
    about = client.predict("dog", api_name="/open_atoms")
    path = studio.library.find("dog").path
    assert about["bytes"]["file"] == path.stat().st_size
    assert about["parameters"] == sdatoms.read_atoms(path).num_parameters
    assert {layer["block"] for layer in about["layers"]} == {"down", "mid", "up"}
    view = about["views"][0]
    tiles = client.predict("dog", view, api_name="/show_atoms")
    assert len(tiles["before"]) == about["atoms"] and len(tiles["difference"][0]) == 3
    given = {"id": "dog", "prompt": "cat", "atoms": [0], "view": view}
    painted = client.predict(**given, num_inference_steps=2, api_name="/mute_atoms")
    assert [picture["label"] for picture in painted] == ["base", "with the file", "without atom 0"]
    assert len({Path(picture["file"]).read_bytes() for picture in painted}) == 3
    row = client.predict(["dog", "ink"], api_name="/compare_atoms")[0]
    assert row[0]["cosine"] == pytest.approx(1) and abs(row[1]["cosine"]) < 0.5
    for endpoint, given, words in (
        ("open_atoms", ("gone",), "is listed; refresh"),
        ("show_atoms", ("dog", "unet.gone.spatial"), "no such layer"),
        ("mute_atoms", ("dog", "cat", [99]), "no atom 99"),
        ("mute_atoms", ("dog", "cat", [0] * 10), "at most 9"),
        ("compare_atoms", (["dog"] * 6,), "at most 5"),
    ):
        with pytest.raises(Exception, match=words):
            client.predict(*given, api_name=f"/{endpoint}")


def test_mixing_over_http_is_the_exact_sum(client, studio):
    mixed = client.predict({"dog": 0.5, "ink": -1}, "../../My mix", api_name="/mix_atoms")
    saved = list((studio.library.folder / "mixes").glob("my-mix-*.safetensors"))
    assert len(saved) == 1 and saved[0].stem in mixed["id"]
    files = [sdatoms.read_atoms(studio.library.find(id).path) for id in ("dog", "ink")]
    assert sdatoms.read_atoms(saved[0]).sha256 == compose(files, [0.5, -1.0]).sha256
    assert client.predict(mixed["id"], api_name="/open_atoms")["sha256"] == mixed["sha256"]
    for strengths, words in (({"dog": 1}, "at least two"), ({"dog": 1, "ink": 11}, "from -10 to")):
        with pytest.raises(Exception, match=words):
            client.predict(strengths, api_name="/mix_atoms")
    saved[0].unlink()


def test_exports_over_http_state_their_error(client, studio):
    for form, words in (
        ("LoRA (diffusers)", "of the change lost"),
        ("Full difference (LyCORIS)", "exact"),
        ("Baked pipeline", "exact"),
    ):
        done = client.predict("dog", form, 2, api_name="/export_atoms")
        assert words in done["text"]
        assert (done["file"] is None) == (form == "Baked pipeline")
    assert {p.name for p in (studio.outputs / "exports").iterdir()} == {
        "dog-lora-diffusers-rank-2.safetensors",
        "dog-diff.safetensors",
        "dog-baked",
    }


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def unfold_settings(page):
    for name in ("Advanced", "Steps and learning rate", "Samples and checkpoints"):
        page.get_by_role("button", name=name).click()


def start_training(page, queue, **settings):
    """Fill settings in, start, and return the run's id."""
    from playwright.sync_api import expect

    for name, value in settings.items():
        page.locator(f"#train-{name} input").fill(str(value))
    page.locator("#train-start").click()
    told = page.locator("#train-result input, #train-result textarea")
    expect(told).to_have_value(re.compile("is queued"))
    return queue.list()[0].id


@pytest.fixture
def queue(studio):
    """The app's trainings; what is still under way at the end is ended."""
    queue = open_queue(studio)
    yield queue
    for job in queue.list():
        if job.pid:
            os.kill(job.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_training_goes_on_over_a_reload_is_stopped_resumed_and_used(open_page, queue, pictures):
    """Upload, caption, reload, start, reload while it trains, stop, resume, stop, paint with it."""
    from playwright.sync_api import expect

    page = open_page()
    open_tab(page, "Train")
    verdict = page.locator("#train-verdict textarea")
    page.locator("#train-upload input[type=file]").set_input_files(pictures)
    expect(verdict).to_have_value(re.compile("2 fine, 1 tiny"))
    assert page.locator("#train-gallery b").count() == 0  # names are text, never markup
    page.locator("#train-instance_prompt textarea").fill("a sks dog")
    page.locator("#train-caption textarea").fill("a sks dog on the beach")
    drafts = queue.root / ".drafts"
    for words in ("beach", 'sks dog"'):
        wait_for(lambda words=words: any(words in p.read_text() for p in drafts.glob("*/*.json")))
    page.reload()
    open_tab(page, "Train")
    expect(page.locator("#train-caption textarea")).to_have_value("a sks dog on the beach")
    expect(page.locator("#train-instance_prompt textarea")).to_have_value("a sks dog")
    unfold_settings(page)
    run = start_training(page, queue, max_train_steps=STEPS, validation_steps=0)
    open_tab(page, "Runs")
    status = page.locator("#run-status")
    expect(status).to_contain_text(re.compile(rf"step [1-9]\d* of {STEPS}"))
    page.reload()
    before = queue.find(run).step
    open_tab(page, "Runs")
    expect(status).to_contain_text("a sks dog")
    expect(page.locator("#run-loss svg")).to_be_visible()
    wait_for(lambda: queue.find(run).step > before)
    page.locator("#run-stop").click()
    expect(status).to_contain_text("■ stopped")
    stopped = queue.find(run)
    assert stopped.error == "" and stopped.step > before
    texts = list((stopped.path / "instance_images").glob("*.txt"))
    assert [p.read_text() for p in texts] == ["a sks dog on the beach"]
    page.locator("#run-resume").click()
    wait_for(lambda: queue.find(run).step > stopped.step)
    expect(status).to_contain_text("▶ training")
    page.locator("#run-stop").click()
    expect(status).to_contain_text("■ stopped")
    last = queue.find(run).step
    rows = (stopped.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, last + 1))  # each step once
    page.locator("#run-send").click()
    expect(page.locator("#atoms")).to_contain_text(f"runs/{run}@{last}")
    page.locator("#paint").click()
    expect(page.locator("#note")).to_contain_text(f"runs/{run}@{last} at 1")
    open_tab(page, "Runs")
    page.locator("#run-again").click()
    expect(page.locator("#train-instance_prompt textarea")).to_be_visible()
    unfold_settings(page)  # folded again since the page was loaded
    expect(page.locator("#train-max_train_steps input")).to_have_value(str(STEPS))


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


def test_a_training_outlives_the_server_that_started_it(serve, tiny_base, tmp_path):
    """A folder the operator listed is trained on; the server is killed with all its processes;
    another server finds the training at work and stops it."""
    (tmp_path / "photos" / "rex").mkdir(parents=True)
    draw(tmp_path / "photos" / "rex" / "a.png")
    port = find_port()
    command = [sys.executable, "-m", "sdatoms", "ui", "--port", str(port), "--offline"]
    command += ["--pretrained_model_name_or_path", str(tiny_base)]
    command += ["--adapters-dir", str(tmp_path / "atoms"), "--outputs-dir", str(tmp_path / "out")]
    command += ["--pictures-dir", str(tmp_path / "photos")]
    with (tmp_path / "server.txt").open("wb") as output:
        server = subprocess.Popen(command, start_new_session=True, stdout=output, stderr=output)
    try:
        wait_for(lambda: b"Running on" in (tmp_path / "server.txt").read_bytes())
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        assert "photos/rex" in client.predict(api_name="/list_folders")
        settings = {"max_train_steps": 20_000, "validation_steps": 0}
        given = ("photos/rex", "a sks dog", "Quick", settings)
        run = client.predict(*given, api_name="/train")["id"]
        queue = Queue(tmp_path / "atoms" / "runs")
        wait_for(lambda: queue.find(run).step >= 1)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    before = queue.find(run).step
    wait_for(lambda: queue.find(run).step > before + 1)
    fresh = Studio(str(tiny_base), Library(tmp_path / "atoms"), tmp_path / "out")
    other = Client(serve(fresh), verbose=False)
    assert other.predict(run, api_name="/get_training")["state"] == "running"
    other.predict(run, api_name="/stop_training")
    wait_for(lambda: queue.find(run).state == "stopped")
    assert queue.find(run).error == "" and any((queue.root / run / "checkpoints").iterdir())
    other.close()
