"""Atoms beside other libraries: diffusers' pipelines and LoRA loader, offload, accelerate."""

import sys
from socket import socket

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from accelerate.state import AcceleratorState
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from PIL import Image
from tiny.modules import copy_weights
from tiny.scripts import call_script

from sdatoms import AtomConfig, AtomError, inject, load_atoms, save_atoms


@pytest.fixture
def folder(tiny_pipeline):
    return tiny_pipeline()


@pytest.fixture
def pipe(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def atoms(tmp_path, folder, perturb):
    """A file with atoms in every kind of layer of the UNet."""
    unet = StableDiffusionPipeline.from_pretrained(folder).unet
    injection = perturb(inject(unet, AtomConfig(variant="full", block_size=2)), 0.2)
    return save_atoms(tmp_path / "dog.safetensors", {"unet": injection}, trigger="sks dog")


def paint(pipe, **more):
    generator = torch.Generator().manual_seed(0)
    given = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"} | more
    return np.asarray(pipe("a sks dog", generator=generator, **given).images)


def save_lora(tmp_path, folder, targets=("to_q", "to_v", "conv1")):
    """A LoRA with weights that do something, in diffusers' format."""
    unet = StableDiffusionPipeline.from_pretrained(folder).unet
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=list(targets)), unet)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    layers = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    return tmp_path / "lora"


def test_a_lora_loaded_beside_baked_atoms_adds_to_them(pipe, folder, atoms, tmp_path):
    """Atoms then LoRA, LoRA then atoms: the same picture, and neither one's alone."""
    lora = save_lora(tmp_path, folder)
    base = paint(pipe)
    adapters = load_atoms(pipe, atoms)
    with_atoms = paint(pipe)
    pipe.load_lora_weights(lora)
    both = paint(pipe)
    assert adapters.names == ("dog",) and adapters.verify_base()

    other = StableDiffusionPipeline.from_pretrained(folder)
    other.set_progress_bar_config(disable=True)
    other.load_lora_weights(lora)
    with_lora = paint(other)
    load_atoms(other, atoms)
    np.testing.assert_allclose(paint(other), both, atol=1e-5)
    for alone in (base, with_atoms, with_lora):
        assert np.abs(alone - both).max() > 1e-3

    adapters.clear()
    np.testing.assert_allclose(paint(pipe), with_lora, atol=1e-5)
    pipe.unload_lora_weights()
    assert np.array_equal(paint(pipe), base)


def test_a_fused_lora_is_noticed_and_nothing_is_restored_over_it(pipe, folder, atoms, tmp_path):
    """`fuse_lora` writes into the baked weights: refused until `unfuse_lora`."""
    lora = save_lora(tmp_path, folder)
    adapters = load_atoms(pipe, atoms)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    fused = copy_weights(pipe.unet)
    with pytest.raises(AtomError, match="unfuse_lora"):
        adapters.clear()
    now = pipe.unet.state_dict()
    assert all(torch.equal(now[k], v) for k, v in fused.items())


@pytest.mark.parametrize("kind", ["img2img", "inpaint", "controlnet"])
def test_pipelines_that_share_the_unet_share_its_adapters(pipe, atoms, kind, folder):
    """One set for all pipelines of a UNet: strength and clear through either reach both."""
    picture = Image.new("RGB", (16, 16), (90, 120, 40))
    more = {"image": picture}
    if kind == "img2img":
        other, more["strength"] = StableDiffusionImg2ImgPipeline.from_pipe(pipe), 0.9
    elif kind == "inpaint":
        other = StableDiffusionInpaintPipeline.from_pipe(pipe)
        more |= {"mask_image": Image.new("L", (16, 16), 255), "height": 16, "width": 16}
    else:
        torch.manual_seed(0)
        width = (16, 32)  # one halving, as this tiny autoencoder has
        control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=width)
        other = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=control)
    other.set_progress_bar_config(disable=True)
    base = paint(other, **more)
    adapters = load_atoms(pipe, atoms)
    tuned = paint(other, **more)
    assert np.abs(tuned - base).max() > 1e-3
    again = load_atoms(other, atoms, name="again", strength=0.0)
    assert again.names == adapters.names == ("dog", "again")
    again.clear()
    assert adapters.names == () and np.array_equal(paint(other, **more), base)


def test_a_baked_pipeline_is_saved_as_a_plain_one(pipe, atoms, tmp_path):
    load_atoms(pipe, atoms)
    tuned = paint(pipe)
    pipe.save_pretrained(tmp_path / "baked")
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "baked")
    plain.set_progress_bar_config(disable=True)
    assert np.array_equal(paint(plain), tuned)


def test_model_offload_keeps_adapters(pipe, atoms):
    adapters = load_atoms(pipe, atoms)
    tuned = paint(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(paint(pipe), tuned)
    adapters.set_strengths({"dog": 0.5})
    half = paint(pipe)
    assert np.abs(half - tuned).max() > 1e-3
    adapters.clear()
    assert adapters.verify_base()


def test_sequential_offload_keeps_adapters_and_takes_changes(pipe, atoms):
    """Its weights lie on the meta device between calls; what they are copied from is written to."""
    base = paint(pipe)
    adapters = load_atoms(pipe, atoms)
    tuned = paint(pipe)
    cpu_offload(pipe.unet, torch.device("cpu"))  # what enable_sequential_cpu_offload does to it
    assert np.array_equal(paint(pipe), tuned)
    adapters.set_strengths({"dog": 0.5})
    assert not np.array_equal(paint(pipe), tuned)
    adapters.set_strengths({"dog": 1.0})
    assert np.array_equal(paint(pipe), tuned)
    remove_hook_from_submodules(pipe.unet)
    assert np.array_equal(paint(pipe), tuned)
    adapters.clear()
    assert np.array_equal(paint(pipe), base)


TWO_PROCESSES = """
import sys
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from sdatoms import AtomConfig, inject

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
unet = UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder="unet")
injection = inject(unet, AtomConfig(variant="overcomplete"))
optimizer = torch.optim.AdamW(injection.parameters(), lr=1e-2)
unet, optimizer = accelerator.prepare(unet, optimizer)
generator = torch.Generator().manual_seed(1)
rows = torch.randn(4, 4, 8, 8, generator=generator)
words = torch.randn(4, 3, 16, generator=generator)
times = torch.randint(1000, (4,), generator=generator)
share = 4 // accelerator.num_processes
mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
for _ in range(3):
    predicted = unet(rows[mine], times[mine], words[mine]).sample
    accelerator.backward((predicted - rows[mine]).square().mean())
    optimizer.step()
    optimizer.zero_grad()
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    torch.save(injection.state_dict(), sys.argv[2])
"""


JOINED = """
import os, sys
sys.path[:] = {path}
from tiny.runs import join_two_processes
join_two_processes({rank}, {port})
sys.argv[1:] = {words}
exec(open({script}).read(), {{"__name__": "__main__"}})
torch = sys.modules["torch"]
torch.distributed.destroy_process_group()
os._exit(0)
"""


def test_two_processes_train_as_one(folder, tmp_path, monkeypatch, forge):
    """Averaged gradients of two halves are the gradient of the whole batch."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(folder), str(tmp_path / "2.pt")]
    given = {"path": sys.path, "port": port, "words": words, "script": repr(str(script))}
    started = [
        forge.start(tmp_path, [], err=f"{rank}.txt", code=JOINED.format(rank=rank, **given))
        for rank in range(2)
    ]
    ended = [forge.ask(process) for process in started]
    assert ended == [0, 0], "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    call_script(monkeypatch, script, folder, tmp_path / "1.pt")
    AcceleratorState._reset_state(reset_partial_state=True)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert one.keys() == two.keys()
    moved = [name for name in one if "inner_atoms" in name]
    assert moved and all(one[name].abs().max() > 1e-3 for name in moved)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3)
