"""Every command that takes a base takes a single file, and its flags."""

import json
import re
from shlex import split

import pytest
import torch
from tiny.pictures import save_pictures
from tiny.single_files import build_parts, save_single, save_sparse

from sdatoms import read_atoms
from sdatoms.cli.main import build_parser, main, run_guarded


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "narrow.safetensors"
    parts = build_parts("sd1", dtype=torch.float16)
    return str(save_single(path, "sd1", parts, dtype=torch.float16))


@pytest.fixture(scope="module")
def run(single, tmp_path_factory):
    """A run of two steps on the single file, in 16 bits."""
    folder = tmp_path_factory.mktemp("run")
    pictures = save_pictures(folder / "pictures", ((64, 64),) * 2)
    main(
        split(
            f"train --pretrained_model_name_or_path {single} --instance_data_dir {pictures} "
            f"--instance_prompt sks --output_dir {folder / 'run'} --resolution 64 "
            "--max_train_steps 2 --validation_steps 0 --train_batch_size 1 --atom_variant atoms "
            "--mixed_precision bf16 --dtype bfloat16"
        )
    )
    return folder / "run"


def test_training_leaves_a_file_with_the_single_files_fingerprints(run, single):
    file = read_atoms(run / "atoms.safetensors")
    assert file.metadata["base_model"] == single and file.num_parameters
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["loss"] > 0 for row in rows)


@pytest.mark.parametrize("offload", ["auto", "sequential"])
def test_pictures_are_painted_with_it(run, single, tmp_path, capfd, offload):
    main(
        split(
            f"generate sks --pretrained_model_name_or_path {single} --num_inference_steps 1 "
            f"--atoms {run / 'atoms.safetensors'} --height 64 --width 64 "
            f"--output_dir {tmp_path} --offload {offload}"
        )
    )
    assert len(list(tmp_path.glob("*.png"))) == 1
    said = capfd.readouterr().err
    assert said.count("narrow.safetensors: float32 on the cpu") == 1


def test_a_pipeline_is_exported_from_it(run, single, tmp_path):
    main(
        split(
            f"export {run / 'atoms.safetensors'} --format pipeline --output {tmp_path / 'baked'} "
            f"--pretrained_model_name_or_path {single} --dtype float16"
        )
    )
    assert (tmp_path / "baked" / "model_index.json").is_file()


def test_atoms_are_counted_in_it(single, capsys):
    main(["inject", single, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["component"] == "unet" and facts["parameters"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dtype bfloat16 --base_dtype float32", "name two dtypes of the base"),
        ("--vae /nowhere", "the autoencoder '/nowhere' cannot be opened"),
    ],
)
def test_training_refuses_flags_that_do_not_fit(single, tmp_path, capsys, flags, message):
    pictures = save_pictures(tmp_path / "pictures")
    with pytest.raises(SystemExit) as caught:
        main(
            split(
                f"train --pretrained_model_name_or_path {single} --instance_data_dir {pictures} "
                f"--instance_prompt x --output_dir {tmp_path / 'run'} --resolution 16 {flags}"
            )
        )
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_training_refuses_inpainting_bases_before_anything_is_written(tmp_path, capsys):
    path = save_sparse(tmp_path / "mask.safetensors", "sd1", channels=9)
    pictures = save_pictures(tmp_path / "pictures")
    with pytest.raises(SystemExit):
        main(
            split(
                f"train --pretrained_model_name_or_path {path} --instance_data_dir {pictures} "
                f"--instance_prompt x --output_dir {tmp_path / 'run'}"
            )
        )
    assert "training takes the plain form of its family" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


GPU = torch.OutOfMemoryError("CUDA out of memory")
MACHINE = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (GPU, "generate x", "--offload group"),
        (GPU, "generate x --offload none", "--offload model"),
        (GPU, "generate x --offload model", "--offload group"),
        (GPU, "generate x --offload group --batch_size 2", "--offload sequential, or --batch_size"),
        (GPU, "generate x --offload sequential", "a smaller --width and --height"),
        (GPU, "evaluate x --offload sequential", "--batch_size 1"),
        (MACHINE, "generate x", "--dtype bfloat16"),
        (MACHINE, "generate x --dtype float16", "a smaller --width and --height"),
        (MemoryError(), "inspect x", "closing what else uses it"),
    ],
)
def test_a_full_memory_is_one_line_whose_hints_are_the_commands_own_flags(
    error, words, hint, capsys
):
    def run(args):
        raise error

    parse = lambda words: build_parser(words).parse_args(words)
    args = parse(words.split())
    with pytest.raises(SystemExit) as caught:
        run_guarded(run, args)
    assert caught.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    place = "GPU" if error is GPU else "machine"
    assert said.startswith(f"sdatoms: the {place}'s memory is full; try {hint}")
    for flag, value in re.findall(r"--(\w+)(?: (?!and)(\w+))?", said):
        assert hasattr(args, flag)
        if value:  # it is taken, and is none that was given already
            again = parse([*words.split(), f"--{flag}", value])
            assert getattr(again, flag) != getattr(args, flag)
