"""Pictures for classifiers: splits that do not leak, archives that cannot harm, one-line errors."""

import importlib.util
import io
import random
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.classifiers import finetune, save_resnet

from sdatoms import AtomError
from sdatoms.classifiers.pictures import Item, draw_task, part
from sdatoms.classifiers.sources import read_pool
from sdatoms.classifiers.tasks import read_rotations


def draw(number, side=12):
    """PNG bytes of a grey picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (number, number, number)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder, classes, count=10, first=0):
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            (folder / name / f"{n}.png").write_bytes(draw(first + 40 * k + n))
    return folder


def read_greys(split):
    return split.pictures[:, 0, 0, 0].tolist()


def test_a_folder_is_split_without_overlap_and_every_class_is_everywhere(tmp_path):
    pool = read_pool(str(fill(tmp_path / "a", "xyz")))
    task = draw_task(pool, 4)
    splits = [task.train, task.validation, task.test]
    greys = [read_greys(split) for split in splits]
    assert sorted([*greys[0], *greys[1], *greys[2]]) == sorted(
        40 * k + n for k in range(3) for n in range(10)
    )
    assert [len(split) for split in splits] == [15, 3, 12]
    for split, values in zip(splits, greys, strict=True):
        assert set(split.labels.tolist()) == {0, 1, 2}
        assert [v // 40 for v in values] == split.labels.tolist()
    again, other = (draw_task(pool, 4, seed=seed) for seed in (0, 1))
    assert read_greys(again.train) == greys[0]
    assert set(read_greys(other.test)) != set(greys[2])


def test_named_splits_are_kept_and_few_shots_follow_the_protocol(tmp_path):
    fill(tmp_path / "a" / "train", "xyz", 10)
    fill(tmp_path / "a" / "test", "xyz", 5, first=130)
    pool = read_pool(str(tmp_path / "a"))
    task = draw_task(pool, 4, num_train=20, num_test=9)
    assert all(grey >= 130 for grey in read_greys(task.test)) and len(task.test) == 9
    assert all(grey < 130 for grey in read_greys(task.train) + read_greys(task.validation))
    assert len(task.train) + len(task.validation) == 20
    assert 3 <= len(task.validation) <= 5


def test_pictures_of_one_group_share_a_split():
    picture = Image.new("RGB", (4, 4))
    items = [Item(lambda: picture, label, f"concept {n}") for n in range(30) for label in (0, 1)]
    kept, taken = part(items, 0.4, 2, random.Random(0))
    assert {i.group for i in kept}.isdisjoint(i.group for i in taken)
    assert len(kept) + len(taken) == 60 and len(taken) == 24


def test_a_zip_gives_what_its_folder_gives(tmp_path):
    folder = fill(tmp_path / "a", "xy")
    (folder / "notes.txt").write_text("no picture")
    for wrap in ("", "a/"):
        path = tmp_path / f"{len(wrap)}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, wrap + str(file.relative_to(folder)))
            if wrap:
                archive.write(folder, wrap)
            archive.writestr("__MACOSX/x/._0.png", b"junk")
        first, second = (read_pool(str(p)) for p in (folder, path))
        assert first.classes == second.classes == ("x", "y")
        tasks = [draw_task(pool, 4) for pool in (first, second)]
        assert torch.equal(tasks[0].train.pictures, tasks[1].train.pictures)
        assert torch.equal(tasks[0].test.labels, tasks[1].test.labels)


def test_rotations_turn_the_picture_as_the_label_says(tmp_path):
    corner = np.zeros((8, 8, 3), np.uint8)
    corner[:4, :4] = 255
    for split in ("train", "test"):
        for name in "xy":
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(8):
                Image.fromarray(corner).save(tmp_path / split / name / f"{n}.png")
    pool = read_rotations(tmp_path)
    task = draw_task(pool, 8)
    assert not task.flips and len(task.classes) == 4
    corners = [(0, 0), (7, 0), (7, 7), (0, 7)]  # counter-clockwise from the upper left
    for picture, label in zip(task.train.pictures, task.train.labels.tolist(), strict=True):
        bright = [bool(picture[0, y, x] > 128) for y, x in corners]
        assert bright == [k == label for k in range(4)]


def write_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def make_link():
    entry = zipfile.ZipInfo("x/8.png")
    entry.external_attr = 0o120777 << 16
    return entry


def make_bad(kind, folder):
    """A `--data` that cannot be used."""
    fine = {f"{c}/{n}.png": draw(n) for c in "xy" for n in range(4)}
    if kind == "empty class":
        (fill(folder / "a", "xy") / "z").mkdir()
    elif kind == "one class":
        fill(folder / "a", "x")
    elif kind == "no classes":
        (folder / "a").mkdir()
    elif kind == "one picture a class":
        fill(folder / "a", "xy", 1)
    elif kind == "broken picture":
        (fill(folder / "a", "xy") / "x" / "0.png").write_bytes(b"no picture")
    elif kind == "no zip":
        (folder / "a").write_bytes(b"PK no zip")
    elif kind == "outside":
        write_zip(folder / "a", fine | {"../x/9.png": draw(9)})
    elif kind == "absolute":
        write_zip(folder / "a", fine | {"/x/9.png": draw(9)})
    elif kind == "bomb":
        write_zip(folder / "a", fine | {"x/9.png": bytes(10_000_000)})
    elif kind == "link":
        write_zip(folder / "a", fine | {make_link(): b"/etc/passwd"})
    return str(folder / "a")


BAD = {
    "empty class": "no training picture",
    "one class": "at least two folders",
    "no classes": "at least two folders",
    "one picture a class": "too few pictures",
    "broken picture": "cannot be read",
    "no zip": "no folder and no zip",
    "outside": "points outside of it",
    "absolute": "points outside of it",
    "bomb": "inflate to",
    "link": "a link",
    "missing": "no folder, zip or built-in task|data set",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_are_one_sentence(kind, tmp_path):
    where = make_bad(kind, tmp_path)
    if kind == "missing" and importlib.util.find_spec("datasets"):
        pytest.skip("would ask the hub")
    with pytest.raises(AtomError, match=BAD[kind]):
        draw_task(read_pool(where), 4)


@pytest.fixture
def model(tmp_path):
    return save_resnet(tmp_path / "resnet8.safetensors")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"--method": "atom"}, "no method 'atom'"),
        ({"--method": "lora"}, "'lora_conv' takes every convolution"),
        ({"--data": "empty class"}, "has no training picture"),
        ({"--data": "outside"}, "points outside of it"),
        ({"--model": "timm/resnet18"}, "timm cannot be imported"),
        ({"--model": "torchvision/resnet18"}, "torchvision cannot be imported"),
        ({"--model": "sd15-unet"}, "no linear head"),
        ({"--epochs": "0"}, "--epochs is 0"),
        ({"--learning_rate": "-1"}, "above 0"),
        ({"--rate_ratios": "wing=2"}, "this method trains spatial"),
        ({"--num_train": "0"}, "--num_train is 0"),
        ({"--block_size": "0"}, "block_size is 0"),
    ],
    ids=str,
)
def test_the_command_answers_wrong_input_with_one_line(flags, said, model, tmp_path, capsys):
    if "imported" in said and importlib.util.find_spec(flags["--model"].split("/")[0]):
        pytest.skip("it can be imported here")
    given = {"--model": model, "--data": "fine", "--method": "atoms"} | flags
    (tmp_path / "data").mkdir()
    if given["--data"] == "fine":
        given["--data"] = str(fill(tmp_path / "data" / "a", "xy"))
    else:
        given["--data"] = make_bad(given["--data"], tmp_path / "data")
    with pytest.raises(SystemExit) as left:
        finetune([word for pair in given.items() for word in pair])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_the_command_prints_a_result(model, tmp_path, capsys, one_thread):
    data = fill(tmp_path / "a", "xy")
    words = ["--model", model, "--data", str(data), "--method", "atoms", "--resolution", "8"]
    finetune([*words, "--epochs", "1", "--output_dir", str(tmp_path / "out")])
    assert '"test_accuracy"' in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"atoms.safetensors", "head.safetensors", "result.json", "confusion.png"}
