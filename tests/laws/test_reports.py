"""What people trip over, each kind as one law over inputs made from lists."""

import json
import os
import random
import signal
import socket
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from tiny.pictures import save_pictures
from tiny.pipelines import build_pipeline, save_pipeline
from tiny.runs import read_metrics, read_tensors

import sdatoms
from sdatoms.cli.generate import claim_name, slugify
from sdatoms.cli.main import main
from sdatoms.cli.train import read_launcher
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.prompts import embed_prompt, encode_prompts
from sdatoms.settings import build_config, read_config_file
from sdatoms.storage import decode_text
from sdatoms.training.conditions import TextStack
from sdatoms.training.config import TrainConfig
from sdatoms.training.folder import check_folder
from sdatoms.training.inputs import check_inputs
from sdatoms.training.lock import LOCK, RunLock
from sdatoms.training.loop import train
from sdatoms.training.record import FIXED, PLACES, compare_record
from sdatoms.training.run_folder import RunDirectory, write_toml
from sdatoms.training.stopping import StopRequest, TrainingStopped


def change(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, "x"] if isinstance(value, list | tuple) else f"{value}x"


# A. Resume looks at what it resumes.


@pytest.fixture
def checkpoint(tmp_path, make_file):
    """A folder as `checkpoints/step-…`, and the fingerprints of its base."""
    folder = tmp_path / "step-000002"
    folder.mkdir()
    make_file().rename(folder / "atoms.safetensors")
    file = sdatoms.read_atoms(folder / "atoms.safetensors")
    return folder, file.metadata["base_fingerprints"]


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_every_changed_setting_is_named_or_refused(checkpoint, name):
    folder, prints = checkpoint
    made = {"settings": asdict(TrainConfig()), "pictures": {}, "base": {}}
    now = made | {"settings": made["settings"] | {name: change(made["settings"][name])}}
    if name in FIXED:
        with pytest.raises(sdatoms.AtomError, match=f"--{name} was .* and is"):
            compare_record(folder, made, now, prints)
    else:
        changed = compare_record(folder, made, now, prints)
        assert list(changed) == ([] if name in PLACES else [name])
    assert compare_record(folder, made, made, prints) == {}


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"0": ["a", "p", ""]}, "pictures are gone .1."),
        ({"0": ["a", "p", ""], "1": ["b", "p", ""], "2": ["c", "p", ""]}, "pictures are new .2."),
        ({"0": ["x", "p", ""], "1": ["b", "p", ""]}, "pictures were changed .0."),
        ({"0": ["a", "p", ""], "1": ["b", "q", ""]}, "prompts were changed .1."),
        ({"0": ["a", "p", "m"], "1": ["b", "p", ""]}, "masks were changed .0."),
    ],
)
def test_other_pictures_are_refused_by_name(checkpoint, now, words):
    folder, prints = checkpoint
    made = {"settings": {}, "pictures": {"0": ["a", "p", ""], "1": ["b", "p", ""]}, "base": {}}
    with pytest.raises(sdatoms.AtomError, match=words):
        compare_record(folder, made, made | {"pictures": now}, prints)


def test_another_base_is_refused_even_by_checkpoints_without_a_record(checkpoint):
    folder, prints = checkpoint
    other = json.loads(prints)
    path = next(iter(other["unet"]))
    other["unet"][path][0] *= 2
    with pytest.raises(sdatoms.AtomError, match="the base's unet has other weights"):
        compare_record(folder, None, {}, json.dumps(other))


def read_bytes(run):
    return {p.name: p.read_bytes() for p in sorted(Path(run).rglob("*")) if p.is_file()}


def test_a_refused_call_writes_nothing_and_an_accepted_one_says_what_changed(
    train_config, tmp_path
):
    config = train_config(max_train_steps=2, learning_rate=1e-3)
    list(train(config))
    held = read_bytes(config.output_dir)
    again = replace(config, resume_from_checkpoint="latest", max_train_steps=4)
    stranger = tmp_path / "other" / "checkpoints" / "step-000002"
    stranger.mkdir(parents=True)
    for changes, words in (
        ({"atom_variant": "full"}, "--atom_variant was"),
        ({"resume_from_checkpoint": str(stranger)}, "is not one of this run"),
        ({"resume_from_checkpoint": "step-000009"}, "there is no checkpoint"),
        ({"max_train_steps": 1}, "past --max_train_steps"),
        ({"report_to": "paper"}, "--report_to"),
        ({"lr_scheduler": "sawtooth"}, "--lr_scheduler"),
        ({"optimizer": "lion", "resume_from_checkpoint": None}, "--optimizer lion"),
        ({"pretrained_model_name_or_path": str(tmp_path)}, "no diffusers pipeline"),
    ):
        with pytest.raises(sdatoms.AtomError, match=words):
            next(train(replace(again, **changes)))
        assert read_bytes(config.output_dir) == held, changes
    with pytest.raises(sdatoms.AtomError, match="--lr_scheduler"):
        fresh = str(tmp_path / "fresh")
        next(train(replace(config, output_dir=fresh, lr_scheduler="sawtooth")))
    assert not Path(fresh).exists()
    lines = []
    list(train(replace(again, learning_rate=1e-5), notify=lines.append))
    assert [line for line in lines if "learning_rate 0.001 → 1e-05" in line]
    assert [row["lr"] for row in read_metrics(config.output_dir)] == [1e-3, 1e-3, 1e-5, 1e-5]


def test_nothing_to_resume_is_said_and_old_checkpoints_are_taken_with_a_note(train_config):
    config = train_config(max_train_steps=1, resume_from_checkpoint="latest")
    lines = []
    list(train(config, notify=lines.append))
    assert "nothing to resume" in lines[0]
    (record,) = (Path(config.output_dir) / "checkpoints").glob("*/record.json")
    record.unlink()
    lines.clear()
    steps = list(train(replace(config, max_train_steps=2), notify=lines.append))
    assert [step.step for step in steps] == [2] and "is not checked" in lines[0]


def test_a_moved_run_goes_on_where_it_is(train_config, tmp_path, capsys):
    config = train_config(max_train_steps=1)
    list(train(config))
    Path(config.output_dir).rename(tmp_path / "moved")
    words = ["--resume_from_checkpoint", "latest", "--max_train_steps", "2"]
    main(["train", "--config", str(tmp_path / "moved" / "config.toml"), *words])
    assert len(read_metrics(tmp_path / "moved")) == 2 and not Path(config.output_dir).exists()
    assert "the run was moved" in capsys.readouterr().err


# B. Other tools' conventions.


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


# C. Texts and names that are not clean UTF-8.

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


# D. One reader of prompts.


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize(
    "text", ["a cat", "a sks (cat)", "tag (series), red", "a cat, " * 9, "[x] (y:1.4)", ""]
)
def test_training_reads_prompts_as_painting_does(tiny_pipeline, kind, text):
    pipe = load_base(str(tiny_pipeline(kind)), device="cpu")
    given = encode_prompts(pipe, [text])
    trained = TextStack(pipe).encode([text])
    if "prompt" in given:
        painted = pipe.encode_prompt(
            text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        context, pooled = painted[0], painted[2] if kind == "sdxl" else None
    else:
        context, pooled = given["prompt_embeds"], given.get("pooled_prompt_embeds")
    assert torch.equal(trained.context, context)
    assert pooled is None or torch.equal(trained.pooled, pooled)


@pytest.mark.parametrize(("kind", "clip_skip"), [("sd", 1), ("sd", 2), ("sdxl", 1), ("sdxl", 3)])
def test_the_reader_reads_the_layer_the_pipeline_reads(kind, clip_skip):
    pipe = build_pipeline(kind, text_layers=3)
    read = embed_prompt(pipe, "a cat", clip_skip=clip_skip)
    if kind == "sd" and clip_skip > 1:  # diffusers looks for the last norm where it was
        pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    own = pipe.encode_prompt(
        "a cat",
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        clip_skip={1: None, 2: 1, 3: 1}[clip_skip],
    )
    assert torch.equal(read.context, own[0])
    assert kind == "sd" or torch.equal(read.pooled, own[2])
    given = encode_prompts(pipe, ["a (cat:1.0) "], clip_skip=clip_skip)
    assert torch.equal(given["prompt_embeds"], own[0])


def test_prompts_of_other_lengths_in_a_batch_change_nothing(tiny_pipeline):
    pipe = load_base(str(tiny_pipeline()), device="cpu")
    text, long = "a cat", "a cat and a dog " * 3
    alone, both = TextStack(pipe).encode([text]), TextStack(pipe).encode([text, long])
    assert alone.mask is None and both.mask is not None
    side = pipe.unet.config.sample_size
    noisy = torch.randn(2, pipe.unet.config.in_channels, side, side)
    with torch.no_grad():
        one = pipe.unet(noisy[:1], 10, alone.context)[0]
        two = pipe.unet(noisy, 10, both.context, encoder_attention_mask=both.mask)[0]
    torch.testing.assert_close(two[:1], one)


def test_a_prompt_that_is_cut_is_said(train_config, make_pictures):
    folder = make_pictures("long", ((20, 20),))
    (folder / "0.txt").write_text("abcdefghij " * 150)
    lines = []
    next(train(train_config(instance_data_dir=str(folder)), notify=lines.append))
    assert [line for line in lines if "a prompt is cut: of" in line]


# E. Stop is heard in every phase.


class WhenPhase(StopRequest):
    """Asks to stop as soon as status.json shows a phase."""

    def __init__(self, run, phase):
        self.path, self.phase, self.latched = Path(run) / "status.json", phase, False
        super().__init__()

    @property
    def asked(self):
        if not self.latched and self.path.is_file():
            self.latched = json.loads(self.path.read_text())["phase"] == self.phase
        return self.latched

    @asked.setter
    def asked(self, value):
        self.latched = value


@pytest.mark.parametrize("phase", ["loading", "class images", "encoding", "samples", "training"])
def test_a_stop_is_heard_in_every_phase(train_config, phase, monkeypatch):
    monkeypatch.setattr("sdatoms.training.run_folder.HEARTBEAT_SECONDS", 0.0)
    config = train_config(
        with_prior_preservation=True,
        class_prompt="cat",
        num_class_images=2,
        sample_batch_size=1,
        validation_steps=2,
        max_train_steps=2,
    )
    run = Path(config.output_dir)
    with pytest.raises(TrainingStopped) as stopped:
        list(train(config, stop=WhenPhase(run, phase)))
    status = json.loads((run / "status.json").read_text())
    assert status["phase"] == "stopped" and not (run / LOCK).exists()
    steps = RunDirectory(run).list_checkpoints()
    assert stopped.value.saved == bool(steps)
    assert [step.step for step in train(replace(config, resume_from_checkpoint="latest"))][-1] == 2
    assert (run / "samples" / "step-000002-0.png").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_ask_once_and_then_stop_at_once(number):
    kept = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        stop = StopRequest()
        stop.listen()
        with pytest.raises(KeyboardInterrupt):  # nothing is written yet
            signal.raise_signal(number)
        stop = StopRequest()
        stop.writing = True
        stop.listen()
        signal.raise_signal(number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        StopRequest().listen()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for n, handler in kept.items():
            signal.signal(n, handler)


# F. One owner.


def test_a_run_directory_has_one_owner(train_config):
    config = train_config(checkpointing_steps=1)
    first = train(config)
    next(first)
    held = read_bytes(config.output_dir)
    for again in (config, replace(config, resume_from_checkpoint="latest")):
        with pytest.raises(sdatoms.AtomError, match="belongs to another training"):
            next(train(again))
        assert read_bytes(config.output_dir) == held
    assert [step.step for step in first] == [2, 3, 4]
    assert not (Path(config.output_dir) / LOCK).exists()


@pytest.mark.parametrize("host", [socket.gethostname(), "another"])
@pytest.mark.parametrize("age", [0, 1e6])
def test_locks_of_dead_processes_are_taken_over(tmp_path, host, age):
    import time

    (tmp_path / LOCK).write_text(json.dumps({"pid": 1 << 30, "host": host}))
    status = {"phase": "training", "heartbeat": time.time() - age}
    (tmp_path / "status.json").write_text(json.dumps(status))
    lock = RunLock(tmp_path)
    if host == "another" and not age:
        with pytest.raises(sdatoms.AtomError, match="belongs to another training, process"):
            lock.acquire()
    else:
        lock.acquire()
        lock.release()
        assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("output", "classes", "fits"),
    [
        ("run", None, True),
        ("run", "class", True),
        ("run", "run/class", True),
        ("pictures", None, False),
        ("pictures/run", None, False),
        ("run", "pictures", False),
        ("run", "pictures/class", False),
        ("run", ".", False),
        ("run", "run", False),
    ],
)
def test_folders_that_would_become_each_others_pictures_are_refused(
    train_config, tmp_path, output, classes, fits
):
    config = train_config(
        output_dir=str(tmp_path / output),
        class_data_dir=classes and str(tmp_path / classes),
        with_prior_preservation=True,
        class_prompt="cat",
    )
    if fits:
        check_inputs(config)
        return
    with pytest.raises(sdatoms.AtomError, match=r"lies? in"):
        check_inputs(config)


# H. Arguments are looked at.


@pytest.mark.parametrize("seed", [2**32, 2**64 - 1])
def test_seeds_that_are_taken_train(train_config, seed):
    config = train_config(seed=seed, max_train_steps=1)
    assert len(list(train(config))) == 1


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_other_seeds_are_refused_by_name(train_config, tiny_base, capsys, seed):
    with pytest.raises(sdatoms.AtomError, match=r"--seed is .* it takes 0 to 18446744073709551615"):
        train_config(seed=seed)
    pipe = load_base(str(tiny_base), device="cpu")
    with pytest.raises(sdatoms.AtomError, match="seeds go from"):
        paint(pipe, ["a"], [seed if seed > 0 else -(2**64)])


def test_one_side_gives_the_other_and_odd_ones_are_refused(tiny_base):
    pipe = load_base(str(tiny_base), device="cpu")
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    wide = paint(pipe, ["a"], [0], width=side * 2, num_inference_steps=1)[0]
    tall = paint(pipe, ["a"], [0], height=side * 2, num_inference_steps=1)[0]
    assert wide.size == (side * 2, side // 2) and tall.size == (side // 2, side * 2)
    for changes in ({"width": side + 1}, {"height": 0}, {"width": -8}):
        with pytest.raises(sdatoms.AtomError, match="it takes multiples of"):
            paint(pipe, ["a"], [0], **changes)
    for steps in (0, 1001, 5000):
        with pytest.raises(sdatoms.AtomError, match="it takes 1 to 1000"):
            paint(pipe, ["a"], [0], num_inference_steps=steps)


def test_pictures_of_an_earlier_call_are_kept(tmp_path):
    names = set()
    for prompt in ("a cat", "a cat!", "赤い猫", "красный кот", "???", "é" * 90, "a cat"):
        with claim_name(tmp_path, f"{slugify(prompt)}-0") as path:
            assert not path.stat().st_size and path not in names
            path.write_bytes(prompt.encode())
        names.add(path)
    assert {"赤い猫-0.png", "красный-кот-0.png", "a-cat-0-3.png"} <= {p.name for p in names}
    with pytest.raises(ValueError), claim_name(tmp_path, "x") as path:
        raise ValueError
    assert not path.exists()


@pytest.fixture
def foreign(tmp_path):
    """Bases that are no Stable Diffusion, by kind."""

    def make(kind):
        folder = tmp_path / kind
        if kind == "unconditional":
            sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 8}
            blocks = {
                "down_block_types": ("DownBlock2D",) * 2,
                "up_block_types": ("UpBlock2D",) * 2,
            }
            DDPMPipeline(UNet2DModel(**sizes, **blocks), DDPMScheduler()).save_pretrained(folder)
            return folder
        folder = save_pipeline(folder)
        index = json.loads((folder / "model_index.json").read_text())
        if kind == "inpainting":
            path = folder / "unet" / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))
        else:
            index["_class_name"] = kind
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    return make


@pytest.mark.parametrize(
    "kind", ["inpainting", "unconditional", "FluxPipeline", "StableDiffusionInpaintPipeline"]
)
def test_bases_of_other_families_are_refused_before_anything_is_done(
    foreign, train_config, kind, tmp_path
):
    base = str(foreign(kind))
    with pytest.raises(sdatoms.AtomError, match=r"Stable Diffusion 1\.x.*XL"):
        load_base(base)
    with pytest.raises(sdatoms.AtomError, match=r"Stable Diffusion 1\.x.*XL"):
        next(train(train_config(pretrained_model_name_or_path=base)))
    assert not (tmp_path / "run").exists()
