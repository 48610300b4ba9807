"""Atom files over HTTP: looked into, muted, compared, mixed, exported."""

from pathlib import Path

import pytest

import sdatoms
from sdatoms.files.compose import compose

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings


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
