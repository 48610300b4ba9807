"""Pipelines of full size: both forms hold the same numbers, and both open."""

import pytest
import torch
from safetensors import safe_open

from sdatoms import load_base
from sdatoms.bench.full_size import (
    FULL_SIZES,
    count_bytes,
    make_tensor,
    write_directory,
    write_single,
)
from sdatoms.bench.full_size_runs import measure_command, tabulate_placements
from sdatoms.diffusion.family import describe_base


def test_sizes_are_those_people_have():
    assert {name: round(count_bytes(name) / 1e9, 1) for name in FULL_SIZES} == {
        "sd15": 2.1,
        "sd21": 2.6,
        "sdxl": 6.9,
    }


def test_a_tensor_follows_from_its_name():
    one, same, other = (
        make_tensor("unet", name, (4, 3, 3, 3), torch.float32) for name in ("a", "a", "b")
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert 0.5 < float(one.std()) * 27**0.5 < 2
    assert make_tensor("unet", "norm.bias", (3,), torch.float16).tolist() == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_a_single_file_of_full_size_is_its_directory_tensor_by_tensor(tmp_path, name):
    folder = write_directory(name, tmp_path / name)
    path = write_single(name, tmp_path / f"{name}.safetensors")
    assert describe_base(str(path)).label == describe_base(str(folder)).label
    pipe = load_base(str(path), device="cpu", dtype="float16")
    for part in ("unet", "vae", "text_encoder"):
        held = getattr(pipe, part).state_dict()
        with safe_open(next((folder / part).glob("*.safetensors")), framework="pt") as file:
            for key in file.keys():
                own = held[key] if key in held else held[key.removeprefix("text_model.")]
                assert torch.equal(own, file.get_tensor(key)), key
            assert len(file.keys()) == len(held)
    again = load_base(str(folder), device="cpu", dtype="float16")
    assert dict(again.scheduler.config)["prediction_type"] == FULL_SIZES[name].prediction_type
    for key, tensor in again.unet.state_dict().items():
        assert torch.equal(tensor, pipe.unet.state_dict()[key]), key


def test_placements_follow_from_published_shapes():
    found = tabulate_placements("sdxl")
    assert found["weights_gb"]["unet"] == 5.13
    peaks = found["peak_gb"]
    assert peaks["none"]["whole"] > peaks["model"]["whole"]
    assert peaks["group"]["tiles"] < 4 < peaks["none"]["tiles"] < 12
    assert found["auto"]["8 GB"] == "model in tiles" and found["auto"]["24 GB"] == "none"
    assert tabulate_placements("sd15")["auto"]["8 GB"] == "none"


def test_a_commands_cost_is_its_own_and_its_failure_its_last_line(tmp_path):
    found = measure_command(["--version"])
    assert found["peak_gb"] > 0 and found["seconds"] >= 0
    with pytest.raises(RuntimeError, match="nowhere"):
        measure_command(["inspect", str(tmp_path / "nowhere.safetensors")])
