"""Laws of conversion: exact where it says so, the best of its rank where not, sizes told before."""

import json

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file
from tiny.atoms import VARIANTS
from tiny.modules import copy_weights, same_weights

from sdatoms import AtomConfig, AtomError, inject, load_atoms
from sdatoms.adapters.export import (
    convert_to_diff,
    convert_to_lora,
    measure_diff,
    measure_lora,
)
from sdatoms.adapters.pipelines import measure_pipeline, save_pipeline
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["diffusers", "kohya"]
TARGETS = ("conv_in", "*.conv_shortcut", "*.downsamplers.*", "mid_block.attentions.*")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def make_pipe_atoms(make_unet, make_pipe, perturb):
    """Atoms of the UNet, or of the pipeline's text encoder too."""

    def make(variant="full", text=False):
        config = AtomConfig(variant, target_modules=TARGETS, block_size=2)
        injections = {"unet": perturb(inject(make_unet(), config), 0.1)}
        if text:
            config = AtomConfig("coefficients", target_modules="*fc?")
            injections["text_encoder"] = perturb(inject(make_pipe().text_encoder, config), 0.1)
        return pack_atoms(injections)

    return make


def baked_weights(make_unet, file):
    unet = make_unet()
    load_atoms(unet, file, component="unet")
    return copy_weights(unet)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_full_difference_is_exact(make_unet, make_pipe_atoms, variant):
    file, unet = make_pipe_atoms(variant), make_unet()
    made = convert_to_diff(file, unet)

    assert made.total_error == 0
    assert set(made.errors.values()) == {0.0}
    baked = baked_weights(make_unet, file)
    for layer in made.errors:
        path = layer.removeprefix("unet.")
        diff = made.tensors[f"lora_unet_{path.replace('.', '_')}.diff"]
        assert torch.equal(unet.get_submodule(path).weight + diff, baked[f"{path}.weight"]), path
    assert len(made.tensors) == len(file.layers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_lora_of_full_rank_loses_nothing(
    make_unet, run_unet, make_pipe_atoms, tolerance, variant
):
    file, unet, tuned = make_pipe_atoms(variant), make_unet(), make_unet()
    made = convert_to_lora(file, unet, 1000)
    assert made.total_error < 1e-5
    load_atoms(tuned, file)

    unet.load_lora_adapter(dict(made.tensors), prefix="unet")

    assert not torch.allclose(run_unet(make_unet()), run_unet(tuned), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(run_unet(unet), run_unet(tuned), **tolerance[torch.float32])


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("rank", [1, 4])
def test_a_lora_is_the_best_of_its_rank_and_says_what_it_loses(
    make_unet, make_pipe_atoms, names, rank
):
    file = make_pipe_atoms("full")
    made, exact = convert_to_lora(file, make_unet(), rank, names=names), {}
    diffs = convert_to_diff(file, make_unet())
    lost = whole = 0.0
    for layer, error in made.errors.items():
        prefix = "lora_unet_" + layer.removeprefix("unet.").replace(".", "_")
        delta = diffs.tensors[f"{prefix}.diff"].flatten(1)
        exact[layer] = torch.linalg.svdvals(delta)
        least = float(exact[layer][rank:].norm() / exact[layer].norm())
        assert error == pytest.approx(least, rel=1e-3, abs=1e-6), layer
        lost, whole = (
            lost + float(exact[layer][rank:].norm()) ** 2,
            whole + float(delta.norm()) ** 2,
        )
        up, down = (
            (f"{prefix}.lora_up.weight", f"{prefix}.lora_down.weight")
            if names == "kohya"
            else (f"{layer}.lora_B.weight", f"{layer}.lora_A.weight")
        )
        product = made.tensors[up].flatten(1) @ made.tensors[down].flatten(1)
        assert float((product - delta).norm() / delta.norm()) == pytest.approx(error, abs=1e-5)
    assert made.total_error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert 0 < convert_to_lora(file, make_unet(), 2 * rank).total_error < made.total_error < 1


@pytest.mark.parametrize("names", NAMES)
def test_a_pipeline_loads_the_lora_and_gives_the_sum(
    tmp_path, make_pipe, make_unet, make_pipe_atoms, run_unet, tolerance, names
):
    """From a file, as people do; both components, convolutions and linear layers."""
    file, pipe = make_pipe_atoms("full", text=True), make_pipe()
    made = convert_to_lora(file, pipe, 3, names=names)
    path = made.save(tmp_path / "dog.safetensors")
    expected = make_pipe()
    adapters = load_atoms(expected, file, name="it", strength=0)
    deltas = {layer: adapters.delta("it", layer) for layer in made.errors}
    for layer, delta in deltas.items():
        component, inner = layer.split(".", 1)
        u, s, v = torch.linalg.svd(delta.flatten(1), full_matrices=False)
        nearest = ((u[:, :3] * s[:3]) @ v[:3]).reshape(delta.shape)
        getattr(expected, component).get_submodule(inner).weight.data += nearest

    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)

    tokens = torch.arange(6)[None]
    torch.testing.assert_close(
        pipe.text_encoder(tokens).last_hidden_state,
        expected.text_encoder(tokens).last_hidden_state,
        **tolerance[torch.float32],
    )
    torch.testing.assert_close(
        run_unet(pipe.unet), run_unet(expected.unet), **tolerance[torch.float32]
    )


def test_kohya_names_go_through_diffusers_converter(make_unet, make_pipe_atoms):
    made = convert_to_lora(make_pipe_atoms("full"), make_unet(), 2, names="kohya")
    alphas = [t for key, t in made.tensors.items() if key.endswith(".alpha")]
    assert len(alphas) == len(made.errors)

    found, networks = _convert_non_diffusers_lora_to_diffusers(dict(made.tensors))

    assert len(found) == 2 * len(made.errors)
    assert set(networks.values()) == {2.0}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("rank", [3, 40, 1000])
def test_all_layers_have_one_rank_and_one_scale(make_unet, make_pipe_atoms, names, rank):
    """Programs that read a rank, or an alpha, of its own for every layer mistake the scale."""
    made = convert_to_lora(make_pipe_atoms("full"), make_unet(), rank, names=names)
    downs = [t for k, t in made.tensors.items() if ".lora_down" in k or ".lora_A" in k]
    alphas = [float(t) for key, t in made.tensors.items() if key.endswith(".alpha")]
    assert len({len(t) for t in downs}) == 1
    assert set(alphas) <= {float(len(downs[0]))}
    assert len(downs) == len(made.errors)


def test_progress_counts_layers(tmp_path, make_pipe, make_pipe_atoms):
    file, pipe, told = make_pipe_atoms("atoms", text=True), make_pipe(), []
    note = lambda done, total: told.append((done, total))
    for convert in (
        lambda: convert_to_diff(file, pipe, progress=note),
        lambda: convert_to_lora(file, pipe, 2, progress=note),
        lambda: save_pipeline(file, pipe, tmp_path / "baked", progress=note),
    ):
        told.clear()
        convert()
        assert told == [(n, len(file.layers)) for n in range(len(file.layers) + 1)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_are_known_before(make_pipe, make_pipe_atoms, dtype):
    file, pipe = make_pipe_atoms("full", text=True), make_pipe()
    assert (
        measure_diff(file, pipe, dtype=dtype) == convert_to_diff(file, pipe, dtype=dtype).num_bytes
    )
    for names in NAMES:
        for rank in (1, 7, 1000):
            wanted = {"names": names, "dtype": dtype}
            made = convert_to_lora(file, pipe, rank, **wanted)
            assert measure_lora(file, pipe, rank, **wanted) == made.num_bytes, (names, rank)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_baked_directory_is_plain_diffusers(tmp_path, make_pipe, make_pipe_atoms, dtype):
    file, pipe = make_pipe_atoms("full", text=True), make_pipe()
    before = {name: copy_weights(getattr(pipe, name)) for name in ("unet", "text_encoder", "vae")}
    size = measure_pipeline(pipe, dtype=dtype)

    made = save_pipeline(file, pipe, tmp_path / "baked", dtype=dtype)

    files = list((tmp_path / "baked").rglob("*.safetensors"))
    assert sum(t.numel() * t.element_size() for f in files for t in load_file(f).values()) == size
    assert not list(tmp_path.glob(".*"))
    tuned = make_pipe()
    load_atoms(tuned, file)
    again = StableDiffusionPipeline.from_pretrained(
        tmp_path / "baked", tokenizer=None, torch_dtype=dtype
    )
    for name, weights in before.items():
        own, wanted = getattr(again, name).state_dict(), getattr(tuned, name).state_dict()
        assert all(torch.equal(own[k], v.to(own[k].dtype)) for k, v in wanted.items()), name
        now = getattr(pipe, name).state_dict()
        assert all(torch.equal(now[k], v) for k, v in weights.items()), name
    if dtype == torch.float32:
        assert made.total_error < 1e-5
    else:
        layer = "down_blocks.0.downsamplers.0.conv"
        weight = pipe.unet.get_submodule(layer).weight.detach()
        delta = load_atoms(pipe, file, name="x", strength=0).delta("x", f"unet.{layer}")
        lost = ((weight + delta).to(dtype) - (weight + delta)).norm() / delta.norm()
        assert made.errors[f"unet.{layer}"] == pytest.approx(float(lost), rel=0.02)


def test_conversion_leaves_the_target_as_it_was(make_unet, make_pipe_atoms):
    unet = make_unet()
    load_atoms(unet, make_pipe_atoms("atoms"), name="style", strength=0.5)
    before = copy_weights(unet)
    own = convert_to_lora(make_pipe_atoms("full"), unet, 2)

    assert same_weights(unet, before)
    fresh = convert_to_lora(make_pipe_atoms("full"), make_unet(), 2)
    assert all(torch.equal(v, fresh.tensors[k]) for k, v in own.tensors.items())


def test_what_cannot_be_converted_is_refused(tmp_path, make_pipe, make_unet, make_pipe_atoms):
    file, pipe = make_pipe_atoms("atoms"), make_pipe()
    for call, sentence in [
        (lambda: convert_to_lora(file, pipe, 0), "rank is 0; it takes at least 1"),
        (lambda: convert_to_lora(file, pipe, 2, names="peft"), "'peft'; it takes diffusers | koh"),
        (lambda: convert_to_diff(file, torch.nn.Linear(2, 2)), "has no layer 'conv_in'"),
        (lambda: convert_to_lora(make_pipe_atoms(text=True), make_unet(), 2), "pass the pipeline"),
        (lambda: save_pipeline(file, pipe, tmp_path), "exists already"),
    ]:
        (tmp_path / "kept").touch()
        with pytest.raises(AtomError, match=sentence):
            call()
    odd = pack_atoms({"model": inject(make_unet())})
    with pytest.raises(AtomError, match="no names for the component 'model'"):
        convert_to_diff(odd, make_unet())
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_directory_is_complete_or_absent(tmp_path, make_pipe, make_pipe_atoms):
    pipe = make_pipe()
    before = copy_weights(pipe.unet)
    pipe.vae.register_to_config(bad=object())  # what diffusers cannot write as JSON

    with pytest.raises(TypeError):
        save_pipeline(make_pipe_atoms("atoms"), pipe, tmp_path / "baked")

    assert list(tmp_path.iterdir()) == []
    assert same_weights(pipe.unet, before)


def test_saved_files_hold_what_was_made(tmp_path, make_unet, make_pipe_atoms):
    made = convert_to_diff(make_pipe_atoms("atoms"), make_unet())
    path = made.save(tmp_path / "new" / "x.safetensors")
    assert all(torch.equal(t, made.tensors[k]) for k, t in load_file(path).items())
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    assert header["__metadata__"] == {"format": "pt"} | made.metadata


def test_a_pipeline_takes_no_folder_but_its_own(tmp_path, make_pipe, make_pipe_atoms, monkeypatch):
    precious = tmp_path / ".baked.tmp" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    (tmp_path / "baked").mkdir()
    save_pipeline(make_pipe_atoms("atoms"), make_pipe(), tmp_path / "baked")
    assert precious.read_text() == "mine" and (tmp_path / "baked" / "model_index.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".baked.tmp", "baked"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(AtomError, match="is the folder you are in; a pipeline takes a new one"):
        save_pipeline(make_pipe_atoms("atoms"), make_pipe(), ".")
