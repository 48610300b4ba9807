"""Laws of company with PEFT: LoRA around atom layers, under them, and merged."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from tiny.modules import SelfAttention, build
from torch import nn

from sdatoms import AtomConfig, AtomConv2d, AtomError, AtomLinear, inject, load_atoms, save_atoms
from sdatoms.files.writer import pack_atoms
from sdatoms.layers.weights import find_weight

pytestmark = pytest.mark.usefixtures("one_thread")


CONFIG = AtomConfig("full", num_inner_atoms=2, block_size=2)


LORA = {
    "r": 4,
    "target_modules": ["stem", "pointwise", "head"],
    "init_lora_weights": False,
}


@pytest.fixture
def x(rng):
    return torch.randn(2, 3, 9, 9, generator=rng)


def add_lora(model, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return inject_adapter_in_model(LoraConfig(**LORA | settings), model)


def layer_sum(base, layer, lora, x):
    """`x` through the base layer, plus what atoms and LoRA add to it, each computed alone."""
    plain = base(x)
    return plain + (layer(x) - plain) + (lora(x) - plain)


@pytest.mark.parametrize("first", ["atoms", "lora"])
@pytest.mark.parametrize("path", ["stem", "pointwise", "head"])
def test_lora_and_atoms_give_the_sum_whichever_came_first(
    rng, make_convnet, perturb, tolerance, path, first
):
    base = make_convnet().get_submodule(path)
    tuned, adapted, both = make_convnet(), add_lora(make_convnet()), make_convnet()
    perturb(inject(tuned, CONFIG))
    if first == "atoms":
        injection = perturb(inject(both, CONFIG))
        add_lora(both)
    else:
        injection = perturb(inject(add_lora(both), CONFIG))
    shape = (2, base.in_features) if path == "head" else (2, base.in_channels, 6, 6)
    x = torch.randn(shape, generator=rng)

    with torch.no_grad():
        expected = layer_sum(base, *(m.get_submodule(path) for m in (tuned, adapted)), x)
        found = both.get_submodule(path)(x)

    torch.testing.assert_close(found, expected, **tolerance[torch.float32])
    assert both.get_submodule(path).base_layer is injection.layers[path]
    assert {row.path for row in injection.report()} == {
        "stem", "depthwise", "pointwise", "grouped", "head",
    }  # fmt: skip


@pytest.mark.parametrize("first", ["atoms", "lora"])
def test_eject_finds_layers_behind_wrappers_and_leaves_lora(
    x, make_convnet, perturb, tolerance, first
):
    model = make_convnet()
    expected = add_lora(make_convnet())(x).detach()
    if first == "lora":
        add_lora(model)
    bases = {path: m for path, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    injection = perturb(inject(model, CONFIG))
    if first == "atoms":
        add_lora(model)
    assert not torch.equal(model(x), expected)

    injection.eject()

    torch.testing.assert_close(model(x).detach(), expected, **tolerance[torch.float32])
    for path, base in bases.items():
        if first == "atoms" and path in LORA["target_modules"]:
            path = f"{path}.base_layer"
        assert model.get_submodule(path) is base, path
    assert not any(isinstance(m, AtomConv2d | AtomLinear) and m.deltas for m in model.modules())


@pytest.mark.parametrize("first", ["atoms", "lora"])
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("decomposition", ["linear", "sparse"])
@pytest.mark.parametrize("path", ["stem", "head"])
def test_a_merged_lora_and_atoms_are_the_same_sum(
    rng, make_convnet, perturb, tolerance, path, decomposition, first, safe
):
    """PEFT's `merge` writes W + L where atoms read W; they go on reading W."""
    model = make_convnet()
    if first == "lora":
        model = add_lora(model)
    injection = perturb(inject(model, replace(CONFIG, decomposition=decomposition)))
    if first == "atoms":
        model = add_lora(model)
    for whole in (model, copy.deepcopy(model)):
        wrapper = whole.get_submodule(path)
        layer = wrapper.base_layer
        sides = (layer.in_features,) if path == "head" else (layer.in_channels, 6, 6)
        x = torch.randn(2, *sides, generator=rng)
        with torch.no_grad():
            apart, delta = wrapper(x), layer.delta_weight()
            wrapper.merge(safe_merge=safe)
            torch.testing.assert_close(wrapper(x), apart, **tolerance[torch.float32])
            torch.testing.assert_close(layer.delta_weight(), delta, **tolerance[torch.float32])
        with torch.enable_grad():
            torch.testing.assert_close(wrapper(x), apart, **tolerance[torch.float32])
        with torch.no_grad():
            wrapper.unmerge()
            torch.testing.assert_close(wrapper(x), apart, **tolerance[torch.float32])
    assert injection.layers


def test_what_cannot_be_told_from_a_weight_is_refused_while_merged(make_convnet, perturb):
    model = make_convnet()
    perturb(inject(model, CONFIG))
    config = LoraConfig(r=2, target_modules=["head"], use_dora=True, init_lora_weights=False)
    model = inject_adapter_in_model(config, model)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        apart = model(x)
        model.head.merge()
        with pytest.raises(
            AtomError, match=r"only a plain LoRA can be told apart.*unmerge_adapter"
        ):
            model(x)
        model.head.unmerge()
        torch.testing.assert_close(model(x), apart, rtol=1e-4, atol=1e-5)


def make_attending(lora=False):
    model = build(SelfAttention).eval()
    return add_lora(model, r=2, target_modules=["attn"]) if lora else model


def merge_lora(model):
    """Plain attention with the weights that PEFT's LoRA computes with."""
    model = copy.deepcopy(model)
    model.attn.merge()
    base = model.attn.get_base_layer()
    plain = SelfAttention().eval()
    with torch.no_grad():
        plain.attn.in_proj_weight.copy_(base.in_proj_weight)
        plain.attn.in_proj_bias.copy_(base.in_proj_bias)
        plain.attn.out_proj.weight.copy_(base.out_proj.get_base_layer().weight)
        plain.attn.out_proj.bias.copy_(base.out_proj.get_base_layer().bias)
    return plain


@pytest.mark.parametrize("first", ["atoms", "lora"])
def test_lora_on_attention_adds_to_injected_atoms(rng, perturb, tolerance, first):
    """PEFT merges into the weights of nn.MultiheadAttention on every call: the same law."""
    config = AtomConfig("coefficients", block_size=2)
    model = make_attending(lora=first == "lora")
    injection = perturb(inject(model, config), 0.3)
    if first == "atoms":
        add_lora(model, r=2, target_modules=["attn"])
    merged = merge_lora(make_attending(lora=True))
    x = torch.randn(2, 5, 8, generator=rng)
    with torch.no_grad():
        only_lora, plain = merged(x), make_attending()
        for path, tuned in injection.weights.items():
            base = find_weight(plain, path).weight
            find_weight(merged, path).weight.add_(sum(d(base) for d in tuned.views.values()))
        torch.testing.assert_close(model(x), merged(x), **tolerance[torch.float32])
        torch.testing.assert_close(model(x), merged(x), **tolerance[torch.float32])  # unmerged well
    injection.eject()
    with torch.no_grad():
        torch.testing.assert_close(model(x), only_lora, **tolerance[torch.float32])


@pytest.mark.filterwarnings("ignore:A.*lready")  # PEFT meets the inner layer of its own twice
@pytest.mark.parametrize("variant", ["coefficients", "full"])
@pytest.mark.parametrize("first", ["atoms", "lora"])
@pytest.mark.parametrize("safe", [False, True])
def test_what_peft_merges_into_attention_changes_no_output(
    rng, perturb, tolerance, variant, first, safe
):
    """As PEFT's own tests of merging: merged, unmerged, merged twice, and merged for good."""
    config, x = AtomConfig(variant, block_size=2), torch.randn(2, 5, 8, generator=rng)
    settings = {"target_modules": ["attn"], "r": 2, "init_lora_weights": False}
    model = make_attending()
    if first == "atoms":
        perturb(inject(model, config), 0.3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = get_peft_model(model, LoraConfig(**settings))
        adapted.add_adapter("other", LoraConfig(**settings))
    if first == "lora":
        perturb(inject(adapted.get_base_model(), config), 0.3)
    adapted.eval()

    def check(model, expected):
        torch.testing.assert_close(model(x), expected, **tolerance[torch.float32])

    with torch.no_grad():
        apart = adapted(x)
        for names in (["default"], None):
            adapted.merge_adapter(names, safe_merge=safe)
            check(adapted, apart)
            assert len(list(adapted.modules())) > 1  # PEFT registers the merged weights anew
            check(adapted, apart)
            adapted.unmerge_adapter()
            check(adapted, apart)
        adapted.set_adapter("other")
        apart = adapted(x)
        check(adapted.merge_and_unload(safe_merge=safe), apart)


def test_lora_on_attention_adds_to_a_loaded_file(rng, perturb, tolerance):
    config = AtomConfig("coefficients", block_size=2)
    injection = perturb(inject(make_attending(), config), 0.3)
    file = pack_atoms({"model": injection})
    model, expected = make_attending(lora=True), merge_lora(make_attending(lora=True))
    adapters = load_atoms(model, file, name="a")
    x = torch.randn(2, 5, 8, generator=rng)
    with torch.no_grad():
        for path in injection.weights:
            find_weight(expected, path).weight.add_(adapters.delta("a", path))
        torch.testing.assert_close(model(x), expected(x), **tolerance[torch.float32])


def test_files_of_a_wrapped_model_fit_the_plain_one(tmp_path, make_convnet, perturb):
    plain, wrapped = make_convnet(), add_lora(make_convnet())
    injection = perturb(inject(wrapped, CONFIG))
    path = save_atoms(tmp_path / "a", {"model": injection})
    delta = load_atoms(plain, path, name="a").delta("a", "stem")
    torch.testing.assert_close(delta, injection.layers["stem"].delta_weight().detach())


def test_training_goes_on_after_peft_froze_the_atoms(x, make_convnet, perturb):
    model = make_convnet()
    injection = perturb(inject(model, CONFIG))
    with torch.random.fork_rng():
        adapted = get_peft_model(model, LoraConfig(**LORA))
    assert not any(p.requires_grad for p in injection.parameters())

    injection.train_atoms()
    adapted(x).square().sum().backward()

    assert all(p.grad.abs().sum() > 0 for p in injection.parameters())
