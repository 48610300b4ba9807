"""What the Train tab does, below its page and over HTTP."""

import gradio as gr
import pytest
from gradio_client import handle_file
from PIL import Image
from sdatoms_app.train.form import read_first
from sdatoms_app.train.page import TrainPage
from tiny.pictures import save_pictures

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings


def test_pictures_are_judged_over_http(client, pictures):
    answer = client.predict([handle_file(p) for p in pictures], api_name="/check_pictures")
    assert any("2 fine, 1 tiny" in str(part) for part in answer)
    assert any("cannot be read" in str(part) for part in answer)


def test_listed_folders_are_offered(studio):
    page = TrainPage(studio, [])
    token, crops, verdict, *_ = page.add_folder("subjects/clay", "")
    assert len(crops) == 8 and verdict.startswith("8 fine")
    assert all(picture.caption for picture in page.open(token).list())
    with pytest.raises(Exception, match="choose a folder first"):
        page.add_folder(None, token)
    with pytest.raises(Exception, match="no folder"):
        page.add_folder("../../etc", token)


def test_opening_fills_in_only_what_differs_from_what_stands_there(studio):
    """Every field that changes is a message of all of them, and pages are opened often."""
    page, first = TrainPage(studio, []), read_first()
    token, *_ = page.load(None)
    assert page.load(token)[-1] == "" and all(v == gr.skip() for v in page.restore(token))
    mine = first | {"seed": 7, "instance_prompt": "a sks cup"}
    page.keep_form(token, "Best", *(mine[name] for name in page.names))
    *_, preset, changed = page.load(token)
    assert preset.value == "Best" and set(changed.split()) == {"seed", "instance_prompt"}
    again = dict(zip(page.names, page.restore(token), strict=True))
    filled = {name: value for name, value in again.items() if value != gr.skip()}
    assert filled == {"seed": 7, "instance_prompt": "a sks cup"}


def test_the_operators_evaluator_measures_every_training(studio, monkeypatch):
    page = TrainPage(studio, [])
    assert "evaluator" not in page.with_base({})
    monkeypatch.setitem(studio.labellers, "evaluator", "clip")
    assert page.with_base({"seed": 1})["evaluator"] == "clip"


def test_presets_of_another_base_are_not_offered(studio):
    names = TrainPage(studio, []).name_presets()
    assert "Pet" in names and not any("-" in name for name in names)


def test_what_the_trainer_notes_is_shown_before_training(studio, tmp_path):
    folder = save_pictures(tmp_path / "mine", ((70, 70),) * 3)
    (folder / "0.txt").write_bytes("caf\u00e9".encode("cp1252"))
    (folder / "1.caption").write_text("a " * 2000)
    Image.new("L", (70, 70), 255).save(folder / "2-masklabel.png")
    (folder / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    save_pictures(folder / "10_sks dog", ((70, 70),))
    page = TrainPage(studio, [folder])
    token, _, verdict, *_ = page.add_folder("mine", "")
    for words in (
        "its caption is no Unicode and read as Windows-1252",
        "its caption is cut to 2000 characters",
        "✓ fine · masked · 2.png",
        "1 mask: where white",
        "2 of 3 pictures with a caption of its own",
        "tables of captions: metadata.csv",
        "subfolders, which are folders of their own: 10_sks dog",
    ):
        assert any(words in line for line in verdict.splitlines()), (words, verdict)
    page.keep_caption(page.open(token).list()[0].id, "a cup", token)
    assert "no Unicode" not in page.show(page.open(token))[2]


def test_a_training_is_queued_only_with_pictures_and_a_prompt(studio):
    page = TrainPage(studio, [])
    values = dict.fromkeys(page.names) | {"instance_prompt": "a dog"}
    with pytest.raises(Exception, match="no pictures"):
        page.start("", *values.values())
    values["instance_prompt"] = ""
    with pytest.raises(Exception, match="instance prompt is empty"):
        page.start("", *values.values())
    values |= {"instance_prompt": "a dog", "with_prior_preservation": True}
    with pytest.raises(Exception, match="needs class_prompt"):
        page.start("", *values.values())
    assert page.queue.list() == []
