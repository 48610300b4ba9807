"""Laws of the atom file: what is saved comes back, under the agreed names."""

import hashlib
import inspect
import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny.atoms import VARIANTS, read_raw

import sdatoms
from sdatoms import AtomConfig, AtomError, inject, load_atoms, read_atoms, save_atoms
from sdatoms.files.writer import FileFacts, pack_atoms
from sdatoms.pictures import make_thumbnail

pytestmark = pytest.mark.usefixtures("one_thread")


KEY = "unet.conv_in.spatial.inner_atoms"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_base_with_the_file_is_the_injected_model(
    tmp_path, make_unet, run_unet, perturb, tolerance, variant
):
    unet, fresh = make_unet(), make_unet()
    injection = perturb(inject(unet, AtomConfig(variant)))
    path = save_atoms(tmp_path / "new" / "dog.bin", {"unet": injection}, trigger="sks dog")
    file = read_atoms(path)
    load_atoms(fresh, path)

    assert not torch.equal(run_unet(fresh), run_unet(make_unet()))
    torch.testing.assert_close(run_unet(fresh), run_unet(unet), **tolerance[torch.float32])
    assert file.components == ("unet",)
    assert file.num_parameters == injection.num_parameters
    assert file.trigger == "sks dog"
    assert file.config == injection.config
    for name, tensor in injection.state_dict().items():
        assert torch.equal(file.tensors[f"unet.{name}"], tensor), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_are_module_paths_with_the_agreed_tensors(make_unet, make_file, variant):
    path = make_file(variant=variant)
    tensors, metadata = load_file(path), read_raw(path)[0]["__metadata__"]
    modules = dict(make_unet().named_modules())
    layouts = json.loads(metadata["layers"])
    ends = set()
    for key, tensor in tensors.items():
        path, view, name = key.removeprefix("unet.").rsplit(".", 2)
        ends.add(f"{view}.{name}")
        layout = layouts[f"unet.{path}"]
        assert layout["kernel"] == list(modules[path].weight.shape[2:])
        assert layout["groups"] == 1
        if view == "block":
            assert layout["view"] in ("channel", "joint")
            assert len(layout["block"]) == 2
        assert tensor.dtype == torch.float32
    spatial = {"spatial.encoder", "spatial.inner_coefficients", "spatial.inner_atoms"}
    block = {"block.encoder", "block.atoms"}
    assert (
        ends
        == {
            "atoms": {"spatial.encoder", "spatial.atoms"},
            "overcomplete": spatial,
            "coefficients": block,
            "full": spatial | block,
        }[variant]
    )


def test_the_header_holds_what_readers_and_browsers_look_for(tmp_path, make_unet):
    unet = make_unet()
    injection = inject(unet, AtomConfig(seed=4))
    path = save_atoms(
        tmp_path / "dog.safetensors",
        {"unet": injection},
        trigger="sks dog",
        base_model="runwayml/sd",
        base_revision="abc",
        step=20,
        seed=3,
        title="A dog",
        description="Of mine",
        resolution=64,
        prediction_type="v_prediction",
        thumbnail="data:image/png;base64,AA==",
        metadata={"modelspec.author": "me"},
    )
    tensors, (header, data) = load_file(path), read_raw(path)
    metadata = header["__metadata__"]

    assert metadata.pop("modelspec.date")
    assert json.loads(metadata.pop("config")) == injection.config.to_dict()
    prints = json.loads(metadata.pop("base_fingerprints"))["unet"]
    assert (
        set(prints)
        == set(injection.layers)
        == {k.removeprefix("unet.") for k in json.loads(metadata.pop("layers"))}
    )
    assert prints["conv_in"][0] == pytest.approx(float(unet.conv_in.weight.detach().norm()), 1e-4)
    assert metadata == {
        "format": "sdatoms/1",
        "base_model": "runwayml/sd",
        "base_revision": "abc",
        "trigger": "sks dog",
        "step": "20",
        "seed": "3",
        "sdatoms_version": sdatoms.__version__,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/filter-atoms",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": "A dog",
        "modelspec.description": "Of mine",
        "modelspec.trigger_phrase": "sks dog",
        "modelspec.thumbnail": "data:image/png;base64,AA==",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "v",
        "modelspec.hash_sha256": "0x" + hashlib.sha256(data).hexdigest(),
        "modelspec.author": "me",
    }
    assert len(data) == sum(t.numel() for t in tensors.values()) * 4


def test_thumbnails_are_pictures_inside_a_uri(tmp_path, make_unet):
    injection = inject(make_unet())
    picture = make_thumbnail(Image.new("RGB", (300, 200), "red"))
    path = save_atoms(tmp_path / "dog.safetensors", {"unet": injection}, thumbnail=picture)
    assert read_atoms(path).metadata["modelspec.thumbnail"] == picture
    for bad in (
        "https://somewhere/else.png",
        "data:text/html;base64,AA==",
        'data:image/png;base64,AA=="><script>',
        "data:image/png;base64," + "A" * (1 << 20),
    ):
        with pytest.raises(AtomError, match=r"the thumbnail '.*is no 'data:image/jpeg;base64"):
            save_atoms(path, {"unet": injection}, thumbnail=bad)
    assert read_atoms(path).metadata["modelspec.thumbnail"] == picture


@pytest.mark.parametrize(
    ("width", "prediction", "name", "kind"),
    [
        (768, "epsilon", "stable-diffusion-v1", "epsilon"),
        (1024, "epsilon", "stable-diffusion-v2-512", "epsilon"),
        (1024, "v_prediction", "stable-diffusion-v2-768-v", "v"),
        (2048, "epsilon", "stable-diffusion-xl-v1-base", "epsilon"),
    ],
)
def test_model_browsers_are_told_the_family(make_unet, width, prediction, name, kind):
    unet = make_unet()
    unet.register_to_config(cross_attention_dim=width)
    injection = inject(unet, AtomConfig("atoms"))
    meta = pack_atoms(
        {"unet": injection}, FileFacts(base_model="b", prediction_type=prediction)
    ).metadata
    assert meta["modelspec.architecture"] == f"{name}/filter-atoms"
    assert meta["modelspec.prediction_type"] == kind
    assert (
        f"variant atoms, {injection.num_parameters:,} parameters on b"
        in (meta["modelspec.description"])
    )


def test_a_plain_reader_gets_the_same_delta(make_unet, make_file):
    """The page's formula in numpy, for one layer, from nothing but the file and the weight."""
    path = make_file()
    tensors = load_file(path)
    unet = make_unet()
    t = {k.rsplit(".", 1)[1]: v.numpy() for k, v in tensors.items() if ".conv_in." in k}
    weight = unet.conv_in.weight.detach().numpy()
    atoms = np.einsum("caj,ajp->cap", t["inner_coefficients"], t["inner_atoms"])
    flat = weight.reshape(*weight.shape[:2], -1)
    delta = np.einsum("oip,pa,iaq->oiq", flat, t["encoder"], atoms).reshape(weight.shape)

    ours = load_atoms(unet, path, name="dog").delta("dog", "conv_in")

    torch.testing.assert_close(ours, torch.from_numpy(delta), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_of_half_the_size_are_read_too(tmp_path, make_unet, run_unet, perturb, dtype):
    injection = perturb(inject(make_unet()))
    path = save_atoms(tmp_path / "half", {"unet": injection}, dtype=dtype)
    full, half = make_unet(), make_unet()
    load_atoms(full, pack_atoms({"unet": injection}))
    load_atoms(half, path)

    assert {t.dtype for t in read_atoms(path).tensors.values()} == {dtype}
    torch.testing.assert_close(run_unet(half), run_unet(full), rtol=0.05, atol=0.02)


def test_what_cannot_be_saved_is_refused(tmp_path, make_unet, perturb):
    unet = make_unet()
    injection = inject(unet)
    target = tmp_path / "dog.safetensors"

    def refuse(sentence, injections, **details):
        with pytest.raises(AtomError, match=sentence):
            save_atoms(target, injections, **details)
        assert not target.exists()

    refuse("nothing to save", {})
    refuse(r"'unet\.x' is not a plain name", {"unet.x": injection})
    refuse("cannot replace the header entry 'format'", {"unet": injection}, metadata={"format": ""})
    stray = {"unet.x.spatial.atoms": torch.zeros(1)}
    refuse("fits no tensor of these", {"unet": injection}, tensors=stray)
    broken = {KEY: torch.full_like(injection.state_dict()[KEY.removeprefix("unet.")], torch.inf)}
    refuse("NaN or infinite", {"unet": injection}, tensors=broken)
    sparse = inject(make_unet(), AtomConfig("atoms", "sparse"))
    refuse("atoms are linear and sparse; a file holds one", {"unet": injection, "model": sparse})
    injection.eject()
    refuse("were ejected", {"unet": injection})


def test_replacement_tensors_take_the_place_of_live_ones(make_unet, perturb):
    injection = inject(make_unet())
    state = {f"unet.{k}": v for k, v in injection.state_dict().items()}
    perturb(injection)
    file = pack_atoms({"unet": injection}, tensors=state)
    assert all(torch.equal(file.tensors[k], v) for k, v in state.items())


def test_save_atoms_takes_what_a_header_says_by_name():
    """Explicit names, all of `FileFacts` among them, so that a misspelt one is found at once."""
    taken = inspect.signature(save_atoms).parameters
    assert {field.name for field in fields(FileFacts)} < set(taken)
    assert not any(p.kind is p.VAR_KEYWORD for p in taken.values())
    with pytest.raises(TypeError, match="triger"):
        save_atoms("x", {}, triger="sks dog")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn, "x"])
def test_numbers_that_no_reader_takes_are_not_written(dtype, tmp_path, make_unet):
    injection = inject(make_unet(), AtomConfig("atoms"))
    with pytest.raises(AtomError, match="numbers are stored in float32, float16, bfloat16"):
        save_atoms(tmp_path / "a.safetensors", {"unet": injection}, dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_header_that_no_reader_takes_is_not_written(letter, tmp_path, make_unet):
    injection = inject(make_unet(), AtomConfig("atoms"))
    long = {"notes": letter * ((17 << 20) // len(letter.encode()))}
    with pytest.raises(AtomError, match=r"most of them in 'notes'; at most 16,777,216 are read"):
        save_atoms(tmp_path / "a.safetensors", {"unet": injection}, metadata=long)
    assert not list(tmp_path.iterdir())


def test_what_is_no_injection_is_not_saved(tmp_path, make_unet):
    unet = make_unet()
    injection = inject(unet, AtomConfig("atoms"))
    for given, said in (
        (injection, "it takes {'unet': injection}"),
        ({"unet": unet}, "the component 'unet' is a UNet2DConditionModel; inject.. gives its"),
        ({5: injection}, "the component name 5 is not a plain name"),
    ):
        with pytest.raises(AtomError, match=said):
            save_atoms(tmp_path / "a.safetensors", given)
