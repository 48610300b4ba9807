"""The extensions inside the programs themselves: what they bake is what `load_atoms` bakes.

ComfyUI, AUTOMATIC1111's web UI and Forge are on no package index. Each is looked for where
`SDATOMS_COMFYUI`, `SDATOMS_WEBUI` and `SDATOMS_FORGE` say, with its own environment in `venv/`;
where that is not set, its tests are skipped. The program starts as it does for people, on folders
of models made here, and paints; only its pages are not opened.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file
from tiny.atoms import perturb
from tiny.single_files import collect_tensors, read_config, save_single
from transformers import CLIPTextConfig, CLIPTextModel

from sdatoms import AtomConfig, inject, load_atoms, save_atoms
from sdatoms.models.pipeline_folder import write_known_names
from sdatoms.models.vocabulary import build_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

APP = Path(__file__).parents[2] / "app"
PARTS = ("unet", "text_encoder")
NARROW = {
    "block_out_channels": [320, 320],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}
"""A UNet of two levels; the programs know the rest of Stable Diffusion 1.5 by its numbers."""
CONFIGS = {
    "dog": {"unet": AtomConfig("full")},
    "cat": {
        "unet": AtomConfig("coefficients", block_form="product"),
        "text_encoder": AtomConfig("coefficients"),
    },
    "owl": {
        "unet": AtomConfig("coefficients", block_form="shared", block_factors="each"),
        "text_encoder": AtomConfig("coefficients", block_form="shared"),
    },
}


class Base:
    """A base and two atom files on disk, and what they give together."""

    def __init__(self, folder):
        torch.manual_seed(0)
        modules = {
            "unet": UNet2DConditionModel.from_config(read_config("sd1", "unet") | NARROW),
            "vae": AutoencoderKL.from_config(read_config("sd1", "vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**read_config("sd1", "text_encoder"))),
        }
        for parameter in modules["text_encoder"].parameters():
            if parameter.dim() < 2:  # a mean of zero, by which the web UI divides
                parameter.data += 0.05 * torch.randn(parameter.shape)
        self.path = save_single(folder / "base.safetensors", "sd1", modules, dtype=torch.float16)
        self.modules = {name: modules[name].half().float() for name in PARTS}
        self.pipe = StableDiffusionPipeline(
            **self.modules,
            vae=None,
            tokenizer=None,
            scheduler=DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.files = {name: self.train(folder, name) for name in CONFIGS}

    def train(self, folder, name):
        injections = {
            part: perturb(inject(self.modules[part], config), 0.02, len(name + part))
            for part, config in CONFIGS[name].items()
        }
        path = save_atoms(folder / f"{name}.safetensors", injections, trigger=f"sks {name}")
        for injection in injections.values():
            injection.eject()
        return path

    def bake(self, **strengths):
        """The weights with files at strengths, by the names of the single file."""
        for name, strength in strengths.items():
            adapters = load_atoms(self.pipe, self.files[name], name=name, strength=strength)
        parts = {name: self.modules[name] for name in PARTS}
        baked = {k: v.clone() for k, v in collect_tensors("sd1", parts).items()}
        if strengths:
            adapters.clear()
        return baked


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Base(tmp_path_factory.mktemp("base"))


def find_program(variable):
    """A program's folder and interpreter."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} does not say where the program is")
    root = Path(os.environ[variable]).absolute()
    python = root / "venv" / "bin" / "python"
    assert python.is_file(), f"there is no environment {python}"
    return root, python


def run_program(python, root, script, *words):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-c", script, *map(str, words)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def compare(found, expected, prefixes):
    """Weights of a program, by its names, and ours, by the single file's."""
    count = 0
    for name, weight in expected.items():
        (old, new) = next((pair for pair in prefixes if name.startswith(pair[0])), ("", ""))
        key = new + name[len(old) :]
        if old and key in found:
            rounded = found[key].dtype == torch.float16
            close = {"rtol": 2e-3, "atol": 1e-4} if rounded else {"rtol": 1e-4, "atol": 2e-5}
            torch.testing.assert_close(found[key].float(), weight, **close, msg=name)
            count += 1
    assert count > 200, count


COMFYUI = """
import gc, inspect, json, sys
root, folder, page = sys.argv[1:]
sys.path.insert(0, root)
sys.argv = ["main.py", "--cpu", "--base-directory", folder, "--disable-api-nodes",
            "--database-url", "sqlite:///:memory:"]
import main
loop, server, _ = main.start_comfyui()
import comfy.model_management as memory
import execution, nodes
from safetensors.torch import save_file

def read_page(changes):
    # A workflow as pages save it, in the form that the queue takes.
    with open(page) as file:
        page_of = json.load(file)
    links = {link[0]: [str(link[1]), link[2]] for link in page_of["links"]}
    prompt = {}
    for node in page_of["nodes"]:
        kind, values = nodes.NODE_CLASS_MAPPINGS[node["type"]], iter(node["widgets_values"])
        inputs = {i["name"]: links[i["link"]] for i in node["inputs"]}
        taken = kind.INPUT_TYPES()
        for name, entry in (taken["required"] | taken.get("optional", {})).items():
            if name not in inputs:
                inputs[name] = next(values)
                if len(entry) > 1 and entry[1].get("control_after_generate"):
                    next(values)
        assert next(values, None) is None
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    for kind, inputs in changes.items():
        (node,) = [n for n in prompt.values() if n["class_type"] == kind]
        node["inputs"] |= inputs
    return prompt

kept = {"cache_args": {"lru": 0, "ram": 0}}  # of newer versions
if "cache_args" not in inspect.signature(execution.PromptExecutor).parameters:
    kept = {}
run = execution.PromptExecutor(server, **kept)

def paint(strength, file):
    small = {"width": 64, "height": 64}
    prompt = read_page({
        "CheckpointLoaderSimple": {"ckpt_name": "base.safetensors"}, "EmptyLatentImage": small,
        "KSampler": {"steps": 2}, "SaveImage": {"filename_prefix": f"{file} {strength}"},
        "SdatomsLoadFilterAtoms": {"file": f"{file}.safetensors", "strength": strength}})
    valid = loop.run_until_complete(execution.validate_prompt("it", prompt, None))
    assert valid[0], valid
    run.execute(prompt, "it", {}, valid[2])
    assert run.success, run.status_messages

for strength in (0.0, 0.8):
    paint(strength, "cat")
del run
memory.unload_all_models()
gc.collect()

loader = nodes.NODE_CLASS_MAPPINGS["CheckpointLoaderSimple"]()
model, clip, _ = loader.load_checkpoint("base.safetensors")

def read_weights(model, clip):
    memory.load_models_gpu([model, clip.patcher])
    held = model.model.state_dict() | clip.cond_stage_model.state_dict()
    return {k: v.clone().contiguous() for k, v in held.items()}

node = nodes.NODE_CLASS_MAPPINGS["SdatomsLoadFilterAtoms"]()
save_file(read_weights(model, clip), folder + "/plain")
one = node.load(model, "cat.safetensors", 0.8, clip)
both = node.load(one[0], "dog.safetensors", -0.5, one[1])
save_file(read_weights(*both), folder + "/both")
third = node.load(both[0], "owl.safetensors", 0.6, both[1])
save_file(read_weights(*third), folder + "/third")
save_file(read_weights(model, clip), folder + "/after")
"""


@pytest.mark.parametrize("form", ["folder", "file"])
def test_comfyui_bakes_and_paints(base, tmp_path, form):
    root, python = find_program("SDATOMS_COMFYUI")
    for name in ("custom_nodes", "models/loras", "models/checkpoints", "output", "input", "user"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models/checkpoints/base.safetensors").symlink_to(base.path)
    for path in base.files.values():
        (tmp_path / "models/loras" / path.name).symlink_to(path)
    nodes = tmp_path / "custom_nodes"
    if form == "folder":
        shutil.copytree(APP / "comfyui", nodes / "sdatoms")
    else:
        shutil.copy(APP / "comfyui" / "sdatoms_comfyui.py", nodes)
    page = APP / "comfyui/example_workflows/filter_atoms.json"
    run_program(python, root, COMFYUI, root, tmp_path, page)

    names = (
        ("model.diffusion_model.", "diffusion_model."),
        ("cond_stage_model.", "clip_l."),
    )
    read = lambda name: load_file(tmp_path / name)
    plain, after = read("plain"), read("after")
    compare(plain, base.bake(), names)
    compare(read("both"), base.bake(cat=0.8, dog=-0.5), names)
    compare(read("third"), base.bake(cat=0.8, dog=-0.5, owl=0.6), names)
    # a projection that the base's file has not is whatever memory held, not-a-number too
    same = lambda a, b: torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    assert all(same(after[key], weight) for key, weight in plain.items())
    shown = {
        path.name.split("_")[0]: Image.open(path).convert("RGB")
        for path in (tmp_path / "output").glob("*.png")
    }
    assert ImageChops.difference(shown["cat 0.0"], shown["cat 0.8"]).getbbox()


CONFIG = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 64
    channels: 4
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {{image_size: 32, in_channels: 4, out_channels: 4, model_channels: 320,
        attention_resolutions: [1], num_res_blocks: 1, channel_mult: [1, 1], num_heads: 8,
        use_spatial_transformer: true, transformer_depth: 1, context_dim: 768,
        use_checkpoint: false, legacy: false}}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig: {{double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3,
          ch: 128, ch_mult: [1, 2, 4, 4], num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}}
        lossconfig: {{target: torch.nn.Identity}}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params: {{version: "{clip}"}}
"""
"""What the web UI reads beside a checkpoint of other widths than it knows."""

WEBUI = """
import json, os, sys
root, folder = sys.argv[1:]
sys.path.insert(0, root)
forge = os.path.isdir(root + "/modules_forge")
on_cpu = ["--always-cpu", "--all-in-fp32"] if forge else ["--use-cpu", "all", "--no-half"]
sys.argv = ["launch.py", "--skip-prepare-environment", "--skip-version-check", *on_cpu,
            "--data-dir", folder, "--ckpt", folder + "/base.safetensors", "--nowebui",
            "--skip-load-model-at-start", "--no-download-sd-model"]
import webui
from fastapi import FastAPI
from fastapi.testclient import TestClient
if not forge:  # which does it on import
    webui.initialize.initialize()
app = FastAPI()
webui.create_api(app)
from modules import script_callbacks, shared, ui_extra_networks
script_callbacks.before_ui_callback()
script_callbacks.app_started_callback(None, app)
from safetensors.torch import save_file

client = TestClient(app)
pictures, comments = {}, {}

def read_weights(name):
    if forge:
        objects = shared.sd_model.forge_objects
        held = objects.unet.model.state_dict() | objects.clip.cond_stage_model.state_dict()
    else:
        held = shared.sd_model.state_dict()
    save_file({k: v.clone().contiguous() for k, v in held.items()}, folder + "/" + name)

def paint(name, prompt):
    answer = client.post("/sdapi/v1/txt2img", json={
        "prompt": prompt, "steps": 2, "width": 64, "height": 64, "seed": 1,
        "sampler_name": "Euler", "cfg_scale": 2})
    assert answer.status_code == 200, answer.text
    pictures[name] = answer.json()["images"][0]
    comments[name] = json.loads(answer.json()["info"])["infotexts"][0]
    read_weights(name)

paint("plain", "an apple")
paint("both", "an apple <atoms:cat:0.8> <atoms:dog:-0.5>")
paint("lora", "<atoms:cat:0.8> an apple <lora:one:0.5>")
paint("parts", "an apple <atoms:cat:te=0.25:unet=0>")
paint("wrong", "an apple <atoms:nobody:1> <atoms:cat:loud>")
paint("after", "an apple")
(page,) = [page for page in ui_extra_networks.extra_pages if page.title == "Atoms"]
with open(folder + "/page.json", "w") as file:
    json.dump({"pictures": pictures, "texts": comments, "html": page.create_html("txt2img")}, file)
"""


@pytest.mark.parametrize("variable", ["SDATOMS_WEBUI", "SDATOMS_FORGE"])
def test_web_uis_bake_and_paint(base, tmp_path, variable):
    root, python = find_program(variable)
    shutil.copytree(APP / "webui", tmp_path / "extensions" / "sdatoms")
    (tmp_path / "base.safetensors").symlink_to(base.path)
    (tmp_path / "models/Lora").mkdir(parents=True)
    (tmp_path / "models/Atoms/pets").mkdir(parents=True)
    for path in base.files.values():
        (tmp_path / "models/Atoms/pets" / path.name).symlink_to(path)
    clip = tmp_path / "clip"
    base.modules["text_encoder"].config.save_pretrained(clip)
    build_tokenizer().save_pretrained(clip)
    write_known_names(tmp_path)
    (tmp_path / "base.yaml").write_text(CONFIG.format(clip=clip))
    lora = torch.randn(320, 320, 3, 3) / 100
    save_file({ONE: lora}, tmp_path / "models/Lora/one.safetensors")
    run_program(python, root, WEBUI, root, tmp_path)

    forge = variable == "SDATOMS_FORGE"
    names = (
        ("model.diffusion_model.", "diffusion_model." if forge else "model.diffusion_model."),
        ("cond_stage_model.", "clip_l." if forge else "cond_stage_model.wrapped."),
    )
    told = json.loads((tmp_path / "page.json").read_text())
    expected = {
        "plain": base.bake(),
        "both": base.bake(cat=0.8, dog=-0.5),
        "lora": base.bake(cat=0.8),
        "parts": base.bake(cat={"unet": 0.0, "text_encoder": 0.25}),
        "wrong": base.bake(),
    }
    expected["lora"]["model.diffusion_model.middle_block.0.in_layers.2.weight"] += 0.5 * lora
    for name, weights in expected.items():
        compare(load_file(tmp_path / name), weights, names)
    plain, after = load_file(tmp_path / "plain"), load_file(tmp_path / "after")
    assert all(torch.equal(after[key], weight) for key, weight in plain.items())
    pictures = told["pictures"]
    assert pictures["plain"] == pictures["after"]
    assert len({pictures[name] for name in ("plain", "both", "lora", "parts")}) == 4
    assert "sks dog" in told["html"] and "atoms:dog:" in told["html"]


ONE = "lora_unet_middle_block_0_in_layers_2.diff"
"""A LoRA of one full difference, by the name of the original layout."""
