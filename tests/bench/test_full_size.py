"""Pipelines of full size: both forms hold the same numbers, and both open."""

import pytest
import torch
from safetensors import safe_open
from tiny.pictures import save_pictures

from sdatoms import AtomConfig, inject, load_base, save_atoms
from sdatoms.bench.full_size import (
    FULL_SIZES,
    count_bytes,
    make_tensor,
    write_directory,
    write_single,
)
from sdatoms.bench.full_size_runs import (
    measure_command,
    measure_commands,
    measure_life,
    tabulate_placements,
)
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


def test_the_life_of_a_file_is_measured_step_by_step_and_ends_to_the_bit(tmp_path, tiny_pipeline):
    base = str(tiny_pipeline("sdxl"))
    pipe = load_base(base, device="cpu")
    save_atoms(tmp_path / "a.safetensors", {"unet": inject(pipe.unet, AtomConfig())})
    found = measure_life(base, str(tmp_path / "a.safetensors"), "bfloat16")
    assert found["exact"] and found["chosen"][0].endswith("stay in the machine's memory")
    steps = [found[name] for name in ("open", "load", "strength", "verify", "clear")]
    assert all(step["cpu_seconds"] >= 0 and step["peak_gb"] > 0 for step in steps)


@pytest.mark.slow
def test_both_forms_are_measured_by_what_people_type_and_one_is_trained(tmp_path, tiny_pipeline):
    save_pictures(tmp_path / "pictures", ((16, 16),) * 2)
    given = (tiny_pipeline("sd"), tmp_path / "pictures", tmp_path, 16)
    assert [name for name, _ in measure_commands(*given)] == ["inject", "train", "life", "generate"]
    assert [name for name, _ in measure_commands(*given)] == ["inject", "life"]
