"""Painting over HTTP, through gradio_client."""

import re

import numpy as np
import pytest
from gradio_client import handle_file
from PIL import Image
from tiny.app import connect, read_pixels
from tiny.limits import HANG

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
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
    assert not np.array_equal(read_pixels(over[0]["file"]), read_pixels(pictures[0]["file"]))


def test_comparisons_and_grids(client):
    base, tuned = client.predict("cat", {"dog": 1.0}, num_inference_steps=2, api_name="/compare")
    assert not np.array_equal(read_pixels(base["file"]), read_pixels(tuned["file"]))
    answer = client.predict(
        "cat", ["dog", "dog@100"], [0.0, 1.0], [0], num_inference_steps=2, api_name="/grid"
    )
    assert len(answer["pictures"]) == 4 and read_pixels(answer["grid"]).shape[0] > 128
    assert np.array_equal(read_pixels(answer["pictures"][0]["file"]), read_pixels(base["file"]))


def test_lists(client, adapters_dir):
    bases = client.predict(api_name="/list_bases")
    assert bases["bases"][0] == "tiny" and "Euler" in bases["schedulers"]
    atoms = {entry["id"]: entry for entry in client.predict(api_name="/list_atoms")}
    assert {"dog", "ink", "dog@100"} <= set(atoms)
    added = client.predict(handle_file(adapters_dir / "ink.safetensors"), api_name="/add_atoms")
    assert added["sha256"] == atoms["ink"]["sha256"]


def test_cancel_stops_this_sessions_painting_only(client, address):
    job = client.submit("cat", num_inference_steps=100, batch=8, api_name="/generate")
    other = connect(address)
    while not client.predict(api_name="/cancel"):  # until the job has begun
        assert not other.predict(api_name="/cancel")
    with pytest.raises(Exception, match="cancelled"):
        job.result(timeout=HANG)
    other.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a", "num_inference_steps": 101}, "goes from 1 to 100"),
        ({"prompt": "a", "batch": 99}, "goes from 1 to 8"),
        (
            {"prompt": "a", "width": 4096, "height": 4096},
            "from 64 to 2048, and the nearest",
        ),
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
