"""`sdatoms inspect`, `compose` and `export`: what they print, what they write, how they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tiny.loras import save_lora
from tiny.modules import same_weights
from tiny.pipelines import build_pipeline

from sdatoms import compose, load_atoms, read_atoms
from sdatoms.adapters.export import convert_to_lora
from sdatoms.cli.main import main
from sdatoms.diffusion.picture_file import read_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

TARGETS = ("conv_in", "*.conv_shortcut", "mid_block.attentions.*")


@pytest.fixture
def run(capsys):
    """Run a command; returns its lines."""

    def call(*words):
        main([str(word) for word in words])
        return capsys.readouterr().out.splitlines()

    return call


def test_inspect_accounts_for_every_byte(run, make_file):
    path = make_file(variant="full", num_inner_atoms=2)
    (line,) = run("inspect", path, "--json")
    facts, file = json.loads(line), read_atoms(path)
    rows = facts["report"]

    assert facts["bytes"] == path.stat().st_size
    assert facts["header_bytes"] == 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert sum(row["bytes"] for row in rows) + facts["header_bytes"] == facts["bytes"]
    assert sum(row["parameters"] for row in rows) == facts["parameters"] == file.num_parameters
    assert facts["layers"] == len({row["layer"] for row in rows}) == len(file.layers)
    conv = {row["view"]: row for row in rows if row["layer"] == "unet.mid_block.resnets.0.conv1"}
    assert set(conv) == {"spatial", "joint 2x2"}
    assert conv["spatial"]["atoms"] == 9
    assert conv["spatial"]["parameters"] == 32 * 9 * 2 + 9 * 2 * 9


def test_inspect_tells_the_relative_change(run, make_unet, make_file):
    unet = make_unet()
    for variant, tolerance in (("atoms", 1e-3), ("coefficients", 1e-3), ("overcomplete", 0.2)):
        path = make_file(variant, variant=variant, size=0.1, num_inner_atoms=2)
        adapters = load_atoms(unet, path, strength=0)
        for row in json.loads(run("inspect", path, "--json")[0])["report"]:
            inner = row["layer"].removeprefix("unet.")
            weight = unet.get_submodule(inner).weight.detach()
            change = float(adapters.delta(variant, inner).norm() / weight.norm())
            assert row["change"] == pytest.approx(change, rel=tolerance), row


def test_inspect_prints_a_table_that_ends_in_the_file_size(run, make_file):
    path = make_file(variant="atoms")
    lines = run("inspect", path)
    total = lines[-1].split()
    assert total[:2] == ["in", "all"]
    assert total[-1] == f"{path.stat().st_size:,}"
    table = lines[next(k for k, line in enumerate(lines) if line.startswith("layer ")) + 1 : -2]
    assert len(table) == len(read_atoms(path).layers)
    assert all("spatial" in line and "%" in line for line in table)


def test_sums_are_inspected_too(run, tmp_path, make_file):
    one, two = make_file("one"), make_file("two", variant="coefficients", block_size=2, seed=2)
    other = make_file("three", variant="coefficients", block_size=3, seed=3)
    path = tmp_path / "sum.safetensors"
    run("compose", one, two, other, "--output", path)
    facts = json.loads(run("inspect", path, "--json")[0])
    assert sum(row["bytes"] for row in facts["report"]) + facts["header_bytes"] == facts["bytes"]
    assert facts["metadata"]["trigger"].count(",") == 2


def test_compose_writes_the_sum_and_says_its_size(run, tmp_path, make_file):
    one, two = make_file("one", variant="atoms"), make_file("two", seed=2, variant="atoms")
    out = tmp_path / "new" / "sum.safetensors"
    lines = run("compose", f"{one}=0.5", two, "--output", out, "--title", "Both")

    expected, found = compose([read_atoms(one), read_atoms(two)], [0.5, 1]), read_atoms(out)
    assert all(torch.equal(t, expected.tensors[k]) for k, t in found.tensors.items())
    assert found.metadata["modelspec.title"] == "Both"
    assert f"{one} at 0.5: " in lines[0]
    assert f"{one.stat().st_size:,} bytes" in lines[0]
    assert lines[-1].startswith(f"{out}: {found.num_parameters:,} parameters, ")
    assert f"{out.stat().st_size:,} bytes" in lines[-1]


def test_compose_refuses_in_one_line(refuse, tmp_path, make_file):
    one, out = make_file("one"), tmp_path / "out.safetensors"
    for words, sentence in [
        ((f"{one}=much", "--output", out), "ends in 'much', which is no strength"),
        ((tmp_path / "none", "--output", out), "there is no file"),
        ((one,), "--output"),
        ((f"{one}=nan", "--output", out), "takes a finite number"),
        ((one, "--output", one / "below"), "cannot be written"),
    ]:
        refuse(["compose", *words], sentence)
        assert not out.exists()


@pytest.fixture
def base(tmp_path, make_pipe):
    folder = tmp_path / "base"
    make_pipe().save_pretrained(folder)
    return folder


def test_export_writes_what_it_says(run, tmp_path, make_pipe, make_file, base):
    path = make_file(variant="full", target_modules=TARGETS, block_size=2)
    common = ("export", path, "--pretrained_model_name_or_path", base)
    lora = tmp_path / "lora.safetensors"
    lines = run(*common, "--format", "lora", "--rank", 2, "--output", lora)

    expected = convert_to_lora(read_atoms(path), make_pipe(), 2)
    tensors = load_file(lora)
    assert set(tensors) == set(expected.tensors)
    assert lines[0].startswith(f"{lora} takes {expected.num_bytes:,} bytes of tensors")
    assert f"{path.stat().st_size:,} bytes" in lines[0]
    assert f"{expected.total_error:.3%} in all" in lines[1]
    worst = max(expected.errors, key=expected.errors.get)
    assert lines[2].split() == [f"{expected.errors[worst]:.3%}", worst]

    kohya = tmp_path / "kohya.safetensors"
    run(*common, "--format", "lora", "--rank", 2, "--names", "kohya", "--output", kohya)
    assert "lora_unet_conv_in.lora_up.weight" in load_file(kohya)

    diff = tmp_path / "diff.safetensors"
    lines = run(*common, "--format", "diff", "--dtype", "float16", "--output", diff)
    size = sum(t.numel() * 2 for t in load_file(diff).values())
    assert f" takes {size:,} bytes" in lines[0]

    lines = run(*common, "--format", "pipeline", "--output", tmp_path / "baked")
    assert "0.000% in all" in lines[1]
    baked = StableDiffusionPipeline.from_pretrained(tmp_path / "baked")
    pipe = make_pipe()
    load_atoms(pipe, path)
    weights = pipe.unet.state_dict()
    assert same_weights(baked.unet, weights)
    assert baked.tokenizer is not None


@pytest.mark.parametrize("client", ["comfyui", "a1111", "kohya", "diffusers", "lycoris"])
def test_export_chooses_by_the_program(run, tmp_path, make_pipe, make_file, base, client):
    path, out = make_file(variant="full", target_modules=TARGETS), tmp_path / "out.safetensors"
    lines = run(
        "export", path, "--pretrained_model_name_or_path", base, "--for", client, "--output", out
    )
    keys = list(load_file(out))
    start = {"diffusers": "unet.", "lycoris": "lycoris_"}.get(client, "lora_unet_")
    assert all(key.startswith(start) for key in keys)
    assert any(key.endswith(".diff") for key in keys) == (client == "lycoris")
    total = float(lines[1].split(":")[1].split("%")[0])
    skips = [line for line in lines if " skips " in line]
    if client == "kohya":
        (line,) = skips
        assert "kohya's sd-scripts skips 1 of " in line and "unet.conv_in first" in line
        assert f"{total:.3f}% lost there" in line
        assert lines[2].split() == ["100.000%", "unet.conv_in"]
    else:
        assert not skips


def test_export_refuses_in_one_line(refuse, tmp_path, make_file, base):
    path, out = make_file(variant="atoms", target_modules=TARGETS[:1]), tmp_path / "out"
    common = ("export", path, "--output", out, "--pretrained_model_name_or_path", base)
    for words, sentence in [
        (("--format", "lora"), "--rank is missing"),
        (("--format", "lora", "--rank", 0), "rank is 0"),
        (("--format", "diff", "--rank", 4), "--rank came with --format diff"),
        (("--format", "pipeline", "--names", "kohya"), "--names came with --format pipeline"),
        (("--format", "ckpt"), "ckpt"),
        ((), "--format is missing; or say --for comfyui"),
        (("--for", "forge"), "forge"),
        (("--for", "kohya", "--format", "diff"), "kohya's sd-scripts opens lora and pipeline"),
        (("--for", "a1111", "--names", "diffusers"), "takes the names of kohya"),
        (("--for", "lycoris", "--rank", 3), "--rank came with --format diff"),
    ]:
        refuse([*common, *words], sentence)
    elsewhere = ("export", path, "--output", base, "--pretrained_model_name_or_path", base)
    refuse([*elsewhere, "--format", "pipeline"], "exists already")
    missing = ("export", path, "--output", out, "--pretrained_model_name_or_path", tmp_path / "no")
    refuse([*missing, "--format", "diff"], "cannot be opened")
    assert not out.exists()


def test_a_lora_is_inspected_and_painted_with(run, tmp_path, tiny_pipeline):
    """Beside atoms, by the same flag; the strength over the steps is in the picture."""
    base = str(tiny_pipeline())
    lora = save_lora(tmp_path / "ink.safetensors", build_pipeline(), metadata={"trigger": "sks"})
    facts = json.loads(run("inspect", lora, "--json")[0])
    assert (facts["kind"], facts["rank"], facts["names"]) == ("LoRA", 3, "kohya")
    assert facts["trigger"] == "sks" and f"{'rank':<36} 3" in run("inspect", lora)
    command = ["generate", "cat", "--pretrained_model_name_or_path", base, "--embed_atoms"]
    command += ["--num_inference_steps", "2", "--output_dir", tmp_path / "out"]
    (plain,) = run(*command)
    words = ["--atoms", f"{lora}=0.7,up=0.2", "--strength_schedule"]
    (off,), (full,) = run(*command, *words, "0"), run(*command, *words, "ink=0 until 0.5, then 1")
    shown = [np.asarray(Image.open(path)) for path in (plain, off, full)]
    assert np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[0], shown[2])
    (used,) = read_recipe(Path(full)).adapters
    assert (used.sha256, used.trigger) == (facts["sha256"], "sks")
    assert used.strength == {"*": 0.7, "up": 0.2} and used.schedule == "0 until 0.5, then 1"


@pytest.mark.parametrize(
    ("atoms", "schedule", "said"),
    [
        ("=0.5,mid", "1", "holds 'mid'"),
        ("=midd=1", "1", "names a block 'midd'"),
        ("=mid=1,down.7=1", "1", "names 'down.7', which none of its"),
        ("", "1 until 2", "ends rise"),
        ("", "cat=1", "--strength_schedule is for 'cat'; --atoms names dog"),
    ],
)
def test_strengths_and_schedules_are_refused_by_name(
    refuse, make_file, tiny_pipeline, tmp_path, atoms, schedule, said
):
    command = ["generate", "cat", "--pretrained_model_name_or_path", tiny_pipeline()]
    command += ["--output_dir", tmp_path / "out", "--strength_schedule", schedule]
    command += ["--dtype", "float32", "--offload", "none"]
    refuse([*command, "--atoms", f"{make_file()}{atoms}"], said)
    assert not (tmp_path / "out").exists()
