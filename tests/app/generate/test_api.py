"""The app over HTTP: its endpoints through gradio_client, and what it refuses."""

import json
import os
import re
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image
from sdatoms_app import app as app_module
from sdatoms_app.security import OriginGuard, harden, read_auth

from sdatoms import AtomError

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
ROOT = Path(__file__).parents[3]
ENDPOINTS = {
    "/generate",
    "/compare",
    "/grid",
    "/cancel",
    "/list_bases",
    "/list_atoms",
    "/list_pictures",
    "/add_atoms",
    "/read_picture",
}
FLOORS = {
    "gradio": "6.22",
    "diffusers": "0.38",
    "transformers": "5.3",
    "torch": "2.10",
    "pillow": "11.3",
}
"""Versions with every fix that the app relies on."""


UNLOCKED = {
    "",
    "assets",
    "favicon.ico",
    "gradio_api/startup-events",
    "gradio_api/theme.css",
    "login",
    "logout",
    "manifest.json",
    "pwa_icon",
    "robots.txt",
    "static",
    "svelte",
    "theme.css",
}
"""What may be read without the password."""


@pytest.fixture(scope="module")
def client(address):
    client = Client(address, verbose=False)
    yield client
    client.close()


def pixels(path):
    with Image.open(path) as opened:
        return np.array(opened.convert("RGB"))


def test_every_endpoint_is_named_typed_and_described(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) >= ENDPOINTS
    for name in ENDPOINTS:
        assert len(endpoints[name]["description"]) > 20, name
        for parameter in endpoints[name]["parameters"]:
            assert parameter["type"], (name, parameter)
            assert re.fullmatch(r"[a-z_]+", parameter["parameter_name"]), (name, parameter)


def test_pictures_are_painted_listed_and_read(client):
    pictures = client.predict(
        "cat face",
        adapters={"dog": 0.5, "ink": {"down": 0.1, "mid": 0.2, "up": 0.3}},
        seed=11,
        batch=2,
        num_inference_steps=2,
        embed=True,
        api_name="/generate",
    )
    assert [picture["seed"] for picture in pictures] == [11, 12]
    with Image.open(pictures[0]["file"]) as opened:
        assert opened.size == (64, 64) and "Seed: 11" in opened.text["parameters"]
    listed = client.predict("dog", api_name="/list_pictures")
    assert [picture["id"] for picture in listed][:2] == [p["id"] for p in reversed(pictures)]
    read = client.predict(handle_file(pictures[0]["file"]), api_name="/read_picture")
    assert read["remarks"] == [] and read["brought"] == ["dog", "ink"]
    assert read["settings"]["adapters"][0]["strength"] == 0.5
    over = client.predict(
        "cat",
        start_from=pictures[0]["id"],
        num_inference_steps=4,
        denoising_strength=0.5,
        api_name="/generate",
    )
    assert not np.array_equal(pixels(over[0]["file"]), pixels(pictures[0]["file"]))


def test_comparisons_and_grids(client):
    base, tuned = client.predict("cat", {"dog": 1.0}, num_inference_steps=2, api_name="/compare")
    assert not np.array_equal(pixels(base["file"]), pixels(tuned["file"]))
    answer = client.predict(
        "cat", ["dog", "dog@100"], [0.0, 1.0], [0], num_inference_steps=2, api_name="/grid"
    )
    assert len(answer["pictures"]) == 4 and pixels(answer["grid"]).shape[0] > 128
    assert np.array_equal(pixels(answer["pictures"][0]["file"]), pixels(base["file"]))


def test_lists(client, adapters_dir):
    bases = client.predict(api_name="/list_bases")
    assert bases["bases"][0] == "tiny" and "Euler" in bases["schedulers"]
    atoms = {entry["id"]: entry for entry in client.predict(api_name="/list_atoms")}
    assert {"dog", "ink", "dog@100"} <= set(atoms)
    added = client.predict(handle_file(adapters_dir / "ink.safetensors"), api_name="/add_atoms")
    assert added["sha256"] == atoms["ink"]["sha256"]


def test_cancel_stops_this_sessions_painting_only(client, address):
    job = client.submit("cat", num_inference_steps=100, batch=8, api_name="/generate")
    other = Client(address, verbose=False)
    while not client.predict(api_name="/cancel"):  # until the job has begun
        assert not other.predict(api_name="/cancel")
    with pytest.raises(Exception, match="cancelled"):
        job.result(timeout=60)
    other.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a", "num_inference_steps": 101}, "goes from 1 to 100"),
        ({"prompt": "a", "batch": 99}, "goes from 1 to 8"),
        ({"prompt": "a", "width": 4096, "height": 4096}, "goes from 64 to 1024"),
        ({"prompt": "a", "adapters": {"../../etc/passwd": 1}}, "is listed"),
        ({"prompt": "a", "adapters": {"dog": "x"}}, "takes a finite number"),
        ({"prompt": "a", "base": "/etc"}, "no base"),
        ({"prompt": "a", "start_from": "../../../etc/passwd"}, "in the history"),
    ],
)
def test_refusals_are_sentences(client, values, message):
    with pytest.raises(Exception, match=message):
        client.predict(**values, api_name="/generate")


def test_files_that_are_no_atom_files_are_refused(client, adapters_dir, tmp_path):
    for name in ("evil.SafeTensors", "a.safetensors.pt", "b.ckpt"):
        path = tmp_path / name
        path.write_bytes(b"\x80\x04K\x01.")
        with pytest.raises(Exception, match="no safetensors file"):
            client.predict(handle_file(path), api_name="/add_atoms")
    with pytest.raises(Exception, match="no PNG"):
        client.predict(handle_file(adapters_dir / "ink.safetensors"), api_name="/read_picture")


def ask(address, fn_index, data):
    """Run one event by its number, as a page does; returns the last message of its stream."""
    body = {"data": data, "fn_index": fn_index, "session_hash": "abc"}
    joined = httpx.post(f"{address}/gradio_api/queue/join", json=body, timeout=30)
    if joined.status_code != 200:
        return {"success": False, "status": joined.status_code}
    with httpx.stream(
        "GET", f"{address}/gradio_api/queue/data?session_hash=abc", timeout=60
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return message
    raise AssertionError("the stream ended early")


def list_file_events(address):
    """Every event, private ones too, that takes a file or a picture: number and inputs."""
    config = httpx.get(f"{address}/config").json()
    kinds = {component["id"]: component["type"] for component in config["components"]}
    for dependency in config["dependencies"]:
        inputs = [kinds.get(id, "") for id in dependency["inputs"]]
        if dependency["backend_fn"] and {"file", "image"} & set(inputs):
            yield dependency["id"], inputs


def test_no_event_reads_a_file_that_was_not_uploaded(address, tmp_path):
    secret = tmp_path / "secret.png"  # below the temporary directory, where caches lie too
    Image.new("RGB", (8, 8), "red").save(secret)
    events = list(list_file_events(address))
    assert len(events) >= 5
    for path in (str(secret), "/etc/passwd", "../../etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for number, inputs in events:
            data = [file if kind in ("file", "image") else None for kind in inputs]
            answer = ask(address, number, data)
            assert not answer["success"], (path, number)
            assert "root:" not in json.dumps(answer)


def test_no_event_fetches_an_address(address):
    hits = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/x.png"
    for file in ({"path": url}, {"path": "x.png", "url": url}):
        for number, inputs in list_file_events(address):
            whole = file | {"meta": {"_type": "gradio.FileData"}}
            data = [whole if kind in ("file", "image") else None for kind in inputs]
            assert not ask(address, number, data)["success"]
    httpx.get(f"{address}/gradio_api/file={url}", follow_redirects=False)
    server.shutdown()
    server.server_close()
    assert hits == []


def test_files_outside_the_outputs_are_not_served(address, studio, adapters_dir):
    inside = studio.outputs / "x.txt"
    inside.write_text("mine")
    assert httpx.get(f"{address}/gradio_api/file={inside}").status_code == 200
    for path in (
        "/etc/passwd",
        f"{studio.outputs}/../../../../../../etc/passwd",
        f"{studio.outputs}/..%2f..%2f..%2f..%2fetc%2fpasswd",
        str(ROOT / "pyproject.toml") + "/../pyproject.toml",
        str(adapters_dir / "notes.txt"),
    ):
        answer = httpx.get(f"{address}/gradio_api/file={path}")
        assert answer.status_code in (403, 404), path


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example:80", "Origin": "http://evil.example:80"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_pages_start_nothing(address, headers):
    url = f"{address}/gradio_api/queue/join"
    body = {"data": [], "fn_index": 0, "session_hash": "x"}
    assert httpx.post(url, json=body, headers=headers).status_code == 403
    assert httpx.post(url, json=body, headers={"Origin": address}).status_code != 403


def test_a_tunnels_own_page_may_write_and_others_may_not():
    guard = OriginGuard(None, local=False)
    tunnel = {"host": "10.0.0.2:7860", "x-forwarded-host": "a.live", "origin": "https://a.live"}
    assert guard.find_fault("POST", tunnel) == ""
    assert guard.find_fault("POST", tunnel | {"origin": "https://b.live"}) != ""
    assert guard.find_fault("POST", {"host": "10.0.0.2:7860"}) == ""


def list_routes(router):
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        yield from list_routes(inner) if inner else [route]


def test_with_a_password_every_route_asks_for_it(serve, studio):
    address = serve(studio, auth=[("me", "secret-word")])
    (studio.outputs / "mine.txt").write_text("mine")
    assert httpx.get(f"{address}/gradio_api/file={studio.outputs}/mine.txt").status_code == 401
    opened = set()
    with httpx.Client(base_url=address, timeout=30) as visitor:
        for route in list_routes(serve.apps[-1].app):
            path = re.sub(r"\{[^}]*\}", "x", getattr(route, "path", ""))
            for method in getattr(route, "methods", None) or ():
                answer = visitor.request(method, path, content=b"{}")
                if answer.status_code != 401:
                    opened.add(path.strip("/").partition("/x")[0])
        assert visitor.get("/gradio_api/mcp/").status_code == 401
    assert opened == UNLOCKED  # the page that asks for the password, and Gradio's own files
    client = Client(address, auth=("me", "secret-word"), verbose=False)
    assert client.predict(api_name="/list_bases")["bases"]
    client.close()


def test_flags_that_do_not_go_together_are_refused(tmp_path, monkeypatch):
    def serve(**flags):
        app_module.serve(base=None, adapters_dir=tmp_path, outputs_dir=tmp_path, **flags)

    with pytest.raises(AtomError, match="takes --auth"):
        serve(share=True)
    with pytest.raises(AtomError, match="drop one of them"):
        serve(share=True, offline=True, auth=["me:secret-word"])
    with pytest.raises(AtomError, match="--models-dir"):
        serve(models_dir=tmp_path / "nothing")
    monkeypatch.setattr(app_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AtomError, match=r"sdatoms\[mcp\]"):
        serve(mcp=True)


def test_passwords_come_from_the_line_or_a_file(tmp_path):
    path = tmp_path / "people"
    path.write_text("me:secret-word\n\nyou:other:word\n")
    assert read_auth([f"@{path}"]) == [("me", "secret-word"), ("you", "other:word")]
    for entry in ("me", "me:short", ":secret-word", f"@{tmp_path}/nothing"):
        with pytest.raises(AtomError, match="--auth"):
            read_auth([entry])


def test_strangers_get_no_token_and_offline_means_offline(monkeypatch):
    import huggingface_hub.constants

    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    harden(local=True, offline=False)
    assert os.environ["HF_TOKEN"] == "x" and not huggingface_hub.constants.HF_HUB_OFFLINE
    harden(local=False, offline=True)
    assert "HF_TOKEN" not in os.environ and os.environ["HF_HUB_OFFLINE"] == "1"
    assert huggingface_hub.constants.HF_HUB_OFFLINE and Image.MAX_IMAGE_PIXELS < 50_000_000


def test_dependencies_have_the_fixes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {r.name: r for r in map(Requirement, project["dependencies"])}
    for name, floor in FLOORS.items():
        lowest = min(Version(s.version) for s in required[name].specifier if s.operator == ">=")
        assert lowest >= Version(floor), f"{name} may be as old as {lowest}"
        assert Version(version(name)) >= Version(floor)


def test_nothing_unpickles():
    pattern = re.compile(r"\b(torch\.load|pickle|joblib|allow_pickle|trust_remote_code|gr\.load)\b")
    for path in [*ROOT.glob("app/**/*.py"), *ROOT.glob("sdatoms/*.py")]:
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.S)
        assert not pattern.search(code), path
