"""Every command that takes a base takes a single file, and its flags."""

import json
from argparse import Namespace
from shlex import split

import pytest
import torch
from tiny.pictures import save_pictures
from tiny.single_files import build_parts, save_single, save_sparse

from sdatoms import read_atoms
from sdatoms.cli.main import main, run_guarded


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


@pytest.mark.parametrize(
    ("offload", "next"),
    [("auto", "group"), ("none", "model"), ("model", "group"), ("group", "sequential")],
)
def test_a_full_gpu_is_one_line_that_names_the_next_thing_to_try(capsys, offload, next):
    def run(args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(SystemExit) as caught:
        run_guarded(run, Namespace(offload=offload))
    assert caught.value.code == 2
    assert f"try --offload {next}" in capsys.readouterr().err
