"""B. What other tools made customary is read as they read it: captions, masks, folders, flags."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny.pictures import save_pictures
from tiny.runs import read_tensors

import sdatoms
from sdatoms.cli.main import main
from sdatoms.cli.train import read_launcher
from sdatoms.errors import AtomError
from sdatoms.settings import build_config, read_config_file
from sdatoms.training.config import TrainConfig
from sdatoms.training.folder import check_folder
from sdatoms.training.loop import train


@pytest.mark.parametrize("name", ["{}.txt", "{}.caption", "{}.TXT", "{}.png.txt", "{}.PNG.Caption"])
def test_captions_are_read_under_every_name(make_pictures, name):
    folder = make_pictures()
    (folder / name.format(1)).write_text("a blue wall")
    found = check_folder(folder, "x")
    assert [s.prompt for s in found.sources] == ["x", "a blue wall", "x", "x"] and not found.notes


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("column", ["text", "caption"])
def test_tables_of_captions_are_read(make_pictures, mark, column):
    folder = make_pictures()
    rows = [["file_name", column], ["./0.png", "a wall"], ["1.png", '"a, b"']]
    (folder / "metadata.csv").write_text("\r\n".join(mark.join(row) for row in rows))
    found = check_folder(folder, "x", caption_column=column)
    assert [s.prompt for s in found.sources] == ["a wall", "a, b", "x", "x"]
    with pytest.raises(sdatoms.AtomError, match="has the columns file_name"):
        check_folder(folder, "x", caption_column="words")


MASKS = ["{}.mask.png", "{}-masklabel.png", "{}_mask.png", "{}-mask.jpg", "masks/{}.png"]


@pytest.mark.parametrize("name", [*MASKS, "mask/{}_mask.png", "_masks/{}.mask.png"])
@pytest.mark.parametrize("nested", [False, True])
def test_masks_are_masks_under_every_name(make_pictures, tmp_path, name, nested):
    folder = make_pictures(sizes=((20, 20),) * 2)
    place = folder
    if nested:
        place = save_pictures(folder / "more", ((20, 20),) * 2, seed=9)
    for k in range(2):
        path = place / name.format(k)
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (20, 20), 255).save(path)
    sources = check_folder(folder, "x").sources
    assert len(sources) == (4 if nested else 2)
    assert [s.path.parent == place for s in sources] == [s.mask is not None for s in sources]


def test_numbered_folders_come_as_often_as_they_say(tmp_path):
    folder = tmp_path / "img"
    (folder / "plain").mkdir(parents=True)
    for name, count in (("10_sks dog", 2), ("5_sks dog on grass", 1), ("plain/deeper", 1)):
        save_pictures(folder / name, ((20, 20),) * count, seed=len(name))
    Image.new("RGB", (20, 20), "red").save(folder / "0.png")
    found = check_folder(folder, "a dog")
    assert {(s.name, s.prompt, s.repeats) for s in found.sources} == {
        ("0.png", "a dog", 1),
        ("10_sks dog/0.png", "sks dog", 10),
        ("10_sks dog/1.png", "sks dog", 10),
        ("5_sks dog on grass/0.png", "sks dog on grass", 5),
        ("plain/deeper/0.png", "a dog", 1),
    }
    (note,) = [note for note in found.notes if "subfolders" in note]
    assert "10_sks dog with 2 pictures, each 10 times" in note and "plain/deeper" in note
    (alone,) = check_folder(folder / "plain", "x").sources
    assert alone.repeats == 1
    alone = tmp_path / "alone"
    alone.mkdir()
    save_pictures(alone / "10_sks dog")
    assert {(s.prompt, s.repeats) for s in check_folder(alone, "a dog").sources} == {("a dog", 1)}


@pytest.mark.parametrize("ending", ["yaml", "yml"])
@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("learning_rate: 1e-4", 1e-4),
        ("learning_rate: 1", 1.0),
        ("mixed_precision: no", "no"),
        ("dynamo_backend: no", "no"),
        ("instance_prompt: off", "off"),
        ("random_flip: yes", True),
        ("prodigy_decouple: no", False),
        ("scale_lr: true", True),
        ("seed: 7", 7),
        ("seed: null", 0),
        ("train_batch_size: ~", 4),
        ("trigger:", None),
    ],
)
def test_yaml_is_read_as_its_newest_form(tmp_path, ending, line, value):
    path = tmp_path / f"run.{ending}"
    path.write_bytes(("\ufeff" + line).encode())
    config = build_config(TrainConfig, read_config_file(path), "the file")
    assert getattr(config, line.split(":")[0]) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.toml", "seed = 1\nseed = 2\n"),
        ("run.yaml", "seed: 1\nseed: 2\n"),
        ("run.yml", "concepts:\n- {prompt: a, class: b, prompt: c}\n"),
        ("run.json", '{"seed": 1, "seed": 2}'),
        ("run.json", '{"concepts": [{"prompt": "a", "prompt": "b"}]}'),
        ("run.json", "[" * 100_000),
    ],
)
def test_a_setting_that_stands_there_twice_is_refused(tmp_path, capsys, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(AtomError, match=r"run\.\w+' cannot be parsed: "):
        read_config_file(path)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--config", str(path)])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot be parsed" in line


def test_a_table_of_yaml_may_change_what_it_takes_over(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("base: &base {seed: 1, rank: 2}\nown:\n  <<: *base\n  seed: 3\n")
    assert read_config_file(path)["own"] == {"seed": 3, "rank": 2}


@pytest.mark.parametrize(
    ("command", "flag", "hint"),
    [
        ("train", "--lr", "--learning_rate"),
        ("train", "--offset_noise", "--noise_offset"),
        ("train", "--save_steps", "--checkpointing_steps"),
        ("train", "--learning-rate", "--learning_rate"),
        ("train", "--root-path", "sdatoms train --help"),
        ("generate", "--strength_", "--strength_schedule"),
    ],
)
def test_hints_come_from_the_flags_of_the_same_command(capsys, command, flag, hint):
    with pytest.raises(SystemExit) as stop:
        main([command, *(["cat"] if command == "generate" else []), flag, "1"])
    assert stop.value.code == 2 and hint in capsys.readouterr().err


def test_what_accelerate_launch_sets_counts(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    assert read_launcher() == {"mixed_precision": "bf16", "gradient_accumulation_steps": 3}
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(sdatoms.AtomError, match="fp8; training takes no"):
        read_launcher()


def test_a_norm_of_0_clips_nothing(train_config, tmp_path):
    runs = {}
    for norm in (0.0, 1e30):
        config = train_config(max_train_steps=2, max_grad_norm=norm)
        config = replace(config, output_dir=str(tmp_path / f"{norm}"))
        list(train(config))
        runs[norm] = read_tensors(config.output_dir)
    assert all(torch.equal(tensor, runs[1e30][key]) for key, tensor in runs[0.0].items())
