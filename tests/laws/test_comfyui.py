"""The ComfyUI node: the library's deltas, under ComfyUI's names, on top of its patcher's patches.

`Patcher` stands in for the host program's interface: clone, get_key_patches and add_patches as
ComfyUI's ModelPatcher has them.
"""

import ast
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from sdatoms import AtomConfig, inject, load_atoms, read_atoms, save_atoms
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")

PATH = Path(__file__).parents[2] / "app" / "comfyui" / "sdatoms_comfyui.py"
RESNET = ("in_layers.2", "out_layers.3", "emb_layers.1", "skip_connection")
ATTENTION = (
    "proj_in",
    "proj_out",
    *(f"transformer_blocks.0.attn{k}.to_{x}" for k in (1, 2) for x in ("q", "k", "v", "out.0")),
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
)
BLOCKS = {
    "input_blocks": {"1.0": RESNET, "1.1": ATTENTION, "2.0.op": ("",), "3.0": RESNET},
    "middle_block": {"0": RESNET, "1": ATTENTION, "2": RESNET},
    "output_blocks": {
        "0.0": RESNET,
        "1.0": RESNET,
        "1.1.conv": ("",),
        "2.0": RESNET,
        "2.1": ATTENTION,
        "3.0": RESNET,
        "3.1": ATTENTION,
    },
}
"""What the toy UNet is called in the original release of Stable Diffusion, as in ComfyUI."""


@pytest.fixture(scope="module")
def node():
    spec = importlib.util.spec_from_file_location("sdatoms_comfyui", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Patcher:
    """Weights by key, patched as `calculate_weight` does for full differences."""

    def __init__(self, weights, backup=None, patches=None):
        self.weights, self.backup, self.patches = weights, backup or {}, patches or {}

    def clone(self):
        return Patcher(self.weights, self.backup, dict(self.patches))

    def get_key_patches(self, filter_prefix=None):
        plain = lambda weight, **_: weight
        return {k: [(self.backup.get(k, w), plain)] for k, w in self.weights.items()}

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        for key, patch in patches.items():
            assert key in self.weights
            self.patches[key] = [*self.patches.get(key, []), (strength_patch, patch)]
        return list(patches)

    def patched(self, key):
        weight = self.backup.get(key, self.weights[key]).clone()
        for strength, (kind, (diff,)) in self.patches.get(key, []):
            assert kind == "diff"
            assert diff.shape == weight.shape
            weight += strength * diff.to(weight.dtype)
        return weight


@pytest.fixture
def original(make_unet):
    """Original name → diffusers' name of the toy UNet's layers, by diffusers' own converter."""
    names = ["input_blocks.0.0", "out.2", "time_embed.0", "time_embed.2"]
    for side, places in BLOCKS.items():
        for place, layers in places.items():
            names += [f"{side}.{place}.{layer}".rstrip(".") for layer in layers]
    marks = {f"model.diffusion_model.{name}.weight": name for name in names}
    marks["model.diffusion_model.output_blocks.1.1.conv.bias"] = ""
    found = convert_ldm_unet_checkpoint(marks, {"layers_per_block": 1})
    return {name: key.removesuffix(".weight") for key, name in found.items() if name}


@pytest.fixture
def make_patcher(make_unet, original):
    def make(dtype=torch.float32):
        unet = make_unet()
        layers = {name: m for name, m in unet.named_modules() if hasattr(m, "weight")}
        return Patcher(
            {
                f"diffusion_model.{name}.weight": layers[path].weight.detach().to(dtype)
                for name, path in original.items()
                if path in layers
            }
        )

    return make


def test_the_file_needs_torch_and_safetensors_only():
    tree = ast.parse(PATH.read_text(encoding="utf-8"))
    roots = set()
    for entry in ast.walk(tree):
        if isinstance(entry, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in entry.names}
        elif isinstance(entry, ast.ImportFrom):
            roots.add(entry.module.split(".")[0])
    others = roots - set(sys.stdlib_module_names)
    assert others == {"torch", "safetensors", "folder_paths"}


def test_deltas_are_those_of_the_library(node, sample_files, make_convnet):
    for name, path in sample_files.items():
        model = make_convnet()
        adapters = load_atoms(model, path, name="it", strength=0)
        layers, layouts = node.read_atoms(str(path))
        assert set(layers) == set(read_atoms(path).layers)
        for layer, views in layers.items():
            inner = layer.removeprefix("model.")
            weight = model.get_submodule(inner).weight.detach()
            found = node.compute_delta(weight, layouts[layer], views)
            expected = adapters.delta("it", inner)
            assert expected.abs().max() > 0
            torch.testing.assert_close(
                found, expected, rtol=1e-4, atol=1e-6, msg=f"{name}: {layer}"
            )


def test_every_layer_finds_its_original_name(node, original, make_unet):
    unet = make_unet()
    paths = [
        path
        for path, module in unet.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    keys = [f"diffusion_model.{name}.weight" for name in original]
    found = node.find_keys("unet", paths, keys)
    assert found == {
        path: f"diffusion_model.{name}.weight" for name, path in original.items() if path in paths
    }
    assert len(found) == len(paths) > 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_node_patches_what_load_atoms_bakes(
    node, tmp_path, make_unet, make_patcher, original, perturb, monkeypatch, tolerance, dtype
):
    injection = perturb(inject(make_unet(), AtomConfig("full", block_size=2)), 0.1)
    path = save_atoms(tmp_path / "dog.safetensors", {"unet": injection})
    unet = make_unet()
    load_atoms(unet, path, strength=0.7)
    host = types.ModuleType("folder_paths")
    host.get_filename_list = lambda kind: [path.name] * (kind == "loras")
    host.get_full_path = lambda kind, name: str(tmp_path / name)
    monkeypatch.setitem(sys.modules, "folder_paths", host)
    patcher = make_patcher(dtype)
    # The host may still hold an earlier run's patches in the weights; the backup is pristine.
    patcher.backup = dict(patcher.weights)
    patcher.weights = {key: weight + 1 for key, weight in patcher.weights.items()}

    loader = node.LoadFilterAtoms()
    inputs = loader.INPUT_TYPES()["required"]
    model, clip = loader.load(patcher, inputs["file"][0][0], 0.7)

    assert clip is None
    assert not patcher.patches
    for name, layer in original.items():
        key = f"diffusion_model.{name}.weight"
        if key in model.patches:
            weight = unet.get_submodule(layer).weight
            torch.testing.assert_close(model.patched(key).float(), weight, **tolerance[dtype])
    assert len(model.patches) == len(injection.layers)
    assert loader.load(patcher, path.name, 0.0) == (patcher, None)
    twice, _ = loader.load(model, path.name, 0.7)
    key = "diffusion_model.input_blocks.0.0.weight"
    both = twice.patched(key) - patcher.backup[key]
    torch.testing.assert_close(
        both.float(), 2 * (model.patched(key) - patcher.backup[key]).float(), rtol=0.05, atol=2e-2
    )


def test_text_encoders_find_their_place(node, make_pipe, tmp_path, perturb):
    encoder = make_pipe().text_encoder
    config = AtomConfig("coefficients", target_modules=("*fc?", "*_proj"))
    injection = perturb(inject(encoder, config))
    file = save_atoms(tmp_path / "words.safetensors", {"text_encoder": injection})
    base = make_pipe().text_encoder.state_dict()
    prefix = "clip_l.transformer.text_model."
    clip = Patcher({prefix + k: v for k, v in base.items() if k.endswith(".weight")})

    patched = node.patch_model(clip, "text_encoder", str(file), 1.0)

    tuned = make_pipe().text_encoder
    load_atoms(tuned, file)
    for path in injection.layers:
        weight = tuned.get_submodule(path).weight
        torch.testing.assert_close(patched.patched(f"{prefix}{path}.weight"), weight)


def test_a_new_word_is_left_out_and_named(
    node, tmp_path, make_unet, make_patcher, perturb, monkeypatch, caplog
):
    injections = {"unet": perturb(inject(make_unet(), AtomConfig("atoms")), 0.1)}
    plain = save_atoms(tmp_path / "plain.safetensors", injections)
    words = {"text_encoder": torch.ones(2, 12)}
    file = pack_atoms(injections, word="<dog>", embeddings=words).save(
        tmp_path / "word.safetensors"
    )
    host = types.ModuleType("folder_paths")
    host.get_full_path = lambda kind, name: str(tmp_path / name)
    monkeypatch.setitem(sys.modules, "folder_paths", host)
    loader = node.LoadFilterAtoms()

    expected, _ = loader.load(make_patcher(), plain.name, 0.7)
    assert not caplog.messages
    model, _ = loader.load(make_patcher(), file.name, 0.7)

    (line,) = caplog.messages
    assert "the new word '<dog>', which is left out" in line and "word.safetensors" in line
    assert model.patches.keys() == expected.patches.keys()
    for key, patches in expected.patches.items():
        assert torch.equal(model.patches[key][0][1][1][0], patches[0][1][1][0])


def test_what_does_not_fit_is_refused(node, tmp_path, make_patcher, sample_files, make_file):
    with pytest.raises(ValueError, match="no place in this model, first 'conv_in'"):
        node.patch_model(Patcher({}), "unet", str(make_file()), 1.0)
    layers, layouts = node.read_atoms(str(sample_files["overcomplete"]))
    for shape in ((16, 3, 5, 5), (16, 4, 3, 3)):
        with pytest.raises(ValueError, match="fit"):
            node.compute_delta(torch.ones(shape), layouts["model.stem"], layers["model.stem"])
    other = tmp_path / "x.safetensors"
    other.write_bytes(sample_files["full"].read_bytes().replace(b"sdatoms/1", b"sdatoms/9", 1))
    with pytest.raises(ValueError, match="no atom file of format"):
        node.read_atoms(str(other))
