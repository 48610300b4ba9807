"""Laws of what is kept for the way back: every way gives the same picture and the base's own bits
again, and a way that fails changes nothing."""

import shutil

import numpy as np
import pytest
import torch
from tiny.modules import copy_weights, same_weights
from tiny.single_files import build_parts, save_single
from torch import nn

from sdatoms import AtomConfig, AtomError, load_atoms
from sdatoms.adapters.keep import StoredWeight, choose_keep, describe_keep, find_stored
from sdatoms.adapters.state import AttachedLayer, find_state
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.files.writer import pack_atoms
from sdatoms.layers.inject import inject
from sdatoms.layers.weights import LayerWeight

pytestmark = pytest.mark.usefixtures("one_thread")
WAYS = ("memory", "file", "attach")


@pytest.fixture
def open_tiny(tiny_pipeline):
    return lambda **flags: load_base(str(tiny_pipeline("sd", "epsilon")), device="cpu", **flags)


@pytest.fixture
def file(open_tiny, perturb):
    injection = perturb(inject(open_tiny().unet, AtomConfig("full")), 0.1)
    return pack_atoms({"unet": injection})


def draw(pipe):
    return np.asarray(paint(pipe, ["a cat"], [3], num_inference_steps=2)[0]).astype(int)


def read_kinds(pipe):
    state = find_state(pipe.unet)
    assert state is not None
    return {type(getattr(layer, "kept", layer)) for layer in state.layers.values()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_paints_the_same_picture_and_clears_to_the_bit(open_tiny, file, dtype):
    pictures = {}
    for way in WAYS:
        pipe = open_tiny(dtype=dtype)
        before, base = copy_weights(pipe.unet), draw(pipe)
        adapters = load_atoms(pipe, file, name="a", strength=0.4, keep_weights=way)
        adapters.load(file, name="b", strength=0.3, keep_weights=way)
        adapters.set_strengths({"a": 1.0})
        kinds = {"memory": torch.Tensor, "file": StoredWeight, "attach": AttachedLayer}
        assert read_kinds(pipe) == {kinds[way]}
        pictures[way] = draw(pipe)
        assert (pictures[way] != base).any()
        assert adapters.verify_base()
        adapters.set_strengths({"a": 0, "b": 0})
        assert (draw(pipe) == base).all()
        adapters.set_strengths({"a": 1.0})
        adapters.clear()
        assert adapters.verify_base() and same_weights(pipe.unet, before)
        assert (draw(pipe) == base).all()
    assert (pictures["file"] == pictures["memory"]).all()
    limit = 1 if dtype == "float32" else 12
    assert abs(pictures["attach"] - pictures["memory"]).max() <= limit


class Wrapper(nn.Module):
    """Holds a module as PEFT does, and shows nothing of it."""

    def __init__(self, inner):
        super().__init__()
        self.base_layer = inner

    def forward(self, *args, **kwargs):
        return self.base_layer(*args, **kwargs)


WRAPPERS = {
    "plain": lambda module: module,
    "held": Wrapper,
    "compiled": lambda module: torch.compile(module, backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
@torch.no_grad()
def test_torch_s_fused_path_does_not_pass_attached_adapters_by(perturb, wrap):
    """In eval mode an encoder layer reads the weights of its linear layers without calling them."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 16), encoder, nn.Linear(16, 4)).eval()
    x, before = torch.randn(2, 5, 8), copy_weights(encoder)
    base, found = model(x), {}
    injection = perturb(inject(model, AtomConfig("coefficients", block_size=2)), 0.1)
    file = pack_atoms({"model": injection})
    injection.eject()
    model[1] = wrap(encoder)
    for way in ("memory", "attach"):
        adapters = load_atoms(model, file, name="a", keep_weights=way)
        attached = isinstance(find_state(model).layers["0"], AttachedLayer)
        assert attached == (way == "attach")
        found[way] = model(x)
        adapters.clear()
        assert same_weights(encoder, before) and torch.equal(model(x), base)
    assert (found["memory"] - base).abs().max() > 1e-2
    torch.testing.assert_close(found["attach"], found["memory"], rtol=1e-4, atol=1e-5)


def test_a_base_s_file_that_changed_is_named_and_nothing_else_happens(
    open_tiny, file, tiny_pipeline, tmp_path
):
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline("sd", "epsilon"), folder)
    pipe = load_base(str(folder), device="cpu")
    adapters = load_atoms(pipe, file, name="a", strength=0.5, keep_weights="file")
    baked = copy_weights(pipe.unet)
    (stored,) = (folder / "unet").glob("*.safetensors")
    moved = stored.rename(folder / "elsewhere")
    for call in (adapters.clear, lambda: adapters.set_strengths({"a": 0.7})):
        with pytest.raises(AtomError, match="is gone while adapters are baked in"):
            call()
    assert same_weights(pipe.unet, baked) and adapters.names == ("a",)
    moved.rename(stored)
    adapters.clear()
    assert adapters.verify_base()


def test_a_base_that_is_in_no_file_is_refused_or_kept_in_memory(open_tiny, file):
    pipe = open_tiny()
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(1.001)
    before = copy_weights(pipe.unet)
    with pytest.raises(AtomError, match="needs a base opened from safetensors"):
        load_atoms(pipe, file, keep_weights="file")
    assert same_weights(pipe.unet, before)
    with pytest.raises(AtomError, match=r"it takes auto \| memory \| file \| attach"):
        load_atoms(pipe, file, keep_weights="disk")  # pyright: ignore
    load_atoms(pipe, file)
    assert read_kinds(pipe) == {torch.Tensor}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_single_file_is_read_anew_too(tmp_path, family):
    parts = build_parts(family, dtype=torch.float16)
    path = save_single(tmp_path / "one.safetensors", family, parts, dtype=torch.float16)
    pipe = load_base(str(path), device="cpu")
    for component in ("unet", "text_encoder"):
        model = getattr(pipe, component)
        layers = {
            name: LayerWeight(module)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        }
        stored = find_stored(model, layers)
        assert stored.keys() == layers.keys()
        for path, held in stored.items():
            assert torch.equal(held.read(), layers[path].weight)


def test_auto_keeps_copies_while_half_of_the_free_memory_stays():
    assert choose_keep(100, 200, stored=False) == "memory"
    assert choose_keep(100, 199, stored=True) == "file"
    assert choose_keep(100, 199, stored=False) == "attach"
    assert choose_keep(100, None, stored=False) == "memory"
    assert describe_keep("file", 2_000_000_000, 3_000_000_000) == (
        "pristine weights are read anew from the base's files (2.0 GB of copies, 3.0 GB free)"
    )
