"""What tests of the app share: requests with patience, the app's events, pixels of what it kept."""

import json
from functools import partial

import httpx
import numpy as np
from gradio_client import Client
from PIL import Image

from tiny.limits import HANG

get, post = partial(httpx.get, timeout=HANG), partial(httpx.post, timeout=HANG)


def connect(address, **options):
    """A client of the endpoints that waits as long as a busy machine takes."""
    return Client(address, verbose=False, httpx_kwargs={"timeout": HANG}, **options)


def read_pixels(path):
    with Image.open(path) as opened:
        return np.array(opened.convert("RGB"))


def upload(address, name, data):
    """Put a file where the page's own uploads go; the server's answer."""
    return post(f"{address}/gradio_api/upload", files={"files": (name, data)})


FILES = {"file", "image", "imageeditor", "api"}
"""Components that a file can come through; those of endpoints take anything."""


def list_file_events(address):
    """Every event, private ones too, that takes a file or a picture: number and kinds of inputs."""
    config = get(f"{address}/config").json()
    kinds = {component["id"]: component["type"] for component in config["components"]}
    for dependency in config["dependencies"]:
        inputs = [kinds.get(id, "") for id in dependency["inputs"]]
        if dependency["backend_fn"] and FILES & set(inputs):
            yield dependency["id"], inputs


def fill_inputs(inputs, file):
    """Data for `run_event` with the file wherever one can come."""
    drawing = {"background": file, "layers": [], "composite": file}
    given = dict.fromkeys(FILES, file) | {"imageeditor": drawing}
    return [given.get(kind) for kind in inputs]


def run_event(address, number, data, session="abc"):
    """Run one event by its number, as a page does; returns the last message of its stream."""
    body = {"data": data, "fn_index": number, "session_hash": session}
    joined = post(f"{address}/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return {"success": False, "status": joined.status_code}
    url = f"{address}/gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", url, timeout=HANG) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return message
    raise AssertionError("the stream ended early")


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()
