"""Laws of exports' names: each program finds every layer that the export says it finds."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from sdatoms import AtomConfig, AtomError, inject, load_atoms
from sdatoms.adapters.export import convert_to_diff, convert_to_lora
from sdatoms.adapters.names import CLIENTS, NAMES, find_client
from sdatoms.adapters.pipelines import save_pipeline
from sdatoms.files.writer import FileFacts, pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["sd", "sd2", "sdxl"]
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture
def make_whole(tiny_pipeline, perturb):
    """A pipeline and atoms of all its linear layers and convolutions."""

    def make(kind):
        pipe = DiffusionPipeline.from_pretrained(tiny_pipeline(kind))
        config = AtomConfig("coefficients", target_modules=("*",), block_size=2)
        modules = {n: getattr(pipe, n, None) for n in COMPONENTS}
        injections = {
            name: perturb(inject(module, config), 0.1)
            for name, module in modules.items()
            if module is not None
        }
        file = pack_atoms(injections, FileFacts("sks dog", title="A dog", resolution=512))
        for injection in injections.values():
            injection.eject()
        return pipe, file

    return make


def read_weights(pipe, layers):
    found = {}
    for layer in layers:
        component, path = layer.split(".", 1)
        module = getattr(pipe, component).get_submodule(path)
        found[layer] = getattr(module, "base_layer", module).weight.detach().clone()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["diffusers", "kohya"])
@pytest.mark.parametrize("rank", [2, 20, 40])
def test_diffusers_loses_what_is_said(tmp_path, make_whole, kind, names, rank):
    """Every layer, also at ranks above a layer's own: conv_in, embeddings, projections of text."""
    pipe, file = make_whole(kind)
    made = convert_to_lora(file, pipe, rank, names=names)
    deltas = load_deltas(file, pipe)
    before = read_weights(pipe, deltas)
    path = made.save(tmp_path / "it.safetensors")

    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    pipe.fuse_lora(components=list(file.components))

    after, lost, whole = read_weights(pipe, deltas), 0.0, 0.0
    for layer, delta in deltas.items():
        missed = float((after[layer] - before[layer] - delta).norm())
        assert missed / float(delta.norm()) == pytest.approx(made.errors[layer], abs=1e-5), layer
        lost, whole = lost + missed**2, whole + float(delta.norm()) ** 2
    assert (lost / whole) ** 0.5 == pytest.approx(made.total_error, abs=1e-5)
    assert made.reading(CLIENTS["diffusers"]).total_error == made.total_error


def load_deltas(file, pipe):
    adapters = load_atoms(pipe, file, name="it", strength=0)
    deltas = {layer: adapters.delta("it", layer) for layer in file.layers}
    adapters.clear()
    return deltas


@pytest.mark.parametrize("kind", KINDS)
def test_two_text_encoders_are_numbered(make_whole, kind):
    pipe, file = make_whole(kind)
    for made in (convert_to_lora(file, pipe, 2, names="kohya"), convert_to_diff(file, pipe)):
        starts = {key.split("_text")[0] for key in made.tensors if key.startswith("lora_te")}
        assert starts == ({"lora_te1", "lora_te2"} if kind == "sdxl" else {"lora_te"})
        inner = [k for k in made.tensors if k.startswith("lora_te") and "text_projection" not in k]
        assert all("_text_model_encoder_layers_" in key for key in inner)
        assert len({key.split(".")[0] for key in made.tensors}) == len(file.layers)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_a_program_skips_are_lost_whole(make_whole, kind):
    pipe, file = make_whole(kind)
    made, deltas = convert_to_lora(file, pipe, 4, names="kohya"), load_deltas(file, pipe)
    outer = {"unet.conv_in", "unet.conv_out"} & set(deltas)
    assert outer
    for program, layers in (("kohya", outer), ("a1111", set()), ("comfyui", set())):
        reading = made.reading(find_client(program))
        assert layers <= set(reading.skipped)
        squares = {k: float(d.norm()) ** 2 for k, d in deltas.items()}
        lost = sum(
            square * (1 if k in reading.skipped else made.errors[k] ** 2)
            for k, square in squares.items()
        )
        assert reading.total_error == pytest.approx((lost / sum(squares.values())) ** 0.5, rel=1e-4)
        assert (reading.total_error > made.total_error) == bool(reading.skipped)
    assert {r.program for r in made.readings} >= {"kohya's sd-scripts", "diffusers 0.32"}
    assert not convert_to_lora(file, pipe, 4).readings


def test_lycoris_takes_the_names_of_one_module(make_whole):
    pipe, file = make_whole("sd")
    with pytest.raises(AtomError, match="names of one module, and the file has unet and text_enc"):
        convert_to_diff(file, pipe, names="lycoris")
    with pytest.raises(AtomError, match=r"takes kohya \| lycoris"):
        convert_to_diff(file, pipe, names="diffusers")
    injection = inject(pipe.unet)
    unet = pack_atoms({"unet": injection})
    injection.eject()
    made = convert_to_diff(unet, pipe.unet, names="lycoris")
    assert set(made.tensors) == {
        f"lycoris_{layer.removeprefix('unet.').replace('.', '_')}.diff" for layer in unet.layers
    }


def test_every_program_has_names_and_forms():
    for name, client in CLIENTS.items():
        assert client.names in NAMES
        assert set(client.formats) <= {"lora", "diff", "pipeline"} and client.formats
        assert find_client(name) is client
    with pytest.raises(AtomError, match="'forge' is unknown; known are comfyui"):
        find_client("forge")


@pytest.mark.parametrize("kind", KINDS)
def test_exports_say_what_they_are(tmp_path, make_whole, kind):
    pipe, file = make_whole(kind)
    forms = {
        "lora": convert_to_lora(file, pipe, 3, names="kohya").save(tmp_path / "a.safetensors"),
        "lycoris": convert_to_diff(file, pipe).save(tmp_path / "b.safetensors"),
    }
    save_pipeline(file, pipe, tmp_path / "baked")
    forms[""] = next((tmp_path / "baked" / "unet").glob("*.safetensors"))
    base = file.metadata["modelspec.architecture"].partition("/")[0]
    for ending, path in forms.items():
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        assert header["format"] == "pt"
        assert header["trigger"] == header["modelspec.trigger_phrase"] == "sks dog"
        assert header["modelspec.title"] == "A dog"
        assert header["modelspec.resolution"] == "512x512"
        assert header["modelspec.architecture"] == (f"{base}/{ending}" if ending else base)
        assert "filter atoms" in header["modelspec.description"]
    assert load_file(forms["lora"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_baked_pipeline_has_the_names_that_older_readers_know(tmp_path, make_whole, kind):
    pipe, file = make_whole(kind)
    save_pipeline(file, pipe, tmp_path / "baked")
    load_atoms(pipe, file)
    again = DiffusionPipeline.from_pretrained(tmp_path / "baked")
    for component in set(COMPONENTS) & set(again.components):
        own = getattr(pipe, component).state_dict()
        found = getattr(again, component).state_dict()
        assert found.keys() == own.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in own.items())
        if component != "unet":
            stored = load_file(tmp_path / "baked" / component / "model.safetensors")
            outside = {key for key in stored if not key.startswith("text_model.")}
            assert outside <= {"text_projection.weight"}
            number = component.removeprefix("text_encoder")
            names = {p.name for p in (tmp_path / "baked" / f"tokenizer{number}").iterdir()}
            assert {"vocab.json", "merges.txt"} <= names
