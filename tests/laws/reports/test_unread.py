"""G. No layer is changed that nothing reads: layers joined into another one, blocks that are not
there."""

import pytest
import torch
from tiny.atoms import perturb
from tiny.models import build_small, make_inputs
from tiny.modules import copy_weights, same_weights

from sdatoms import AtomConfig, AtomError, inject, load_atoms
from sdatoms.files.writer import pack_atoms
from sdatoms.layers.fused import find_fused

MODELS = ["sd15-unet", "sdxl-unet", "sd3-transformer", "flux-transformer"]
JOINED = {
    "query": ("*.to_q",),
    "key": ("*.to_k",),
    "value": ("*.to_v",),
    "all": ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0"),
    "of the text": ("*.add_k_proj",),
}
"""What the atoms are of → patterns; each holds layers that are joined."""


@pytest.fixture(scope="module")
def models():
    """A fresh model of a kind, its file by patterns, and what it computes."""
    built, files = {}, {}

    def make(kind):
        if kind not in built:
            built[kind] = build_small(kind).eval().state_dict()
        model = build_small(kind).eval()
        model.load_state_dict(built[kind])
        return model

    def make_file(kind, patterns, seed=0):
        if (kind, patterns, seed) not in files:
            config = AtomConfig("coefficients", target_modules=patterns, block_size=2)
            injection = perturb(inject(make(kind), config), 0.3, seed)
            component = "unet" if kind.endswith("unet") else "transformer"
            files[kind, patterns, seed] = pack_atoms({component: injection})
        return files[kind, patterns, seed]

    return make, make_file


@torch.no_grad()
def run(model):
    return model(**make_inputs(model, torch.Generator().manual_seed(0)))[0]


def same_bits(model, weights):
    """As `same_weights`, but for layers that were not there."""
    now = model.state_dict()
    return all(torch.equal(now[name], tensor) for name, tensor in weights.items())


CASES = [
    (kind, name)
    for kind in MODELS
    for name in JOINED
    if name != "of the text" or kind.endswith("transformer")
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_layers_whose_atoms_train_are_not_joined(models, kind, name):
    make, _ = models
    model = make(kind)
    before, names = copy_weights(model), set(model.state_dict())
    config = AtomConfig("coefficients", target_modules=JOINED[name], block_size=2)
    injection = perturb(inject(model, config), 0.3)
    changed = run(model)
    with pytest.raises(AtomError, match=r"carries atoms that train.* call eject\(\)"):
        model.fuse_qkv_projections()
    assert torch.equal(run(model), changed)
    injection.eject()
    model.fuse_qkv_projections()
    assert find_fused(model)
    model.unfuse_qkv_projections()
    assert names <= set(model.state_dict()) and same_bits(model, before)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_joined_layers_take_no_atoms_until_they_are_apart(models, kind, name):
    make, make_file = models
    model, file, other = make(kind), make_file(kind, JOINED[name]), make(kind)
    before = copy_weights(model)
    load_atoms(other, file)
    model.fuse_qkv_projections()
    config = AtomConfig("coefficients", target_modules=JOINED[name], block_size=2)
    paths = {path.split(".", 1)[1] for path in file.layers}
    assert paths & set(find_fused(model))
    if kind.endswith("unet") and name == "query":  # that of cross attention is called
        assert paths - set(find_fused(model))
    for call in (lambda: load_atoms(model, file), lambda: inject(model, config)):
        with pytest.raises(AtomError, match=r"is passed by.* 'to_\w+'.*unfuse_qkv_pro"):
            call()
    model.unfuse_qkv_projections()  # older classes keep the joined layer
    assert same_bits(model, before)
    adapters = load_atoms(model, file)
    assert torch.equal(run(model), run(other))
    adapters.clear()
    assert same_bits(model, before) and torch.equal(run(model), run(make(kind)))


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_is_changed_or_vouched_for_while_layers_are_joined(models, kind):
    make, make_file = models
    model, base = make(kind), make(kind)
    adapters = load_atoms(model, make_file(kind, JOINED["all"]), name="dog")
    tuned = run(model)
    model.fuse_qkv_projections()
    assert torch.allclose(run(model), tuned, atol=1e-4)
    assert not torch.allclose(run(model), run(base), atol=1e-4)
    joined = copy_weights(model)
    for call in (
        adapters.clear,
        adapters.verify_base,
        lambda: adapters.remove("dog"),
        lambda: adapters.set_strengths({"dog": 0.5}),
        lambda: adapters.load(make_file(kind, JOINED["value"], 1), name="cat"),
    ):
        with pytest.raises(AtomError, match="unfuse_qkv_projections"):
            call()
        assert same_weights(model, joined) and adapters.names == ("dog",)
    model.unfuse_qkv_projections()
    assert torch.equal(run(model), tuned) and adapters.verify_base()
    adapters.set_strengths({"dog": 0.0})
    assert torch.equal(run(model), run(base))
    adapters.clear()
    assert torch.equal(run(model), run(base)) and adapters.verify_base()


@pytest.mark.parametrize("kind", MODELS)
def test_layers_that_are_called_take_atoms_beside_joined_ones(models, kind):
    make, make_file = models
    model, other = make(kind), make(kind)
    model.fuse_qkv_projections()
    other.fuse_qkv_projections()
    file = make_file(kind, ("*.to_out.0",))
    before = run(model)
    adapters = load_atoms(model, file)
    assert not torch.equal(run(model), before) and adapters.verify_base()
    adapters.clear()
    assert torch.equal(run(model), before) and same_weights(model, copy_weights(other))


STRENGTHS = [
    {block: number} for block in ("down", "mid", "up", "down.0", "up.1") for number in (0, 0.5)
]


@pytest.mark.parametrize("strength", [*STRENGTHS, {"*": 0.3, "down": 1}, {"down": 0.2, "up": 0.7}])
@pytest.mark.parametrize("kind", ["sd3-transformer", "flux-transformer"])
def test_blocks_of_a_model_that_has_none_are_refused(models, kind, strength):
    make, make_file = models
    model = make(kind)
    before = copy_weights(model)
    with pytest.raises(AtomError, match=r"names '(down|mid|up)[.\d]*', which none of its"):
        load_atoms(model, make_file(kind, JOINED["all"]), strength=strength)
    adapters = load_atoms(model, make_file(kind, JOINED["all"]), name="dog", strength=0)
    with pytest.raises(AtomError, match=r"they are in transformer$"):
        adapters.set_strengths({"dog": strength})
    assert same_weights(model, before) and adapters.strengths == {"dog": 0}
    adapters.clear()


@pytest.mark.parametrize("kind", ["sd15-unet", "sdxl-unet"])
def test_blocks_that_a_file_of_other_blocks_lacks_are_taken(models, kind):
    make, make_file = models
    model, wanted = make(kind), {"down": 0.2, "mid": 0.5, "up": 0.7}
    file = make_file(kind, ("up_blocks.*.to_v",))
    assert load_atoms(model, file, name="dog", strength=wanted).strengths == {"dog": wanted}
