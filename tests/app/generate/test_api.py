"""Painting over HTTP, through gradio_client."""

import re

import numpy as np
import pytest
from gradio_client import handle_file
from PIL import Image, ImageOps
from tiny.app import connect, read_pixels
from tiny.limits import HANG
from tiny.pictures import draw

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


def test_uploaded_pictures_are_painted_over_where_a_mask_says(client, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stands on its side: 96×64 px as it is meant
    photo = draw(tmp_path / "photo.jpg", (64, 96), seed=4, exif=exif, quality=95)
    mask = Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 48, 64))
    mask.save(tmp_path / "mask.png")
    settings = {"num_inference_steps": 4, "mask_blur": 0, "width": 96, "height": 64}
    given = {"image": handle_file(photo), "mask_image": handle_file(tmp_path / "mask.png")}
    first, again = (
        client.predict("cat", **settings, **given, api_name="/generate")[0] for _ in range(2)
    )
    with Image.open(photo) as opened:
        whole = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    painted = read_pixels(first["file"])
    assert np.array_equal(painted[:, 48:], whole[:, 48:])
    assert not np.array_equal(painted[:, :48], whole[:, :48])
    assert np.array_equal(painted, read_pixels(again["file"]))
    with Image.open(first["file"]) as opened:
        assert "Denoising strength: 0.6, Mask blur: 0" in opened.text["parameters"]
    over = client.predict("cat", num_inference_steps=4, image=given["image"], api_name="/generate")
    assert read_pixels(over[0]["file"]).shape == (56, 80, 3)  # its proportions, the base's area


def test_second_passes_and_batches(client):
    settings = {"num_inference_steps": 2, "hires_scale": 1.5, "hires_steps": 1, "batch": 3}
    pictures = client.predict("cat", **settings, batch_size=2, api_name="/generate")
    assert [picture["seed"] for picture in pictures] == [0, 1, 2]
    assert {read_pixels(picture["file"]).shape for picture in pictures} == {(96, 96, 3)}
    texts = []
    for picture in pictures:
        with Image.open(picture["file"]) as opened:
            texts.append(opened.text["parameters"])
    assert "Size: 64x64" in texts[1] and "Hires upscale: 1.5, Hires steps: 1" in texts[1]
    assert "Batch size: 2, Batch pos: 1" in texts[1] and "Batch" not in texts[2]
    read = client.predict(handle_file(pictures[2]["file"]), api_name="/read_picture")
    assert read["remarks"] == [] and read["settings"]["hires_scale"] == 1.5


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
        ({"prompt": "a", "image": {"path": "/etc/passwd"}}, "image is .*; it takes an upload"),
        ({"prompt": "a", "hires_scale": 5}, "goes from 1 to 4"),
        (
            {"prompt": "a", "hires_scale": 4, "width": 1024, "height": 64},
            "second pass's width is 4096",
        ),
        ({"prompt": "a", "batch_size": 0}, "goes from 1 to 8"),
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
