"""`sdatoms inject`: names, folders and files in, a report and its totals out."""

import json

import pytest
from tiny.models import build_small

from sdatoms import AtomConfig, inject, save_atoms
from sdatoms.cli.main import main
from sdatoms.models.cifar_resnet import CifarResNet
from sdatoms.models.open import open_model

pytestmark = pytest.mark.usefixtures("one_thread")


def run(capsys, *flags):
    main(["inject", *map(str, flags)])
    return capsys.readouterr().out


@pytest.mark.parametrize("variant", ["atoms", "overcomplete", "coefficients", "full"])
def test_a_folder_is_reported_as_injected_and_saved(capsys, tmp_path, variant):
    folder = tmp_path / "unet"
    build_small("sd15-unet").save_pretrained(folder)

    facts = json.loads(run(capsys, folder, "--atom_variant", variant, "--json"))

    opened = open_model(folder)
    injection = inject(opened.model, AtomConfig(variant))
    path = save_atoms(
        tmp_path / "a.safetensors", {opened.component: injection}, base_model=str(folder)
    )
    assert facts["variant"] == variant and facts["model"] == str(folder)
    assert facts["layers"] == len(injection.layers) > 0
    assert facts["parameters"] == injection.num_parameters
    assert facts["bytes"] == path.stat().st_size
    assert facts["weights"] == sum(p.numel() for p in build_small("sd15-unet").parameters())
    rows = {row.path: row for row in injection.report()}
    assert [row["path"] for row in facts["report"]] == list(rows)
    for row in facts["report"]:
        assert row["parameters"] == rows[row["path"]].parameters
        assert row["view"] == rows[row["path"]].view


def test_a_known_name_prints_one_line_a_layer_and_the_totals(capsys):
    lines = run(capsys, "resnet-50", "--atom_variant", "atoms").splitlines()
    facts = json.loads(run(capsys, "resnet-50", "--atom_variant", "atoms", "--json"))
    # 16 convolutions of 3x3, and the first one: 64 x 3 filters of 7x7, a quarter of its weights.
    assert facts["weights"] == 25_557_032
    assert facts["parameters"] == 16 * 81 + 48 * 49
    assert len(lines) == 18
    assert lines[0].split()[:3] == [
        "resnet.embedder.embedder.convolution",
        "64x3x7x7",
        "spatial",
    ]
    assert lines[-1] == (
        f"{facts['parameters']:,} parameters in 17 layers of a ResNetForImageClassification of "
        f"{facts['weights']:,} weights; a file of {facts['bytes']:,} bytes"
    )


def test_settings_reach_the_layers(capsys, tmp_path):
    build_small("sd15-unet").save_pretrained(tmp_path)
    flags = ["--atom_variant", "full", "--num_atoms", "2", "--num_inner_atoms", "1", "--json"]
    blocks = ["--block_size", "2", "--block_view", "channel", "--atom_decomposition", "linear"]
    facts = json.loads(run(capsys, tmp_path, *flags, *blocks))
    row = {row["path"]: row for row in facts["report"]}["mid_block.resnets.0.conv1"]
    assert row["view"] == "spatial + channel 2x2"
    assert (row["atoms"], row["parameters"]) == (2 + 4, 32 * 2 + 2 * 9 + 4 * 4)
    for setting, atoms in ((("--block_atoms", "3"), 3), (("--block_share", "0.001"), 2)):
        facts = json.loads(run(capsys, tmp_path, *flags, *blocks, *setting))
        row = {row["path"]: row for row in facts["report"]}["mid_block.resnets.0.conv1"]
        assert row["atoms"] == 2 + atoms


def test_the_weights_of_a_cifar_resnet_are_recognized(capsys, tmp_path):
    from safetensors.torch import save_file

    model = CifarResNet(blocks=2)
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "resnet14.safetensors")
    facts = json.loads(run(capsys, tmp_path / "resnet14.safetensors", "--json"))
    assert facts["layers"] == 13 and facts["component"] == "model"
    assert all(row["path"] != "linear" for row in facts["report"])


@pytest.mark.parametrize("name", ["sd15", "resnet-5", "some/model", "no/such/folder"])
def test_unknown_names_are_one_line_with_the_known_ones(refuse, name):
    assert not refuse(["inject", name], repr(name), "sd15-unet, sd21-unet, sdxl-unet, clip-l")
