"""diffusers' own tests of its DreamBooth scripts, asked of this one, on tiny pipelines built here.

From examples/dreambooth/test_dreambooth.py, test_dreambooth_lora.py and their text-encoder and SDXL
parts, under their names; one starts the script by `accelerate launch`, as all of theirs do:

- test_dreambooth, test_dreambooth_lora, test_dreambooth_lora_sdxl
- test_dreambooth_lora_with_text_encoder, test_dreambooth_lora_sdxl_with_text_encoder
- test_dreambooth_lora_sdxl_custom_captions, test_dreambooth_lora_sdxl_text_encoder_custom_captions
- test_dreambooth_checkpointing
- test_dreambooth_checkpointing_checkpoints_total_limit and ..._removes_multiple_checkpoints, also
  for SDXL and its text encoders
- prior preservation, which theirs leave untested

Left out: DeepFloyd IF, which is no Stable Diffusion. Unlike theirs, a run saves a checkpoint after
its last step too, and a text encoder counts among what a checkpoint resumes.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from safetensors.torch import load_file

import sdatoms
from sdatoms.cli.main import train_main
from sdatoms.cli.train import find_measure
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.evaluation.truth import read_truth
from sdatoms.storage import read_subject

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_dreambooth_atoms.py"


@pytest.fixture
def flags(tmp_path, tiny_pipeline, make_pictures, one_thread):
    """The flags of their tests, as words."""
    pictures = make_pictures()

    def make(kind="sd", **changes):
        values = {
            "pretrained_model_name_or_path": tiny_pipeline(kind),
            "instance_data_dir": pictures,
            "instance_prompt": "photo",
            "resolution": 16,
            "train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "max_train_steps": 2,
            "learning_rate": "5.0e-04",
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "validation_steps": 0,
            "output_dir": tmp_path / "run",
            **changes,
        }
        words = ["--scale_lr"]
        for name, value in values.items():
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return words

    return make


def read_keys(run):
    return set(load_file(run / "atoms.safetensors"))


def list_checkpoints(run):
    return {int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()}


def test_dreambooth(flags, tmp_path):
    """What `accelerate launch` does once it is imported: the script in a process of its own."""
    words = ["--cpu", "--num_processes", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch_command(launch_command_parser().parse_args([*words, str(SCRIPT), *flags()]))
    assert (tmp_path / "run" / "atoms.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["phase"] == "done"


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("text", [False, True])
def test_dreambooth_names_of_the_file(flags, tmp_path, kind, text):
    train_main(flags(kind, **({"train_text_encoder": True} if text else {})))
    encoders = {"sd": {"text_encoder"}, "sdxl": {"text_encoder", "text_encoder_2"}}[kind]
    parts = {key.split(".")[0] for key in read_keys(tmp_path / "run")}
    assert parts == {"unet"} | (encoders if text else set())
    assert all(".spatial." in k or ".block." in k for k in read_keys(tmp_path / "run"))


@pytest.mark.parametrize("text", [False, True])
def test_dreambooth_sdxl_custom_captions(flags, tmp_path, text):
    folder = Path(flags()[flags().index("--instance_data_dir") + 1])
    rows = [{"file_name": f"{k}.png", "text": f"a {'abcd'[k]}"} for k in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = {"train_text_encoder": True} if text else {}
    train_main(flags("sdxl", caption_column="text", **more))
    plain = load_file(tmp_path / "run" / "atoms.safetensors")
    (folder / "metadata.jsonl").unlink()
    train_main(flags("sdxl", **more))
    other = load_file(tmp_path / "run" / "atoms.safetensors")
    assert any(not torch.equal(plain[key], other[key]) for key in plain)  # captions were read


def test_dreambooth_checkpointing(flags, tmp_path):
    run, base = tmp_path / "run", flags()[2]
    often = {"checkpointing_steps": 2, "checkpoints_total_limit": 9, "seed": 0}
    train_main(flags(max_train_steps=5, **often))
    assert list_checkpoints(run) == {2, 4, 5}
    pipe = load_base(base, device="cpu")
    before = paint(pipe, ["photo"], [0], num_inference_steps=2)[0]
    # The finished file and one of halfway both paint.
    for path in (run, run / "checkpoints" / "step-000002"):
        adapters = sdatoms.load_atoms(pipe, path / "atoms.safetensors")
        assert paint(pipe, ["photo"], [0], num_inference_steps=2)[0].size == before.size
        adapters.clear()
    shutil.rmtree(run / "checkpoints" / "step-000002")
    train_main(flags(max_train_steps=7, resume_from_checkpoint="step-000004", **often))
    assert list_checkpoints(run) >= {4, 6, 7} and 2 not in list_checkpoints(run)
    assert sdatoms.read_atoms(run / "atoms.safetensors").metadata["step"] == "7"


@pytest.mark.parametrize(
    ("kind", "more"), [("sd", {}), ("sdxl", {}), ("sdxl", {"train_text_encoder": True})]
)
def test_dreambooth_checkpoints_total_limit(flags, tmp_path, kind, more):
    limit = {"checkpointing_steps": 2, "checkpoints_total_limit": 2}
    train_main(flags(kind, max_train_steps=6, **limit, **more))
    assert list_checkpoints(tmp_path / "run") == {4, 6}
    pipe = load_base(flags(kind)[2], device="cpu")
    adapters = sdatoms.load_atoms(pipe, tmp_path / "run" / "atoms.safetensors")
    assert len(paint(pipe, ["a prompt"], [0], num_inference_steps=1)) == 1
    adapters.clear()


def test_dreambooth_checkpoints_total_limit_removes_multiple_checkpoints(flags, tmp_path):
    train_main(flags(max_train_steps=8, checkpointing_steps=2, checkpoints_total_limit=9))
    assert list_checkpoints(tmp_path / "run") == {2, 4, 6, 8}
    again = {"resume_from_checkpoint": "step-000008", "checkpoints_total_limit": 3}
    train_main(flags(max_train_steps=10, checkpointing_steps=2, **again))
    assert list_checkpoints(tmp_path / "run") == {6, 8, 10}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_dreambooth_prior_preservation(flags, tmp_path, kind):
    prior = {"with_prior_preservation": True, "class_prompt": "b", "num_class_images": 3}
    train_main(flags(kind, class_data_dir=tmp_path / "class", **prior))
    assert len(list((tmp_path / "class").glob("*.png"))) == 3
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):
        assert row["loss"] == pytest.approx(row["instance_loss"] + row["prior_loss"], rel=1e-5)


def test_the_curves_of_a_subject_in_scenes_know_its_true_pictures(tmp_path, make_pictures):
    folder, about = read_subject("robot")
    plain, beach = read_truth("robot").wishes[:2]

    def measure(pictures):
        words = (str(pictures), about["instance_prompt"], str(tmp_path / "run"))
        call = find_measure(sdatoms.TrainConfig(*words, validation_steps=1))
        return call(None, [beach.picture], [beach.prompt], [plain.picture], [])

    found = measure(folder)
    assert found["truth"] == pytest.approx(1, abs=1e-5) and found["followed"] == 1
    assert not {"truth", "error", "followed"} & measure(make_pictures()).keys()
