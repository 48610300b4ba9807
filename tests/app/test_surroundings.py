"""The app on machines of every kind: proxies, no home, somebody else's temporary folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sdatoms_app import app as app_module
from sdatoms_app.app import prepare_folder, prepare_uploads
from sdatoms_app.train.page import TrainPage
from tiny.app import connect, get, post
from tiny.limits import wait_for

from sdatoms import AtomError

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
PUBLIC = "https://sd.example.org/atoms"
NOWHERE = "/dev/null/nowhere"
"""A folder that nobody can make, whoever they are."""


@pytest.fixture
def run_app(tiny_base, tmp_path):
    """Start the command in an environment; returns its address once it says that it runs."""
    servers = []

    def start(environment, *flags):
        command = [sys.executable, "-m", "sdatoms", "ui", "--port", "0"]
        command += ["--pretrained_model_name_or_path", str(tiny_base), *flags]
        command += ["--adapters-dir", str(tmp_path / "atoms"), "--outputs-dir", str(tmp_path / "o")]
        kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        said = tmp_path / "said.txt"
        with said.open("wb") as output:
            server = subprocess.Popen(
                command, stdout=output, stderr=output, env=kept | environment, cwd=tmp_path
            )
        servers.append(server)
        running = re.compile(r"Running on local URL:\s+(http\S+)")
        found = wait_for(lambda: running.search(said.read_text()) or server.poll() is not None)
        assert found is not True, said.read_text()
        return found[1]

    yield start
    for server in servers:
        server.kill()
        server.wait()


def test_the_app_starts_and_paints_behind_every_kind_of_proxy(run_app, tmp_path):
    """A proxy that does not answer, a SOCKS proxy, no home, a reverse proxy in front: at once."""
    proxy, socks = "http://127.0.0.1:9", "socks5://127.0.0.1:9"
    environment = {"http_proxy": proxy, "https_proxy": proxy, "ALL_PROXY": socks, "HOME": NOWHERE}
    address = run_app(environment, "--root-path", PUBLIC)
    client = connect(address)
    pictures = client.predict("cat", num_inference_steps=1, api_name="/generate")
    assert Path(pictures[0]["file"]).is_file()
    client.close()
    proxied = {"host": "sd.example.org", "origin": "https://sd.example.org"}
    page = get(address, headers=proxied)
    assert page.status_code == 200 and PUBLIC in page.text
    assert get(f"{address}/config", headers=proxied).json()["root"] == PUBLIC
    body = {"data": [], "fn_index": 0, "session_hash": "x"}
    join = f"{address}/gradio_api/queue/join"
    assert post(join, json=body, headers=proxied).status_code != 403
    forwarded = {"origin": "https://sd.example.org", "x-forwarded-host": "sd.example.org"}
    assert post(join, json=body, headers=forwarded).status_code != 403
    for stranger in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        assert post(join, json=body, headers=stranger).status_code == 403


@pytest.mark.parametrize("flag", ["--outputs-dir", "GRADIO_TEMP_DIR"])
def test_folders_that_cannot_be_written_to_are_named_in_one_sentence(monkeypatch, flag):
    monkeypatch.setenv("GRADIO_TEMP_DIR", NOWHERE)
    with pytest.raises(AtomError, match=f"{flag}: the folder '{NOWHERE}' cannot be written to"):
        prepare_uploads() if flag == "GRADIO_TEMP_DIR" else prepare_folder(flag, Path(NOWHERE))


def test_somebody_elses_temporary_folder_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(app_module.tempfile, "tempdir", str(tmp_path))
    prepare_uploads()
    assert not os.environ["GRADIO_TEMP_DIR"]  # the usual one is made, and ours
    assert (tmp_path / "gradio").is_dir()
    prepare_uploads()
    assert not os.environ["GRADIO_TEMP_DIR"]
    monkeypatch.setattr(app_module.os, "getuid", lambda: 12345)
    prepare_uploads()
    own = Path(os.environ["GRADIO_TEMP_DIR"])
    assert own.parent == tmp_path and own.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(app_module.tempfile, "tempdir", NOWHERE)
    with pytest.raises(AtomError, match="TMPDIR"):
        prepare_uploads()


def test_a_library_that_cannot_be_written_to_can_be_painted_from(studio, order, monkeypatch):
    """Only what would write there is refused, each time in one sentence."""
    monkeypatch.setattr(studio.library, "folder", Path(NOWHERE))
    page = TrainPage(studio, [])
    assert page.queue.list() == [] and studio.library.list() == []
    for call in (lambda: page.load(""), lambda: page.keep_form("", "Quick", *page.names)):
        with pytest.raises(Exception, match="Not a directory") as caught:
            call()
        assert "\n" not in caught.value.message
    assert len(list(studio.paint(order))) == 1
