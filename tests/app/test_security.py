"""What the server refuses: foreign pages and paths, strangers, and too much of anything."""

import asyncio
import io
import json
import os
import re
import threading
import tomllib
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image
from sdatoms_app.security import (
    MAX_PIXELS,
    OriginGuard,
    check_root_path,
    harden,
    hide_proxies,
    keep_loopback_direct,
    read_auth,
)
from sdatoms_app.train.drafts import Draft
from tiny.app import (
    FILES,
    connect,
    fill_inputs,
    get,
    list_file_events,
    post,
    run_event,
    upload,
)
from tiny.limits import HANG

from sdatoms import AtomError

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
ROOT = Path(__file__).parents[2]
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


def make_bomb(side):
    """A PNG of `side`² white pixels in a few kilobytes."""
    row = b"\0" + b"\xff" * (side // 8)
    chunks = [
        (b"IHDR", side.to_bytes(4, "big") * 2 + b"\x01\0\0\0\0"),
        (b"IDAT", zlib.compress(row * side, 9)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += len(body).to_bytes(4, "big") + kind + body
        data += zlib.crc32(kind + body).to_bytes(4, "big")
    return data


def test_uploads_that_are_too_large_are_refused_at_the_door(serve, studio, monkeypatch):
    monkeypatch.setattr("sdatoms_app.app.MAX_UPLOAD_BYTES", 1 << 20)
    address = serve(studio)
    assert upload(address, "a.png", b"\0" * (1 << 19)).status_code == 200
    assert upload(address, "a.png", b"\0" * (1 << 21)).status_code == 413


def test_a_picture_of_too_many_pixels_is_opened_nowhere(address, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # to put it back
    harden(local=True, offline=False)
    bomb = make_bomb(10_400)
    assert len(bomb) < 1 << 20 and MAX_PIXELS < 10_400**2 < 2 * MAX_PIXELS
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(bomb))
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb)
    refused = Draft(tmp_path / "drafts").add([path])
    assert len(refused) == 1 and "bomb.png" in refused[0]
    stored = upload(address, "bomb.png", bomb).json()[0]
    file = {"path": stored, "meta": {"_type": "gradio.FileData"}}
    tried = 0
    for number, inputs in list_file_events(address):
        if "image" in inputs:
            data = [file if kind == "image" else None for kind in inputs]
            assert not run_event(address, number, data, "bomb")["success"]
            tried += 1
    assert tried >= 3  # Paint and both halves of Compare


def test_a_link_in_the_outputs_is_no_way_out(address, studio, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    link = studio.outputs / "link.txt"
    link.symlink_to(secret)
    answer = get(f"{address}/gradio_api/file={link}")
    link.unlink()
    assert answer.status_code in (403, 404)


def test_no_event_reads_a_file_that_was_not_uploaded(address, tmp_path):
    secret = tmp_path / "secret.png"  # below the temporary directory, where caches lie too
    Image.new("RGB", (8, 8), "red").save(secret)
    events = list(list_file_events(address))
    assert {kind for _, inputs in events for kind in inputs} >= FILES
    for path in (str(secret), "/etc/passwd", "../../etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for number, inputs in events:
            answer = run_event(address, number, fill_inputs(inputs, file))
            assert not answer["success"], (path, number)
            assert "root:" not in json.dumps(answer)
            assert len(answer["output"]["error"]) > 10, number  # Gradio by itself says nothing


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
            answer = run_event(address, number, fill_inputs(inputs, whole))
            assert not answer["success"] and len(answer["output"]["error"]) > 10, number
    get(f"{address}/gradio_api/file={url}", follow_redirects=False)
    server.shutdown()
    server.server_close()
    assert hits == []


def test_no_event_fetches_a_public_address(address, monkeypatch):
    asked = []

    async def get(url, *rest, **more):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr("safehttpx.get", get)
    harden(local=True, offline=False)
    file = {"path": "http://93.184.216.34/x.png", "meta": {"_type": "gradio.FileData"}}
    for number, inputs in list_file_events(address):
        assert not run_event(address, number, fill_inputs(inputs, file))["success"]
    assert asked == []


def test_files_outside_the_outputs_are_not_served(address, studio, adapters_dir):
    inside = studio.outputs / "x.txt"
    inside.write_text("mine")
    assert get(f"{address}/gradio_api/file={inside}").status_code == 200
    for path in (
        "/etc/passwd",
        f"{studio.outputs}/../../../../../../etc/passwd",
        f"{studio.outputs}/..%2f..%2f..%2f..%2fetc%2fpasswd",
        str(ROOT / "pyproject.toml") + "/../pyproject.toml",
        str(adapters_dir / "notes.txt"),
    ):
        answer = get(f"{address}/gradio_api/file={path}")
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
    assert post(url, json=body, headers=headers).status_code == 403
    assert post(url, json=body, headers={"Origin": address}).status_code != 403


UNREADABLE = (
    "http://[bad",
    "http://[::1",
    "https://x:99999999",
    "https://a b",
    "//a@b",
    "http://:9",
)
"""Addresses that some parser of Gradio's fails at."""


@pytest.mark.parametrize("address", UNREADABLE)
@pytest.mark.parametrize("header", ["origin", "x-gradio-server", "host", "x-forwarded-host"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("local", [True, False])
def test_headers_that_hold_no_address_are_refused(local, method, header, address):
    named = address if header in ("origin", "x-gradio-server") else address.partition("//")[2]
    headers = {"host": "127.0.0.1:7860", header: named}
    assert OriginGuard(None, local=local).find_fault(method, headers)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("header", ["Origin", "X-Gradio-Server", "X-Forwarded-Host"])
def test_a_request_with_an_unreadable_address_is_answered(address, method, header):
    answer = httpx.request(method, address, headers={header: "http://[bad"}, timeout=HANG)
    assert answer.status_code == 403 and "request" in answer.text


def test_the_first_of_two_headers_counts():
    """It is the one that Gradio reads."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:7860"), (b"origin", b"https://evil.example")]
    headers.append((b"origin", b"http://127.0.0.1:7860"))
    scope = {"type": "http", "method": "POST", "headers": headers}
    asyncio.run(OriginGuard(None, local=True)(scope, None, send))
    assert sent[0]["status"] == 403


PAGE = "https://sd.example.org"


def list_proxied(host):
    """Headers of the app's own page as proxies pass them on, by what the proxy is set to do."""
    name = host.removeprefix("https://")
    return {
        "keeps the host": {"host": name, "origin": host},
        "keeps the host without its port": {"host": name.partition(":")[0], "origin": host},
        "writes the port that browsers leave out": {"host": f"{name}:443", "origin": host},
        "names the host in a header": {
            "host": "127.0.0.1:7860",
            "origin": host,
            "x-forwarded-host": name,
        },
        "stands behind another": {
            "host": "inner:8000",
            "origin": host,
            "x-forwarded-host": f"{name}, inner",
        },
        "says nothing, and the browser vouches": {
            "host": "127.0.0.1:7860",
            "origin": host,
            "sec-fetch-site": "same-origin",
        },
    }


@pytest.mark.parametrize("host", [PAGE, f"{PAGE}:8443"])
@pytest.mark.parametrize("proxy", list_proxied(PAGE))
@pytest.mark.parametrize("local", [True, False])
def test_the_apps_own_page_may_write_through_every_proxy(local, proxy, host):
    headers = list_proxied(host)[proxy]
    guard = OriginGuard(None, local=local, public=f"{host}/atoms" if local else "")
    if local and headers["host"] not in (urlsplit(host).netloc, "127.0.0.1:7860"):
        pytest.skip("an app for this machine alone answers to the name that the operator gave")
    assert guard.find_fault("POST", headers) == ""


@pytest.mark.parametrize(
    "stranger", ["https://evil.example", "null", "https://sd.example.org.evil"]
)
@pytest.mark.parametrize("proxy", list_proxied(PAGE))
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_strangers_may_not_write_through_any_proxy(local, proxy, stranger, method):
    headers = list_proxied(PAGE)[proxy] | {"origin": stranger}
    if "sec-fetch-site" in headers:
        headers["sec-fetch-site"] = "cross-site"
    for public in ("", PAGE, "/atoms"):
        guard = OriginGuard(None, local=local, public=public)
        assert "refused" in guard.find_fault(method, headers) or local


@pytest.mark.parametrize("headers", [{"host": "sd.example.org"}, {"host": "evil.example:7860"}])
def test_an_app_for_this_machine_answers_to_no_name_that_nobody_gave_it(headers):
    guard = OriginGuard(None, local=True)
    for method in ("GET", "POST"):
        for more in ({}, {"x-forwarded-host": "127.0.0.1:7860"}, {"sec-fetch-site": "same-origin"}):
            assert "--root-path" in guard.find_fault(method, headers | more)
    known = OriginGuard(None, local=True, public=PAGE)
    assert known.find_fault("GET", {"host": "sd.example.org"}) == ""
    assert known.find_fault("GET", {"host": "evil.example"}) != ""


def test_another_page_of_the_same_machine_is_a_stranger():
    guard = OriginGuard(None, local=True)
    headers = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:3000"}
    assert guard.find_fault("POST", headers) != ""
    assert guard.find_fault("POST", headers | {"sec-fetch-site": "same-site"}) != ""
    assert guard.find_fault("POST", {"host": "127.0.0.1", "origin": "http://127.0.0.1:3000"}) != ""
    assert guard.find_fault("POST", {"host": "127.0.0.1:7860"}) == ""


@pytest.mark.parametrize(
    "path",
    [
        *("", "/atoms", "/a/b", "https://x.org", "http://x.org:8/atoms", "https://[::1]:8/a"),
        *("https://x.org/@me/a%20b", "http://127.0.0.1:65535"),
    ],
)
def test_root_paths_are_paths_or_addresses(path):
    assert check_root_path(path) == path == check_root_path(path + "/" * bool(path))


@pytest.mark.parametrize(
    "path",
    [
        *("atoms", "//x.org", "/a b", "ftp://x.org", "https://", "/a?b", "https://x.org/a b"),
        *("https://x.org\n", "https://x.org/\n", "https://me@x.org", "https://x.org:65536"),
        *UNREADABLE,
    ],
)
def test_what_is_no_root_path_is_refused(path):
    with pytest.raises(AtomError, match="--root-path"):
        check_root_path(path)


@pytest.mark.parametrize("given", ["", "localhost", "example.org, 127.0.0.1"])
def test_this_machine_is_reached_without_a_proxy(monkeypatch, given):
    proxies = {"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    for name, value in (proxies | {"no_proxy": given, "NO_PROXY": given}).items():
        monkeypatch.setenv(name, value)
    keep_loopback_direct()
    for name in ("no_proxy", "NO_PROXY"):
        listed = os.environ[name].split(",")
        assert {"127.0.0.1", "localhost", "::1"} <= set(listed) and len(listed) == len(set(listed))
    with hide_proxies():
        assert not set(proxies) & set(os.environ)
    assert all(os.environ[name] == value for name, value in proxies.items())


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
    assert huggingface_hub.constants.HF_HUB_OFFLINE and Image.MAX_IMAGE_PIXELS == MAX_PIXELS


def list_routes(router):
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        yield from list_routes(inner) if inner else [route]


def test_with_a_password_every_route_asks_for_it(serve, studio):
    address = serve(studio, auth=[("me", "secret-word")])
    (studio.outputs / "mine.txt").write_text("mine")
    assert get(f"{address}/gradio_api/file={studio.outputs}/mine.txt").status_code == 401
    opened = set()
    with httpx.Client(base_url=address, timeout=HANG) as visitor:
        for route in list_routes(serve.apps[-1].app):
            path = re.sub(r"\{[^}]*\}", "x", getattr(route, "path", ""))
            for method in getattr(route, "methods", None) or ():
                answer = visitor.request(method, path, content=b"{}")
                if answer.status_code != 401:
                    opened.add(path.strip("/").partition("/x")[0])
        assert visitor.get("/gradio_api/mcp/").status_code == 401
    assert opened == UNLOCKED  # the page that asks for the password, and Gradio's own files
    client = connect(address, auth=("me", "secret-word"))
    assert client.predict(api_name="/list_bases")["bases"]
    client.close()


def test_passwords_come_from_the_line_or_a_file(tmp_path):
    path = tmp_path / "people"
    path.write_text("me:secret-word\n\nyou:other:word\n")
    assert read_auth([f"@{path}"]) == [("me", "secret-word"), ("you", "other:word")]
    path.write_bytes("\ufeffme:secret-word\r\n".encode())
    assert read_auth([f"@{path}"]) == [("me", "secret-word")]
    latin = tmp_path / "latin-1"
    latin.write_bytes("jürgen:secret-word".encode("latin-1"))
    for entry in ("me", "me:short", ":secret-word", f"@{tmp_path}/nothing", f"@{latin}"):
        with pytest.raises(AtomError, match="--auth"):
            read_auth([entry])


def test_dependencies_have_the_fixes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {r.name: r for r in map(Requirement, project["dependencies"])}
    for name, floor in FLOORS.items():
        lowest = min(Version(s.version) for s in required[name].specifier if s.operator == ">=")
        assert lowest >= Version(floor), f"{name} may be as old as {lowest}"
        assert Version(version(name)) >= Version(floor)


def test_nothing_unpickles():
    trusting = r"""trust_remote_code(?!"?[=:] ?False)"""
    pattern = re.compile(rf"\b(torch\.load|pickle|joblib|allow_pickle|{trusting}|gr\.load)\b")
    for path in [*ROOT.glob("app/**/*.py"), *ROOT.glob("sdatoms/**/*.py")]:
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.S)
        assert not pattern.search(code), path
