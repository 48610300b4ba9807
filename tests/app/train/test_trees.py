"""Several concepts on the Train tab: read from a zip, edited, and handed to the trainer."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sdatoms_app.train.concept_table import COLUMNS, read_rows
from sdatoms_app.train.drafts import Draft
from sdatoms_app.train.masking import read_drawn
from sdatoms_app.train.page import TrainPage
from sdatoms_app.train.trees import add_tree, add_zip
from tiny.labellers import save_blip, save_clipseg
from tiny.pictures import save_pictures

from sdatoms import AtomError
from sdatoms.training.concepts import read_data_config
from sdatoms.training.config import TrainConfig
from sdatoms.training.inputs import check_inputs


@pytest.fixture
def packed(tmp_path):
    """kohya's folders of two concepts as a zip, with a caption, a mask and what trains nothing."""
    root = tmp_path / "img"
    root.mkdir()
    for name, seed in (("10_sks dog", 1), ("5_zwx cat", 2)):
        save_pictures(root / name, ((90, 70),) * 2, seed=seed)
    (root / "10_sks dog" / "0.txt").write_text("a sks dog\na dog asleep")
    Image.new("L", (90, 70), 255).save(root / "10_sks dog" / "1-masklabel.png")
    path = tmp_path / "img.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, file.relative_to(root))
        archive.writestr("run.exe", b"x")
    return path


def test_a_zip_of_folders_becomes_concepts_that_the_trainer_reads(packed, tmp_path):
    draft = Draft(tmp_path / "drafts")
    assert add_zip(draft, packed) == ["run.exe: it trains nothing"]
    assert [(p.concept, p.caption, bool(p.mask)) for p in draft.list()] == [
        ("sks dog", "a sks dog\na dog asleep", False),
        ("sks dog", "", True),
        ("zwx cat", "", False),
        ("zwx cat", "", False),
    ]
    rows = [list(row) for row in ([*("sks dog", "sks dog", "dog"), "3", "0,5"],)]
    draft.describe(read_rows(rows))
    draft.describe([{"name": "zwx cat", "instance_prompt": "zwx cat", "share": 0.5}])
    run = tmp_path / "run"
    run.mkdir()
    draft.fill(run)
    dog, cat = read_data_config(run / "data.toml")[0]
    assert (dog.class_prompt, dog.repeats, dog.share, cat.instance_prompt) == (
        *("dog", 3, 0.5, "zwx cat"),
    )
    found = check_inputs(TrainConfig(data_config=str(run / "data.toml"), resolution=16))
    assert len(found.sources) == 4 and [len(s.captions) for s in found.sources] == [2, 0, 0, 0]
    again = Draft(tmp_path / "drafts")
    add_tree(again, run)
    kept = lambda d: [(p.id, p.caption, p.concept, bool(p.mask)) for p in d.list()]
    assert kept(again) == kept(draft) and again.described == draft.described


def test_a_training_of_concepts_is_queued_with_its_description(studio, packed):
    page = TrainPage(studio, [])
    _, token, crops, verdict, *_ = page.add_pictures([str(packed)], "")
    assert len(crops) == 4
    assert "sks dog: 2 pictures, 1 with captions of their own, 1 of them with" in verdict
    values = dict.fromkeys(page.names) | {"instance_prompt": "a pet"}
    training = page.enqueue(page.open(token), page.read(list(values.values())))
    concepts = read_data_config(training.path / "instance_images" / "data.toml")[0]
    assert [c.name for c in concepts] == ["sks dog", "zwx cat"]
    page.queue.stop(training.id)
    filled = page.fill(training.id, page.open(None).token)
    assert [row[0] for row in filled[6]] == ["sks dog", "zwx cat"]


def test_a_description_that_leads_out_of_a_zip_is_refused(tmp_path):
    for place in ("/etc", "..", "../other"):
        path = tmp_path / "bad.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.toml", f'[[concepts]]\ninstance_data_dir = "{place}"')
        with pytest.raises(AtomError, match="do not lie beside it"):
            add_zip(Draft(tmp_path / "drafts"), path)


@pytest.mark.parametrize(
    ("cells", "words"), [(("a", "", "", "x", ""), "number"), (("a", "", "", 0, ""), "1 to 1000")]
)
def test_numbers_of_the_table_are_checked(cells, words):
    assert len(cells) == len(COLUMNS)
    with pytest.raises(AtomError, match=words):
        read_rows([cells])


def test_what_is_painted_is_the_mask_and_shows_in_the_crop(studio, tmp_path):
    page = TrainPage(studio, [])
    folder = save_pictures(tmp_path / "one", ((80, 80),))
    Image.new("RGB", (80, 80), "white").save(folder / "0.png")
    token = page.add_pictures([str(folder / "0.png")], "")[1]
    (picture,) = page.open(token).list()
    layer = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 20, 40))
    drawn = {"background": Image.new("RGB", (40, 40)), "layers": [layer]}
    shown = page.keep_mask(picture.id, drawn, token)
    crop = np.asarray(shown[1][0][0])
    side = crop.shape[1]
    assert crop[:, : side // 2 - 2].min() > 240 and crop[:, side // 2 + 2 :].max() < 60
    assert "masked" in shown[1][0][1]
    opened = page.open_mask(picture.id, token).value
    assert opened is None or Path(str(opened["background"]["path"])).suffix
    drawn["layers"] = []
    assert page.keep_mask(picture.id, drawn, token) and page.open(token).list()[0].mask is None
    with pytest.raises(AtomError, match="open a picture"):
        read_drawn(None)


def test_crops_follow_the_buckets(studio, tmp_path):
    page = TrainPage(studio, [])
    folder = save_pictures(tmp_path / "wide", ((160, 80),))
    token = page.add_pictures([str(folder / "0.png")], "")[1]
    values = dict.fromkeys(page.names)
    square = page.see_crops(None, token, "Balanced", *values.values())[1][0][0]
    values["aspect_ratio_buckets"] = "auto"
    wide = page.see_crops(None, token, "Balanced", *values.values())[1][0][0]
    assert square.width == square.height and wide.width > wide.height


def test_the_operators_models_label_what_has_no_label(studio, tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "labellers", {})
    page = TrainPage(studio, [])
    folder = save_pictures(tmp_path / "two", ((80, 80),) * 2)
    (folder / "0.txt").write_text("mine")
    token = page.add_pictures([str(path) for path in folder.iterdir()], "")[1]
    for call in (lambda: page.caption_all(None, token), lambda: page.mask_all(None, "dog", token)):
        with pytest.raises(Exception, match="this server has no model for that"):
            call()
    models = {"captioner": str(save_blip(tmp_path / "blip"))}
    models["segmenter"] = str(save_clipseg(tmp_path / "clipseg"))
    monkeypatch.setattr(studio, "labellers", models)
    page = TrainPage(studio, [])
    page.open(token).keep_form({"trigger": "sks cat"})
    page.caption_all(None, token)
    captions = {picture.name: picture.caption for picture in page.open(token).list()}
    assert captions["0.png"] == "mine" and captions["1.png"].startswith("sks cat, ")
    page.mask_all(None, "dog", token)
    assert all(picture.mask for picture in page.open(token).list())
