"""Captions and masks by a model: written where there are none, and nothing of a person's lost."""

import json

import pytest
from PIL import Image
from tiny.labellers import WORDS, save_blip, save_clipseg, save_segformer

from sdatoms.cli.main import main
from sdatoms.training.folder import check_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "blip": str(save_blip(folder / "blip")),
        "clipseg": str(save_clipseg(folder / "clipseg")),
        "segformer": str(save_segformer(folder / "segformer")),
        "blind": str(save_segformer(folder / "blind", "background")),
    }


def read_captions(folder):
    return {s.name: s.prompt for s in check_folder(folder, "").sources}


def test_captions_are_written_where_there_are_none(models, make_pictures, capsys):
    folder = make_pictures(sizes=((20, 20),) * 3)
    (folder / "0.caption").write_text("a wall that I know")
    Image.new("L", (20, 20)).save(folder / "1.mask.png")
    words = ["caption", str(folder), "--model", models["blip"], "--max_tokens", "3"]
    main([*words, "--trigger", "sks cat"])
    first, out = read_captions(folder), capsys.readouterr()
    assert first["0.png"] == "a wall that I know" and len(first) == 3
    for name in ("1.png", "2.png"):
        trigger, text = first[name].split(", ")
        assert trigger == "sks cat" and text and set(text.split()) <= set(WORDS)
    assert "0.png (as it was): a wall that I know" in out.out and first["1.png"] in out.out
    assert "wrote 2 captions; 1 had one" in out.err and "look them over" in out.err
    (folder / "1.txt").write_text("mine")
    main(words)
    assert read_captions(folder) == first | {"1.png": "mine"}
    main([*words, "--overwrite"])
    assert "mine" not in read_captions(folder).values()
    rows = [json.loads(line) for line in (folder / ".captions.jsonl").read_text().splitlines()]
    assert {row["text"] for row in rows} >= {"a wall that I know", "mine"}
    assert not (folder / "0.caption").exists()


def test_captions_of_a_table_are_not_written_over(models, make_pictures, capsys):
    folder = make_pictures(sizes=((20, 20),) * 2)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "mine"}')
    words = ["caption", str(folder), "--model", models["blip"], "--max_tokens", "2"]
    main(words)
    assert read_captions(folder)["0.png"] == "mine" and (folder / "1.txt").is_file()
    with pytest.raises(SystemExit) as stop:
        main([*words, "--overwrite"])
    assert stop.value.code == 2 and "stands in a table" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "words"), [("clipseg", ["--subject", "dog"]), ("segformer", [])])
def test_masks_are_made_where_there_are_none(models, make_pictures, capsys, model, words):
    folder = make_pictures(sizes=((24, 20),) * 2)
    Image.new("L", (24, 20), 7).save(folder / "0_mask.png")
    call = ["mask", str(folder), "--model", models[model], *words]
    main(call)
    assert "0.png (as it was): has 0_mask.png" in capsys.readouterr().out
    made = Image.open(folder / "1.mask.png")
    assert made.size == (24, 20) and made.getextrema() == (255, 255)
    main([*call, "--overwrite"])
    assert [s.mask.name for s in check_folder(folder, "x").sources] == ["0.mask.png", "1.mask.png"]
    assert any(p.name.endswith("0_mask.png") for p in (folder / ".earlier").iterdir())


def test_what_cannot_be_done_is_one_sentence_and_writes_nothing(models, make_pictures, capsys):
    folder = make_pictures(sizes=((20, 20),))
    held = sorted(folder.iterdir())
    for words, said in (
        (["caption", str(folder), "--model", str(folder)], "cannot be loaded"),
        (["caption", str(folder), "--model", "owner/none"], "offline, name the folder of one"),
        (["caption", str(folder / "none"), "--model", models["blip"]], "there is no folder"),
        (["mask", str(folder), "--model", models["clipseg"]], "--subject"),
        (["mask", str(folder), "--model", models["blip"]], "cannot be loaded"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and said in lines[-1], lines
    main(["mask", str(folder), "--model", models["blind"]])
    assert "nothing was found" in capsys.readouterr().out and sorted(folder.iterdir()) == held


@pytest.mark.parametrize("flag", ["trigger", "prompt", "model", "caption_column"])
def test_flags_that_are_no_text_are_one_sentence(models, make_pictures, capsys, flag):
    folder = make_pictures(sizes=((20, 20),))
    words = ["caption", str(folder), "--model", models["blip"], f"--{flag}", "\udcff"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and f"--{flag} is" in line and "no text" in line
    assert len(list(folder.iterdir())) == 1


def test_what_is_left_alone_is_counted_as_there_only_where_it_is(models, make_pictures, capsys):
    folder = make_pictures(sizes=((20, 20),) * 2)
    Image.new("L", (20, 20), 7).save(folder / "0.mask.png")
    main(["mask", str(folder), "--model", models["blind"]])
    said = capsys.readouterr()
    assert "wrote 0 masks; 1 had one" in said.err and "nothing was found" in said.out
