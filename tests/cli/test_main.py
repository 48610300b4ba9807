"""The command line: what comes out, and one line with exit code 2 for wrong input."""

import inspect
import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sdatoms
from sdatoms.cli.main import COMMANDS, main, train_main
from sdatoms.cli.train import find_measure
from sdatoms.diffusion.open import load_base
from sdatoms.storage import find_assets
from sdatoms.training.config import TrainConfig

INK = str(find_assets() / "subjects" / "ink")
TRAIN = ["--instance_data_dir", INK, "--instance_prompt", "an emoji in sks style"]


@pytest.fixture(scope="module")
def atom_file(tmp_path_factory):
    pipe = load_base()
    injection = sdatoms.inject(pipe.unet, sdatoms.AtomConfig(variant="atoms"))
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1
            )
    path = tmp_path_factory.mktemp("atoms") / "dog.safetensors"
    sdatoms.save_atoms(path, {"unet": injection}, trigger="sks dog")
    return path


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    commands = "demo train generate inspect inject compose export ui"
    assert all(command in out for command in commands.split())


def test_train_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    for flag in (
        "--atom_variant",
        "--num_inner_atoms",
        "--prior_loss_weight",
        "--config",
        "--dry_run",
    ):
        assert flag in out


def test_inspect_prints_one_json_object(capsys, atom_file):
    main(["inspect", str(atom_file), "--json"])
    facts = json.loads(capsys.readouterr().out)
    file = sdatoms.read_atoms(atom_file)
    assert facts["parameters"] == file.num_parameters and facts["components"] == ["unet"]
    assert facts["bytes"] == atom_file.stat().st_size and facts["metadata"]["trigger"] == "sks dog"


def test_inspect_shows_hostile_metadata_on_one_line(capsys, tmp_path, atom_file):
    file = sdatoms.read_atoms(atom_file)
    file.metadata["modelspec.title"] = "a\x1b[31m\nb" * 1000
    main(["inspect", str(file.save(tmp_path / "x.safetensors"))])
    out = capsys.readouterr().out
    assert "\x1b" not in out and max(map(len, out.splitlines())) < 200


def test_inject_reports_layers_and_totals(capsys):
    main(["inject", "--atom_variant", "atoms", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == sum(row["parameters"] for row in facts["report"])
    assert facts["layers"] == sum(row["parameters"] > 0 for row in facts["report"])
    main(["inject", "--atom_variant", "atoms"])
    assert (
        f"{facts['parameters']:,} parameters in {facts['layers']} layers" in capsys.readouterr().out
    )


def test_generate_writes_a_picture_for_each_seed(capsys, tmp_path, atom_file):
    command = ["generate", "cat face", "--num_inference_steps", "2", "--output_dir", str(tmp_path)]
    main([*command, "--num_images", "2", "--seed", "7"])
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert [p.name for p in paths] == ["cat-face-7.png", "cat-face-8.png"]
    base = Image.open(paths[0]).tobytes()
    for strength, same in ((0, True), (1.5, False)):  # strength 0 is the base
        main([*command, "--seed", "7", "--atoms", f"{atom_file}={strength}"])
        (path,) = map(Path, capsys.readouterr().out.split())
        assert path not in paths, "a picture of an earlier call was overwritten"
        assert (Image.open(path).tobytes() == base) == same


def test_generated_names_never_leave_the_folder(capsys, tmp_path):
    folder = tmp_path / "out"
    main(
        ["generate", "../../x; rm -rf /", "--num_inference_steps", "1", "--output_dir", str(folder)]
    )
    assert [p.name for p in folder.iterdir()] == ["x-rm-rf-0.png"]


def test_train_runs_from_flags_and_file(capsys, tmp_path):
    (tmp_path / "run.toml").write_text(
        "max_train_steps = 9\ntrain_batch_size = 1\nvalidation_steps = 0\n"
    )
    config = ["--config", str(tmp_path / "run.toml"), "--max_train_steps", "2"]
    train_main([*TRAIN, *config, "--output_dir", str(tmp_path / "run")])
    written = (tmp_path / "run" / "config.toml").read_text()
    assert "max_train_steps = 2" in written and "train_batch_size = 1" in written
    # the effective config is a config file
    again = [
        "--config",
        str(tmp_path / "run" / "config.toml"),
        "--output_dir",
        str(tmp_path / "again"),
    ]
    train_main(again)
    a, b = (
        sdatoms.read_atoms(tmp_path / n / "atoms.safetensors").tensors for n in ("run", "again")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_dry_run_trains_nothing(capsys, tmp_path):
    main(["train", *TRAIN, "--dry_run", "--output_dir", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert all(word in out for word in ("parameters", "bytes", "memory", "steps", "minutes"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--instance_data_dir is missing"]),
        (
            ["--instance_data_dir", "nowhere", "--instance_prompt", "x"],
            ["there is no folder 'nowhere'"],
        ),
        ([*TRAIN, "--max_train_steps", "0"], ["--max_train_steps is 0", "at least 1"]),
        ([*TRAIN, "--max_train_step", "5"], ["--max_train_step"]),
        ([*TRAIN, "--learning_rat", "5"], ["unknown flag --learning_rat", "--learning_rate"]),
        ([*TRAIN, "--atom_variant", "lora"], ["--atom_variant", "lora"]),
        ([*TRAIN, "--num_atoms", "0"], ["num_atoms is 0", "at least 1"]),
        ([*TRAIN, "--resolution", "63"], ["--resolution is 63", "multiple of 8"]),
        ([*TRAIN, "--with_prior_preservation"], ["--class_prompt"]),
        ([*TRAIN, "--resume_from_checkpoint", "step-000009"], ["step-000009", "it holds none"]),
        ([*TRAIN, "--pretrained_model_name_or_path", INK], ["no diffusers pipeline"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(refuse, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert not refuse(["train", *flags], *words)


def test_wrong_config_files_are_refused_by_name(refuse, tmp_path):
    path = tmp_path / "run.json"
    for text, words in (
        ('{"learning_rat": 1}', ["'learning_rat'", "did you mean 'learning_rate'"]),
        ('{"max_train_steps": "many"}', ["max_train_steps is 'many'", "int"]),
        ("{", ["cannot be parsed"]),
        ("[]", ["no table"]),
    ):
        path.write_text(text)
        assert not refuse(["train", *TRAIN, "--config", path], *words)


def test_wrong_atom_files_are_refused(refuse, tmp_path):
    save_file({"unet.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x04K\x01.")
    generate = ["generate", "cat", "--output_dir", str(tmp_path / "out"), "--atoms"]
    for name, words in (
        ("lora.safetensors", ["no half of a pair"]),
        ("old.ckpt", ["no safetensors file"]),
        ("none.safetensors", ["there is no file"]),
    ):
        assert not refuse(["inspect", tmp_path / name], *words)
        assert not refuse([*generate, tmp_path / name], *words)
    assert not (tmp_path / "out").exists()


def test_the_bundled_evaluator_measures_the_bundled_base_alone(
    tmp_path, monkeypatch, evaluator_folder
):
    for module in ("storage", "diffusion.family", "evaluation.evaluator"):
        monkeypatch.setattr(f"sdatoms.{module}.find_assets", lambda: tmp_path)
    assert find_measure(TrainConfig("pictures", "a cat")) is None  # it is not there yet
    shutil.copytree(evaluator_folder, tmp_path / "emoji-clip")
    assert find_measure(TrainConfig("pictures", "a cat")) is not None
    same = str(tmp_path / "emoji-sd")
    assert find_measure(TrainConfig("p", "a cat", pretrained_model_name_or_path=same)) is not None
    other = {"pretrained_model_name_or_path": "someone/sd"}
    assert find_measure(TrainConfig("p", "a cat", **other)) is None
    asked = TrainConfig("p", "a cat", evaluator=str(evaluator_folder), **other)
    assert find_measure(asked) is not None
    assert find_measure(TrainConfig("p", "a cat", validation_steps=0)) is None


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_in_a_line_what_each_command_does(name):
    module, line = COMMANDS[name]
    run = getattr(import_module(f"sdatoms.cli.{module}"), f"run_{name}")
    assert line == inspect.getdoc(run).splitlines()[0]


def test_help_and_version_wait_for_no_torch():
    """Nor does the help of any command, which may look at pictures' names by numpy's leave: each is
    asked in turn, in one process."""
    code = (
        "import sys\nfrom sdatoms.cli.main import main\n"
        "for words in map(str.split, sys.argv[1:]):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert not end.code\n"
        "    heavy = {'torch', 'diffusers'} | ({'numpy'} if len(words) == 1 else set())\n"
        "    assert not heavy & set(sys.modules), words\n"
    )
    asked = ["--help", "--version", *(f"{name} --help" for name in COMMANDS)]
    subprocess.run([sys.executable, "-c", code, *asked], check=True, capture_output=True)
