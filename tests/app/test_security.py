"""What the app's server refuses for being too much, and its tools for models: same doors, same
locks."""

import asyncio
import io
import json
import re
import zlib

import httpx
import pytest
from PIL import Image
from sdatoms_app.app import build_app
from sdatoms_app.app import serve as serve_app
from sdatoms_app.security import MAX_PIXELS, harden
from sdatoms_app.studio import library
from sdatoms_app.studio.library import Library
from sdatoms_app.train import drafts
from sdatoms_app.train.drafts import Draft
from tiny.pictures import draw

from sdatoms import AtomError

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings


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


def upload(address, name, data):
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": (name, data)}, timeout=60)
    return answer.status_code, answer


def test_uploads_that_are_too_large_are_refused_at_the_door(serve, studio, monkeypatch):
    monkeypatch.setattr("sdatoms_app.app.MAX_UPLOAD_BYTES", 1 << 20)
    address = serve(studio)
    assert upload(address, "a.png", b"\0" * (1 << 19))[0] == 200
    assert upload(address, "a.png", b"\0" * (1 << 21))[0] == 413


def test_atom_files_that_are_too_large_are_not_read(adapters_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "MAX_UPLOAD_BYTES", 1000)
    with pytest.raises(AtomError, match="MB are taken"):
        Library(tmp_path).add(adapters_dir / "ink.safetensors")


def test_a_picture_of_too_many_pixels_is_opened_nowhere(address, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # to put it back
    harden(local=True, offline=False)
    bomb = make_bomb(5600)
    assert len(bomb) < 1 << 20 and MAX_PIXELS < 5600**2 < 2 * MAX_PIXELS
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(bomb))
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb)
    refused = Draft(tmp_path / "drafts").add([path])
    assert len(refused) == 1 and "bomb.png" in refused[0]
    stored = upload(address, "bomb.png", bomb)[1].json()[0]
    file = {"path": stored, "meta": {"_type": "gradio.FileData"}}
    config = httpx.get(f"{address}/config").json()
    kinds = {component["id"]: component["type"] for component in config["components"]}
    tried = 0
    for event in config["dependencies"]:
        inputs = [kinds.get(id, "") for id in event["inputs"]]
        if event["backend_fn"] and "image" in inputs:
            data = [file if kind == "image" else None for kind in inputs]
            body = {"data": data, "fn_index": event["id"], "session_hash": "bomb"}
            httpx.post(f"{address}/gradio_api/queue/join", json=body).raise_for_status()
            assert not read_answer(address, "bomb")["success"]
            tried += 1
    assert tried >= 3  # Paint and both halves of Compare


def read_answer(address, session):
    url = f"{address}/gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", url, timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:") and "process_completed" in line:
                return json.loads(line[5:])
    raise AssertionError("the stream ended early")


@pytest.mark.parametrize(
    ("cap", "value", "words"),
    [
        ("MAX_PICTURES", 1, "at most 1 pictures"),
        ("MAX_PICTURE_BYTES", 100, "at most 0 MB"),
        ("MAX_DRAFT_BYTES", 1, "at most 1 GiB"),
    ],
)
def test_a_draft_takes_so_many_pictures_and_no_more(tmp_path, monkeypatch, cap, value, words):
    monkeypatch.setattr(drafts, cap, value)
    paths = [draw(tmp_path / f"{k}.png", seed=k) for k in range(2)]
    refused = Draft(tmp_path / "drafts").add(paths)
    assert refused and all(words in line for line in refused)


def test_visitors_wait_in_a_queue_that_has_an_end(studio):
    assert build_app(studio)._queue.max_size == 64


def test_a_link_in_the_outputs_is_no_way_out(address, studio, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    link = studio.outputs / "link.txt"
    link.symlink_to(secret)
    answer = httpx.get(f"{address}/gradio_api/file={link}")
    link.unlink()
    assert answer.status_code in (403, 404)


def test_models_use_the_endpoints_as_tools(serve, studio):
    pytest.importorskip("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    address = serve(studio, mcp_server=True)

    async def talk():
        async with (
            streamablehttp_client(f"{address}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            name = next(name for name in tools if name.endswith("list_bases"))
            return tools, await session.call_tool(name, {})

    tools, answer = asyncio.run(talk())
    painter = next(tool for name, tool in tools.items() if name.endswith("generate"))
    assert "Paint pictures from a prompt" in painter.description
    assert {"prompt", "adapters", "seed"} <= set(painter.inputSchema["properties"])
    assert "tiny" in answer.content[0].text
    assert not [n for n in tools if re.search(r"keep_|choose|look|fill$", n)]  # private ones


def test_tools_do_not_stand_open_beside_a_password(tmp_path):
    """Gradio serves its tools without asking for the app's password."""
    with pytest.raises(AtomError, match="does not go with --auth"):
        serve_app(
            base=None,
            adapters_dir=tmp_path,
            outputs_dir=tmp_path,
            mcp=True,
            auth=["me:secret-word"],
        )


def test_signing_in_elsewhere_is_not_offered(studio):
    """Gradio's OAuth may hand out the server's own token: nothing of it is there."""
    kinds = {type(block).__name__ for block in build_app(studio).blocks.values()}
    assert kinds & {"Button"} and not kinds & {"LoginButton", "FileExplorer"}
