"""The web UI's extension: the node's maths, placed in AUTOMATIC1111's and in Forge's models.

`Lora`, `ForgeModel` and the modules under `modules` stand in for the programs' interfaces;
`test_programs.py` runs the programs themselves.
"""

import ast
import copy
import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from tiny.atoms import perturb
from tiny.pipelines import build_tokenizer, describe_text
from torch import nn
from transformers import CLIPTextModel

from sdatoms import AtomConfig, inject, load_atoms, save_atoms

pytestmark = pytest.mark.usefixtures("one_thread")

APP = Path(__file__).parents[2] / "app"
FILES = sorted((APP / "webui").rglob("*.py"))


def read_definitions(path):
    """Name → text of a module's functions and constants."""
    text = path.read_text(encoding="utf-8")
    found = {}
    for entry in ast.parse(text).body:
        names = [entry.name] if isinstance(entry, ast.FunctionDef) else []
        names += [t.id for t in getattr(entry, "targets", []) if isinstance(t, ast.Name)]
        found |= {name: ast.get_source_segment(text, entry) for name in names}
    return found


def test_the_maths_is_word_for_word_the_nodes():
    ours = read_definitions(APP / "webui/sdatoms_webui/atoms.py")
    node = read_definitions(APP / "comfyui/sdatoms_comfyui.py")
    assert {"read_atoms", "compute_delta", "find_keys"} <= set(ours)
    assert ours == {name: node.get(name) for name in ours}


def test_the_extension_runs_on_what_web_uis_have():
    roots = set()
    for path in [*FILES, *(APP / "comfyui").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for entry in ast.walk(ast.parse(text, feature_version=(3, 10))):
            if isinstance(entry, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in entry.names}
            elif isinstance(entry, ast.ImportFrom) and not entry.level:
                roots.add(entry.module.split(".")[0])
    others = roots - set(sys.stdlib_module_names)
    assert others == {"torch", "safetensors", "modules", "folder_paths", "sdatoms_webui"}


@pytest.fixture
def load(monkeypatch):
    """A module of the extension, by name, as the web UI would import it."""
    monkeypatch.syspath_prepend(str(APP / "webui"))
    yield lambda name: importlib.import_module(f"sdatoms_webui.{name}")
    for name in [n for n in sys.modules if n.split(".")[0] == "sdatoms_webui"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("positional", "named", "expected"),
    [
        (["dog"], {}, ("dog", 1.0, 1.0, ())),
        (["dog", "0.8"], {}, ("dog", 0.8, 0.8, ())),
        (["dog", "0.5", "-2"], {}, ("dog", 0.5, -2.0, ())),
        (["dog", "0.5"], {"unet": "0.7", "mid": "0"}, ("dog", 0.5, 0.7, (("mid", 0.0),))),
    ],
)
def test_prompts_name_files_and_strengths(load, positional, named, expected):
    assert load("changes").read_wanted(positional, named) == expected


@pytest.mark.parametrize(
    ("positional", "named", "match"),
    [
        ([], {}, "is not understood"),
        (["dog", "1", "2", "3"], {}, "is not understood"),
        (["dog"], {"left": "1"}, "is not understood"),
        (["dog", "loud"], {}, "strength 'loud' of <atoms:dog> is no number"),
        (["dog", "inf"], {}, "is no number"),
    ],
)
def test_what_prompts_cannot_mean_is_said(load, positional, named, match):
    with pytest.raises(ValueError, match=match):
        load("changes").read_wanted(positional, named)


def test_strengths_go_by_block_and_component(load):
    wanted = load("changes").read_wanted(["dog", "0.1", "0.2"], {"down": "0.3", "up": "0.4"})
    layers = {
        ("unet", "down_blocks.0.resnets.0.conv1"): 0.3,
        ("unet", "mid_block.resnets.0.conv1"): 0.2,
        ("unet", "up_blocks.1.upsamplers.0.conv"): 0.4,
        ("unet", "conv_in"): 0.2,
        ("text_encoder_2", "encoder.layers.0.mlp.fc1"): 0.1,
    }
    assert {key: wanted.choose_strength(*key) for key in layers} == layers


def test_only_atom_files_that_prompts_can_say_are_listed(load, make_file, tmp_path):
    folder = tmp_path / "Atoms" / "pets"
    folder.mkdir(parents=True)
    dog = make_file("dog").rename(folder / "dog.safetensors")
    for name in ("a:b", 'a"b', "<b>"):
        (folder / f"{name}.safetensors").write_bytes(dog.read_bytes())
    (folder / "cut.safetensors").write_bytes(dog.read_bytes()[:100])
    (folder / "word.txt").write_text("no")
    library = load("library")
    assert library.find_files(str(tmp_path / "Atoms")) == {"dog": dog}
    assert library.find_files(str(tmp_path / "nowhere")) == {}
    with pytest.raises(ValueError, match=r"'cut\.safetensors' cannot be read"):
        library.read_file(folder / "cut.safetensors")


class Block(nn.Module):
    """A block of OpenCLIP with the weights of one of transformers."""

    def __init__(self, layer):
        super().__init__()
        own = layer.self_attn
        self.ln_1 = layer.layer_norm1
        self.attn = nn.MultiheadAttention(own.q_proj.out_features, 1)
        stacked = [getattr(own, f"{letter}_proj").weight for letter in "qkv"]
        self.attn.in_proj_weight.data = torch.cat(stacked).detach()
        self.attn.out_proj.weight.data = own.out_proj.weight.detach().clone()
        self.mlp = nn.ModuleDict({"c_fc": layer.mlp.fc1, "c_proj": layer.mlp.fc2})


def wrap(**parts):
    """Modules under names, as the web UI's models hold them."""
    whole = nn.Module()
    for name, part in parts.items():
        whole.add_module(name, part)
    return whole


class Lora:
    """The built-in extension's two modules, as far as a network of ours meets them."""

    def __init__(self, monkeypatch):
        self.loaded = []
        network = types.ModuleType("network")
        network.Network, network.NetworkModule = self.Network, self.NetworkModule
        networks = types.ModuleType("networks")
        networks.loaded_networks = self.loaded
        monkeypatch.setitem(sys.modules, "network", network)
        monkeypatch.setitem(sys.modules, "networks", networks)

    class Network:
        def __init__(self, name, network_on_disk):
            self.name, self.network_on_disk, self.modules = name, network_on_disk, {}

    class NetworkModule:
        def __init__(self, net, weights):
            self.sd_key, self.sd_module, self.extra_kwargs = weights.sd_key, weights.sd_module, {}

    def read(self, key, weight):
        """What all networks together add to the module of that name."""
        added = [net.modules[key].calc_updown(weight)[0] for net in self.loaded]
        return sum(added, torch.zeros_like(weight))


class Words:
    """A text encoder, and a file of atoms for it."""

    def __init__(self, folder):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = CLIPTextModel(describe_text(build_tokenizer(), 12)).eval()
        config = AtomConfig("coefficients", target_modules=("*fc?", "*_proj"))
        injection = perturb(inject(self.encoder, config))
        self.path = save_atoms(folder / "words.safetensors", {"text_encoder": injection})
        injection.eject()

    def copy(self, strength=0.0):
        """The encoder anew, with the file at a strength."""
        encoder = copy.deepcopy(self.encoder)
        if strength:
            load_atoms(encoder, self.path, strength=strength)
        return encoder


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return Words(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("kind", ["transformers", "open_clip"])
def test_a1111_gets_what_load_atoms_bakes(load, words, monkeypatch, kind):
    base, tuned = words.copy(), words.copy(0.7)
    if kind == "transformers":
        embedder = wrap(transformer=wrap(text_model=base))
    else:
        blocks = nn.ModuleList(Block(layer) for layer in base.encoder.layers)
        embedder = wrap(model=wrap(transformer=wrap(resblocks=blocks)))
    model = types.SimpleNamespace(
        model=nn.Module(), cond_stage_model=types.SimpleNamespace(wrapped=embedder)
    )
    changes, a1111, lora = load("changes"), load("a1111"), Lora(monkeypatch)
    shapes = a1111.list_a1111_shapes(model)
    wanted = changes.read_wanted(["words", "0.7"], {})
    found = changes.find_changes(words.path, wanted, shapes)
    a1111.apply_to_a1111(model, "it", {key: [change] for key, change in found.items()})

    (net,) = lora.loaded
    assert len(net.modules) == len(found) == 12
    for n, layer in enumerate(base.encoder.layers):
        new = tuned.encoder.layers[n]
        if kind == "transformers":
            head = f"transformer_text_model_encoder_layers_{n}_"
            names = {"self_attn.k_proj": "self_attn_k_proj", "mlp.fc1": "mlp_fc1"}
        else:
            head = f"model_transformer_resblocks_{n}_"
            names = {"self_attn.k_proj": "attn_k_proj", "mlp.fc1": "mlp_c_fc"}
            names |= {"self_attn.out_proj": "attn_out_proj"}
        for own, other in names.items():
            weight = layer.get_submodule(own).weight.detach()
            torch.testing.assert_close(
                weight + lora.read(head + other, weight), new.get_submodule(own).weight
            )
    a1111.apply_to_a1111(model, "", {})
    assert not lora.loaded


def test_a1111_computes_from_the_backup(load, words, monkeypatch):
    base, tuned = words.copy(), words.copy(1.0)
    model = types.SimpleNamespace(
        model=nn.Module(), cond_stage_model=wrap(transformer=wrap(text_model=base))
    )
    changes, a1111, lora = load("changes"), load("a1111"), Lora(monkeypatch)
    layer = base.encoder.layers[0].mlp.fc1
    pristine = layer.weight.detach().clone()
    shapes = a1111.list_a1111_shapes(model)
    found = changes.find_changes(words.path, changes.read_wanted(["words"], {}), shapes)
    a1111.apply_to_a1111(model, "it", {key: [change] for key, change in found.items()})
    layer.network_weights_backup = pristine
    layer.weight.data += 1  # what a LoRA before ours has added
    added = lora.read("transformer_text_model_encoder_layers_0_mlp_fc1", layer.weight)
    torch.testing.assert_close(pristine + added, tuned.encoder.layers[0].mlp.fc1.weight)


class ForgePatcher:
    """Weights and patches as Forge's `ModelPatcher` has them."""

    def __init__(self, model, patches=None):
        self.model, self.lora_patches = model, dict(patches or {})
        self.lora_loader = types.SimpleNamespace(backup={})

    def clone(self):
        new = ForgePatcher(self.model, self.lora_patches)
        new.lora_loader = self.lora_loader
        return new

    def add_patches(self, *, filename, patches, strength_patch=1.0):
        held = dict(self.model.named_parameters())
        assert all(patch[1][0].shape == held[key].shape for key, patch in patches.items())
        self.lora_patches[filename, strength_patch, 1.0, False] = patches

    def read(self, key):
        added = [p[key][1][0] * name[1] for name, p in self.lora_patches.items() if key in p]
        held = self.lora_loader.backup.get(key, dict(self.model.named_parameters())[key])
        return sum(added, held.detach().clone())


class ForgeClip:
    def __init__(self, patcher):
        self.patcher = patcher

    def clone(self):
        return ForgeClip(self.patcher.clone())


def test_forge_gets_what_load_atoms_bakes(load, words):
    tuned = words.copy(0.7)
    encoder = wrap(clip_l=wrap(transformer=wrap(text_model=words.copy())))
    unet, clip = ForgePatcher(nn.Module()), ForgeClip(ForgePatcher(encoder))
    clip.patcher.lora_patches["a LoRA", 1.0, 1.0, False] = {}
    make = lambda: types.SimpleNamespace(unet=unet, clip=clip)
    model = types.SimpleNamespace(forge_objects=make(), forge_objects_after_applying_lora=make())
    changes, forge = load("changes"), load("forge")
    shapes = forge.list_forge_shapes(model)
    wanted = changes.read_wanted(["words", "0.7"], {})
    found = changes.find_changes(words.path, wanted, shapes)
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    backup = dict(encoder.named_parameters())[key].detach().clone()
    clip.patcher.lora_loader.backup[key] = backup
    dict(encoder.named_parameters())[key].data += 1  # patched by the picture before

    for _ in range(2):  # every batch puts them anew
        forge.apply_to_forge(model, "it", {key: [change] for key, change in found.items()})
        for objects in vars(model).values():
            if isinstance(objects, types.SimpleNamespace):
                assert objects.unet is unet
                patcher = objects.clip.patcher
                assert len(patcher.lora_patches) == 2 and len(clip.patcher.lora_patches) == 1
                torch.testing.assert_close(
                    patcher.read(key), tuned.encoder.layers[0].mlp.fc1.weight
                )
    forge.apply_to_forge(model, "", {})
    assert list(model.forge_objects.clip.patcher.lora_patches) == list(clip.patcher.lora_patches)


def test_what_does_not_fit_is_said_by_the_layers_name(load, words, make_file):
    changes = load("changes")
    wanted = changes.read_wanted(["it"], {})
    with pytest.raises(ValueError, match="no place in this model, first 'conv_in'"):
        changes.find_changes(make_file(), wanted, {})
    layers = {
        layer.removeprefix("text_encoder.") for layer in load("library").read_file(words.path)[0]
    }
    keys = [f"clip_l.transformer.text_model.{layer}.weight" for layer in layers]
    shapes = dict.fromkeys(keys, torch.Size((7, 7)))
    with pytest.raises(ValueError, match=r"'words\.safetensors' does not fit at text_encoder\."):
        changes.find_changes(words.path, wanted, shapes)


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The web UI's modules that the extension imports."""
    modules = types.ModuleType("modules")
    options = types.SimpleNamespace(samples_format="png")
    modules.shared = types.SimpleNamespace(
        cmd_opts=types.SimpleNamespace(atoms_dir=str(tmp_path)), opts=options
    )

    class ExtraNetwork:
        def __init__(self, name):
            self.name = name

    class Page:
        def __init__(self, title):
            self.title = title

        find_preview = find_description = lambda self, path: None
        search_terms_from_path = lambda self, path: path
        get_sort_keys = lambda self, path: {}

    modules.extra_networks = types.SimpleNamespace(ExtraNetwork=ExtraNetwork)
    quote = lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    modules.ui_extra_networks = types.SimpleNamespace(ExtraNetworksPage=Page, quote_js=quote)
    monkeypatch.setitem(sys.modules, "modules", modules)
    return modules


def test_what_cannot_be_used_stands_in_the_pictures_comments(load, host, make_file, monkeypatch):
    make_file("dog")
    Lora(monkeypatch)
    network = load("prompt_network").ExtraNetworkAtoms()
    assert network.name == "atoms"
    said = []
    model = types.SimpleNamespace(model=nn.Module(), cond_stage_model=nn.Module())
    picture = types.SimpleNamespace(sd_model=model, comment=said.append)
    ask = lambda *words: types.SimpleNamespace(positional=list(words), named={})
    network.activate(picture, [ask("cat", "1"), ask("dog", "x"), ask("dog", "1")])
    network.apply(picture)
    assert said[:2] == [
        "Atoms: there is no atom file of the name 'cat'",
        "Atoms: the strength 'x' of <atoms:dog> is no number",
    ]
    assert said[2].startswith("Atoms: 'dog.safetensors' does not fit: 20 of 20 layers of unet")
    assert len(said) == 3


def test_cards_show_what_is_a_picture_and_words_on_a_line(load, host, make_file):
    make_file("dog")
    page = load("page")
    (card,) = page.ExtraNetworksPageAtoms().list_items()
    assert card["name"] == "dog"
    assert card["prompt"] == (
        '"<atoms:dog:" + opts.extra_networks_default_multiplier + ">" + " sks dog"'
    )
    assert page.read_trigger({"trigger": "a\nb" + "c" * 300}) == "ab" + "c" * 198
    told = {"modelspec.description": "<img src=x onerror='alert(1)'>"}
    assert page.read_description(told) == "img src=x onerror='alert(1)'"
    good = "data:image/png;base64,AAAA"
    assert page.find_thumbnail({"modelspec.thumbnail": good}) == good
    for bad in ("https://example.com/x.png", good + '" onerror="alert(1)', "data:text/html,x"):
        assert page.find_thumbnail({"modelspec.thumbnail": bad}) is None


def test_the_packs_are_of_this_release():
    import tomllib

    from sdatoms import __version__

    pack = tomllib.loads((APP / "comfyui/pyproject.toml").read_text())
    assert pack["project"]["version"] == __version__
    assert pack["tool"]["comfy"]["PublisherId"]
