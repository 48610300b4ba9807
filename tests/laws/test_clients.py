"""Other programs, each in an environment of its own, read what we write: the same numbers.

Programs come from the package index; PyTorch is the one at hand. Where the index cannot be reached
the test is skipped and says so. Programs that are not on the index (ComfyUI, AUTOMATIC1111's web
UI, kohya's scripts) are known by the names they look for: `adapters/test_names.py`.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from sdatoms import AtomConfig, inject, load_atoms
from sdatoms.adapters.export import convert_to_diff, convert_to_lora
from sdatoms.adapters.pipelines import save_pipeline
from sdatoms.files.writer import pack_atoms
from sdatoms.storage import find_assets

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

OLDER = ("transformers==4.54.1", "diffusers==0.32.2", "peft==0.14.0")
LYCORIS = ("lycoris-lora==4.1.3",)
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

READ_PIPELINE = """
import sys, torch, diffusers
from safetensors.torch import save_file
pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
out = {}
for name in ("unet", "text_encoder", "text_encoder_2"):
    if getattr(pipe, name, None) is not None:
        weights = getattr(pipe, name).state_dict()
        out |= {f"{name}.{key}": tensor.contiguous() for key, tensor in weights.items()}
if len(sys.argv) > 3:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    shown = pipe("a red apple", num_inference_steps=3, generator=generator, output_type="np")
    out["picture"] = torch.tensor(shown.images).contiguous()
save_file(out, sys.argv[2])
"""
READ_LORA = """
import sys, diffusers
from safetensors.torch import save_file
pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
parts = ("unet", "text_encoder", "text_encoder_2")
names = [name for name in parts if getattr(pipe, name, None) is not None]
folder, _, file = sys.argv[3].rpartition("/")
pipe.load_lora_weights(folder, weight_name=file)
pipe.fuse_lora(components=names)
out = {}
for name in names:
    for path, module in getattr(pipe, name).named_modules():
        weight = getattr(getattr(module, "base_layer", module), "weight", None)
        if weight is not None:
            out[f"{name}.{path}"] = weight.detach().clone()
save_file(out, sys.argv[2])
"""
READ_LYCORIS = """
import sys, diffusers
from lycoris import create_lycoris_from_weights
from safetensors.torch import save_file
unet = diffusers.UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder="unet")
network, _ = create_lycoris_from_weights(1.0, sys.argv[3], unet)
count = len(network.loras)
network.merge_to(1.0)
out = {f"unet.{k}": v.contiguous() for k, v in unet.state_dict().items()}
save_file(out, sys.argv[2], {"modules": str(count)})
"""


@pytest.fixture(scope="module")
def make_environment(tmp_path_factory):
    """A function from requirements to the interpreter that has them and the PyTorch at hand."""
    made = {}

    def make(requirements):
        if requirements in made:
            return made[requirements]
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, with_pip=True)
        python = str(folder / "bin" / "python")
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
        with open(f"{own.stdout.strip()}/zz_others.pth", "w") as file:
            file.write(sysconfig.get_path("purelib") + "\n")
        # Where the PyTorch at hand did not count, another one, of gigabytes, would be fetched.
        limits = folder / "limits.txt"
        limits.write_text(f"torch=={torch.__version__}\n")
        command = [python, "-m", "pip", "install", "-q", "-c", str(limits), *requirements]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            pytest.skip(f"pip cannot install {' '.join(requirements)}: {lines[:1] or done.stderr}")
        made[requirements] = python
        return python

    return make


def run_script(python, script, *words):
    """The tensors and header the script writes, and what it says on standard error."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-c", script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(words[1]), done.stderr


@pytest.fixture
def make_whole(tiny_pipeline, perturb, tmp_path):
    """A folder, its pipeline, and atoms of all its linear layers and convolutions."""

    def make(kind, components=COMPONENTS):
        pipe = DiffusionPipeline.from_pretrained(tiny_pipeline(kind))
        config = AtomConfig("coefficients", target_modules=("*",), block_size=2)
        injections = {
            name: perturb(inject(getattr(pipe, name), config), 0.1)
            for name in components
            if getattr(pipe, name, None) is not None
        }
        file = pack_atoms(injections)
        for injection in injections.values():
            injection.eject()
        return pipe, file

    return make


def drop_level(weights):
    """Names as transformers 5 has them; it drops a level that older ones keep."""
    return {k.replace("text_encoder.text_model.", "text_encoder."): v for k, v in weights.items()}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_older_diffusers_opens_our_pipelines(make_environment, make_whole, tmp_path, kind):
    python = make_environment(OLDER)
    pipe, file = make_whole(kind)
    save_pipeline(file, pipe, tmp_path / "baked")
    found, said = run_script(python, READ_PIPELINE, tmp_path / "baked", tmp_path / "out")
    assert "newly initialized" not in said
    load_atoms(pipe, file)
    found = drop_level(found)
    for component in file.components:
        for key, tensor in getattr(pipe, component).state_dict().items():
            if "position_ids" not in key:
                assert torch.equal(found[f"{component}.{key}"], tensor), key


def test_older_diffusers_paints_with_the_bundled_base(make_environment, tmp_path):
    python, base = make_environment(OLDER), find_assets() / "emoji-sd"
    found, said = run_script(python, READ_PIPELINE, base, tmp_path / "old", "paint")
    assert "newly initialized" not in said
    here, _ = run_script(sys.executable, READ_PIPELINE, base, tmp_path / "new", "paint")
    torch.testing.assert_close(found["picture"], here["picture"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("names", ["diffusers", "kohya"])
@pytest.mark.parametrize("rank", [2, 40])
def test_older_diffusers_loses_what_is_said(
    make_environment, make_whole, tmp_path, kind, names, rank
):
    python = make_environment(OLDER)
    pipe, file = make_whole(kind)
    save_pipeline(make_fresh(pipe), pipe, tmp_path / "base")
    made = convert_to_lora(file, pipe, rank, names=names)
    path = made.save(tmp_path / "it.safetensors")
    found, _ = run_script(python, READ_LORA, tmp_path / "base", tmp_path / "out", path)
    found, lost, whole, skipped = drop_level(found), 0.0, 0.0, set()
    adapters = load_atoms(pipe, file, name="it", strength=0)
    for layer in file.layers:
        component, inner = layer.split(".", 1)
        delta = adapters.delta("it", layer)
        base = getattr(pipe, component).get_submodule(inner).weight.detach()
        lost += float((found[layer] - base - delta).norm()) ** 2
        whole += float(delta.norm()) ** 2
        skipped |= {layer} if torch.equal(found[layer], base) else set()
    readings = {reading.program: reading for reading in made.readings}
    old = readings.get("diffusers 0.32")
    assert skipped == set(old.skipped if old else ())
    stated = old.total_error if old else made.total_error
    assert (lost / whole) ** 0.5 == pytest.approx(stated, abs=1e-4)


def make_fresh(pipe):
    """Fresh atoms: the base as we save it."""
    injection = inject(pipe.unet, AtomConfig("atoms", target_modules=("conv_in",)))
    fresh = pack_atoms({"unet": injection})
    injection.eject()
    return fresh


@pytest.mark.parametrize("form", ["diff", "lora"])
def test_lycoris_finds_every_layer(make_environment, make_whole, tiny_pipeline, tmp_path, form):
    python = make_environment(LYCORIS)
    pipe, file = make_whole("sd", ("unet",))
    if form == "diff":
        made = convert_to_diff(file, pipe, names="lycoris")
    else:
        made = convert_to_lora(file, pipe, 1000, names="lycoris")
    path = made.save(tmp_path / "it.safetensors")
    out = tmp_path / "out"
    found, _ = run_script(python, READ_LYCORIS, tiny_pipeline("sd"), out, path)
    size = int.from_bytes(out.read_bytes()[:8], "little")
    header = json.loads(out.read_bytes()[8 : 8 + size])["__metadata__"]
    assert header["modules"] == str(len(file.layers))
    load_atoms(pipe, file)
    for key, tensor in pipe.unet.state_dict().items():
        torch.testing.assert_close(found[f"unet.{key}"], tensor, rtol=1e-4, atol=1e-5)
