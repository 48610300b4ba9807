"""The known models: published sizes, targets of each family, one step of training; small copies
stand for the families here, the real sizes are in `test_real_size.py`."""

import json

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from tiny.atoms import VARIANTS
from tiny.models import SMALLER, build_small, take_step
from torch import nn

from sdatoms import AtomConfig, AtomError, inject
from sdatoms.models.families import MODELS
from sdatoms.models.open import build_empty, build_model, fill_weights, list_names, open_model

pytestmark = pytest.mark.usefixtures("one_thread")

KIN = ("sd21-unet", "sdxl-unet")
"""Which have the layers of sd15-unet, and take longest."""
PUBLISHED = {
    "sd15-unet": 859_520_964,
    "sd21-unet": 865_910_724,
    "sdxl-unet": 2_567_463_684,
    "clip-l": 123_060_480,
    "clip-h": 340_387_840,
    "clip-bigg": 694_659_840,
    "convnext-base": 88_591_464,
    "vit-base": 86_567_656,
    "resnet-50": 25_557_032,
    "swin-tiny": 28_288_354,
}
"""Weights as in the published models; the two transformers are cut in depth."""
HEADS = {"classifier", "classifier.1"}


def layers_of(model):
    return {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def paths_of(model, variant="full"):
    return {row.path for row in inject(model, AtomConfig(variant)).report()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_have_the_published_sizes(name):
    model = build_empty(MODELS[name], {})
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", SMALLER)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_step_trains_atoms_and_nothing_else(name, variant, perturb, rng):
    model = build_small(name)
    injection = perturb(inject(model, AtomConfig(variant)))

    without = take_step(model, injection, rng)

    # SD3's last block computes the text's queries and throws their answers away.
    assert {path for path in without if not path.endswith("1.attn.add_q_proj.block.atoms")} == set()
    assert bool(without) == (name == "sd3-transformer")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in KIN else ()) for n in SMALLER],
)
def test_eject_after_a_step_brings_the_model_back(name, perturb, rng):
    model, fresh = build_small(name), build_small(name)
    injection = perturb(inject(model, AtomConfig("full")))
    take_step(model, injection, rng)

    injection.eject()

    assert layers_of(model) == layers_of(fresh)
    for key, tensor in fresh.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_text_encoders_tune_attention_and_feed_forward_in_every_variant():
    ends = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    for name in ("clip-l", "clip-h", "clip-bigg"):
        wanted = {p for p in layers_of(build_small(name)) if p.split(".")[-1] in ends}
        assert len(wanted) == 12
        for variant in VARIANTS:
            assert paths_of(build_small(name), variant) == wanted
    injection = inject(build_small("clip-bigg"))
    assert {row.view for row in injection.report()} == {"channel 2x2"}


def test_transformers_tune_attention_and_feed_forward_of_their_blocks():
    outside = ("norm", "embed", "time_text")
    for name, left in (("sd3-transformer", {"proj_out"}), ("flux-transformer", {"proj_out"})):
        model = build_small(name)
        wanted = {p for p in layers_of(model) if not any(word in p for word in outside)} - left
        assert paths_of(model) == wanted
        assert any(".ff_context." in path for path in wanted)


@pytest.mark.parametrize("name", ["convnext-base", "vit-base", "resnet-50", "swin-tiny"])
def test_classifiers_tune_all_layers_but_the_head(name):
    model = build_small(name)
    layers = layers_of(model)
    assert layers & HEADS
    assert paths_of(model) == layers - HEADS
    spatial = paths_of(build_small(name), "atoms")
    assert spatial < layers - HEADS
    assert any("embed" in path for path in spatial)


def test_a_config_of_the_callers_replaces_the_familys():
    model = build_small("vit-base")
    injection = inject(model, AtomConfig("coefficients", target_modules="classifier"))
    assert set(injection.layers) == {"classifier"}
    model = build_small("clip-bigg")
    config = AtomConfig("coefficients", target_modules="text_projection", block_size=2)
    assert set(inject(model, config).layers) == {"text_projection"}
    model = build_small("clip-l")
    injection = inject(model, AtomConfig("coefficients", exclude_modules="*.mlp.*"))
    assert all(".self_attn." in path for path in injection.layers)


def test_a_model_without_spatial_filters_is_told_what_fits():
    with pytest.raises(AtomError, match="take the variants 'coefficients' and 'full'"):
        inject(nn.Sequential(nn.Linear(8, 8)), AtomConfig("atoms"))


def test_the_representation_tells_which_layers_carry_which_atoms():
    """Read `repr(unet)` as a newcomer does, by its indentation, and find what the report says."""
    unet = build_small("sd15-unet")
    injection = inject(unet, AtomConfig("full"))

    read, stack = {}, [(-1, [""])]
    for line in repr(unet).splitlines()[1:]:
        name, _, text = line.strip().partition("): ")
        indent = len(line) - len(line.lstrip())
        if not name.startswith("(") or not text:
            continue
        while stack[-1][0] >= indent:
            stack.pop()
        first, _, last = name[1:].partition("-")  # equal neighbours stand in one line: (0-1): 2 x
        names = range(int(first), int(last) + 1) if last else [first]
        paths = [f"{parent}.{n}".lstrip(".") for parent in stack[-1][1] for n in names]
        if "Delta(" in text:
            read |= dict.fromkeys(paths, text)
        stack.append((indent, paths))

    wanted = {}
    for path, layer in injection.layers.items():
        for view, delta in layer.views().items():
            wanted[f"{path}.deltas.{view}"] = repr(delta)
    assert read == wanted
    assert "spatial, atoms=9, width=9" in read["down_blocks.0.resnets.0.conv1.deltas.spatial"]


def test_random_weights_follow_the_seed_and_the_dtype():
    a, b, c = (build_small("resnet-50", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    key = "resnet.encoder.stages.1.layers.0.layer.0.convolution.weight"
    assert not torch.equal(a[key], c[key])
    model = build_model("vit-base", torch.bfloat16, changes=SMALLER["vit-base"])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_tied_weights_stay_tied_when_filled():
    with init_empty_weights(include_buffers=False):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    fill_weights(model, torch.float32)
    assert model[1].weight is model[0].weight
    assert not model[0].weight.is_meta and model[0].bias.eq(0).all()


def test_unknown_names_are_answered_with_the_known_ones():
    for name in ("sd15", "org/model", "/no/such/folder"):
        with pytest.raises(AtomError, match="known are sd15-unet, sd21-unet") as error:
            open_model(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("library", "inner"), [("timm", "convnext_atto"), ("torchvision", "resnet18")]
)
def test_models_of_other_libraries_take_a_step(library, inner, perturb, rng):
    pytest.importorskip(library)
    name = f"{library}/{inner}"
    assert f"{library}/NAME" in list_names()
    model = build_model(name)
    injection = perturb(inject(model, AtomConfig("full")))
    assert not any(p.startswith(("head", "fc", "classifier")) for p in injection.layers)

    loss = model(torch.randn(1, 3, 64, 64, generator=rng)).square().mean()
    loss.backward()

    assert torch.isfinite(loss)
    assert all(p.grad.any() for p in injection.parameters())
    with pytest.raises(AtomError, match=f"{library} builds no model 'nope'"):
        build_model(f"{library}/nope")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_folders_and_files_open_with_their_own_weights(tmp_path, dtype):
    unet, vit = (build_small(name, 3).to(dtype) for name in ("sd15-unet", "vit-base"))
    (tmp_path / "pipe").mkdir()
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", type(unet).__name__]}
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    unet.save_pretrained(tmp_path / "pipe" / "unet")
    vit.save_pretrained(tmp_path / "vit")

    for folder, component, saved in (
        ("pipe", "unet", unet),
        ("pipe/unet", "model", unet),
        ("vit", "model", vit),
    ):
        opened = open_model(tmp_path / folder)
        assert opened.component == component
        state = opened.model.state_dict()
        assert all(torch.equal(state[k], v) for k, v in saved.state_dict().items())
        assert {v.dtype for v in state.values() if v.is_floating_point()} == {dtype}


def test_folders_and_files_without_a_model_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"architectures": ["AutoConfig"]}')
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04K\x01.")
    save_file({"linear.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    for name, sentence in (
        ("empty", "holds no config.json"),
        ("odd", "names 'AutoConfig', which is no model of transformers"),
        ("list", "holds no JSON table"),
        ("pipe", "has no unet and no transformer"),
        ("pickle.safetensors", "is no safetensors file"),
        ("other.safetensors", "are those of no known model"),
    ):
        with pytest.raises(AtomError, match=sentence):
            open_model(tmp_path / name)
