"""C. Texts, names and paths of every kind: in any encoding, undecodable, leading nowhere."""

import json
import os
import random
from itertools import product
from pathlib import Path

import pytest

import sdatoms
from sdatoms.cli.main import main
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.settings import read_config_file
from sdatoms.storage import decode_text
from sdatoms.training.folder import check_folder
from sdatoms.training.loop import train
from sdatoms.training.run_folder import write_toml

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
TEXTS = ["a sks cat", "a café, cat’s", "a\u2028b"]


@pytest.mark.parametrize(("encoding", "text"), product(ENCODINGS, TEXTS))
def test_captions_are_read_in_every_encoding_and_place(make_pictures, encoding, text):
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:
        pytest.skip(f"{encoding} has no such character")
    assert decode_text(data)[0] == text
    folder = make_pictures(sizes=((20, 20),) * 3)
    (folder / "0.txt").write_bytes(data)
    row = json.dumps({"file_name": "1.png", "text": text}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_bytes(row.encode(encoding))
    (folder / "metadata.csv").write_bytes(f'file_name,text\n2.png,"{text}"\n'.encode(encoding))
    found = check_folder(folder, "x")
    assert [source.prompt for source in found.sources] == [text] * 3
    guessed = encoding == "cp1252" and not text.isascii()
    assert bool([note for note in found.notes if "no Unicode" in note]) == guessed


def test_names_that_are_no_text_train_and_are_shown(train_config, make_pictures, tmp_path):
    folder = make_pictures()
    try:
        os.rename(folder / "0.png", os.fsencode(folder / "caf") + b"\xe9.png")
    except OSError:
        pytest.skip("the file system takes no such name")
    config = train_config(instance_data_dir=str(folder), max_train_steps=1)
    list(train(config))
    report = json.loads((Path(config.output_dir) / "report.json").read_text())
    assert "caf .png" in report["instance_pictures"]


def test_all_that_settings_hold_comes_back_from_toml(tmp_path):
    draw, path = random.Random(0), tmp_path / "config.toml"
    for _ in range(200):
        text = "".join(
            chr(draw.choice((draw.randrange(256), draw.randrange(0x2000, 0x2100))))
            for _ in range(8)
        )
        number = draw.choice((float("inf"), 1e-300, 1e38, 2.0**70, 0.1))
        values = {"instance_prompt": text, "max_grad_norm": number, "optimizer_args": [text]}
        path.write_bytes(write_toml(values).encode())
        assert read_config_file(path) == values
    with pytest.raises(sdatoms.AtomError, match=r"--output_dir .* holds bytes that are no text"):
        write_toml({"output_dir": "caf\udce9"})


NO_TEXT = "caf\udce9"
"""As Python gives a word of the command line whose bytes are no UTF-8."""


@pytest.mark.parametrize(
    "words",
    [
        ["generate", NO_TEXT],
        ["generate", "x", "--negative_prompt", NO_TEXT],
        ["generate", "x", "--vae", NO_TEXT],
        ["generate", "x", "--pretrained_model_name_or_path", NO_TEXT],
        ["inject", NO_TEXT],
        ["compose", "FILE", "--output", "sum.safetensors", "--title", NO_TEXT],
        ["export", "FILE", "--format", "pipeline", "--output", NO_TEXT],
        *(
            ["train", "--instance_data_dir", "x", "--instance_prompt", "x", flag, NO_TEXT]
            for flag in ("--trigger", "--instance_prompt", "--validation_prompts", "--output_dir")
        ),
    ],
)
def test_words_that_are_no_text_are_refused_where_they_must_be_text(
    tmp_path, monkeypatch, capsys, make_file, tiny_base, words
):
    monkeypatch.chdir(tmp_path)
    words = [str(make_file()) if word == "FILE" else word for word in words]
    if words[0] == "generate" and "--pretrained_model_name_or_path" not in words:
        words += ["--pretrained_model_name_or_path", str(tiny_base)]
    held = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "is 'caf ', which holds bytes that are no text" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == held


PATHS = {
    "inspect": ["PATH"],
    "inject": ["PATH"],
    "compose": ["PATH", "--output", "sum"],
    "compose out": ["FILE", "--output", "PATH"],
    "export": ["PATH", "--for", "kohya", "--output", "sum", "BASE"],
    "export out": ["FILE", "--for", "kohya", "--output", "PATH", "BASE"],
    "generate atoms": ["x", "--atoms", "PATH", "BASE"],
    "generate out": ["x", "--output_dir", "PATH", "BASE"],
    "generate base": ["x", "--pretrained_model_name_or_path", "PATH"],
    "generate vae": ["x", "--vae", "PATH", "BASE"],
    "evaluate": ["PATH", "BASE"],
    "evaluate subject": ["FILE", "--subject", "PATH", "BASE"],
    "evaluate evaluator": ["FILE", "--evaluator", "PATH", "BASE"],
    **{
        f"train {flag}": ["--instance_prompt", "x", f"--{flag}", "PATH", *more, "BASE"]
        for flag, more in (
            ("instance_data_dir", ["--output_dir", "run"]),
            ("output_dir", ["--instance_data_dir", "PICTURES"]),
            ("config", ["--instance_data_dir", "PICTURES", "--output_dir", "run"]),
            ("mask_data_dir", ["--instance_data_dir", "PICTURES", "--output_dir", "run"]),
            ("evaluator", ["--instance_data_dir", "PICTURES", "--output_dir", "run"]),
        )
    },
}
"""Command and what its path is → its words."""


@pytest.mark.filterwarnings("ignore:the weights of")
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", ["long", "loop", "below a file", "gone"])
def test_paths_that_lead_nowhere_are_one_sentence(
    tmp_path, monkeypatch, capsys, make_file, make_pictures, tiny_base, name, kind
):
    if "out" in name and (kind == "gone" or (kind == "loop" and "generate" not in name)):
        pytest.skip("it is made, or takes the link's place")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file, pictures = make_file(), make_pictures()
    Path("loop.safetensors").symlink_to("loop.safetensors")
    path = {
        "long": "x" * 300,
        "loop": "loop.safetensors",
        "below a file": f"{file}/x",
        "gone": "a/b/c.safetensors",
    }[kind]
    base = ["--pretrained_model_name_or_path", str(tiny_base)]
    given = {"PATH": [path], "FILE": [str(file)], "PICTURES": [str(pictures)], "BASE": base}
    words = [word for part in PATHS[name] for word in given.get(part, [part])]
    held = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main([name.split()[0], *words])
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and "Traceback" not in "".join(said) and said[-1].count(": ")
    assert sorted(tmp_path.rglob("*")) == held


@pytest.mark.parametrize(
    "words", [["compose", "FILE"], ["export", "FILE", "--for", "kohya"], ["compose", "FILE=0.5"]]
)
@pytest.mark.parametrize("linked", [False, True])
def test_no_file_is_written_over_what_it_is_made_from(tmp_path, capsys, make_file, words, linked):
    file = make_file()
    output = tmp_path / "link.safetensors" if linked else file
    if linked:
        output.symlink_to(file)
    before = file.read_bytes()
    with pytest.raises(SystemExit) as stop:
        main([*(word.replace("FILE", str(file)) for word in words), "--output", str(output)])
    assert stop.value.code == 2 and "name another file" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize("given", [None, b"x", 5, {"a": 1}])
def test_arguments_of_another_kind_are_refused(make_unet, make_file, given, tiny_base):
    unet = make_unet()
    with pytest.raises(sdatoms.AtomError, match="takes a path, a hub id or an AtomFile"):
        sdatoms.load_atoms(unet, given)
    adapters = sdatoms.load_atoms(unet, make_file(), name="dog")
    with pytest.raises(sdatoms.AtomError, match=r"strength|no adapter is named"):
        adapters.set_strengths(given)
    pipe = load_base(str(tiny_base), device="cpu")
    with pytest.raises(sdatoms.AtomError, match="a prompt is a"):
        paint(pipe, [given], [0])
    with pytest.raises(sdatoms.AtomError, match="it takes"):
        paint(pipe, ["a"], [0.5], num_inference_steps=1)
    with pytest.raises(sdatoms.AtomError, match="it takes 1 to"):
        paint(pipe, ["a"], [0], num_inference_steps=1.5)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tiny_base, scale):
    with pytest.raises(sdatoms.AtomError, match="it takes a finite number"):
        paint(load_base(str(tiny_base), device="cpu"), ["a"], [0], guidance_scale=scale)
