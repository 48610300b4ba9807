"""Laws of injection: nothing but atoms is added, and everything is put back."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.atoms import VARIANTS, find_rows
from tiny.modules import same_weights, snapshot
from torch import nn

from sdatoms import AtomConfig, AtomConv2d, AtomError, AtomLinear, inject, load_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_injection_changes_no_bit_of_the_output(make_unet, run_unet, variant):
    unet = make_unet()
    before = run_unet(unet)

    injection = inject(unet, AtomConfig(variant))

    assert torch.equal(run_unet(unet), before)
    with torch.inference_mode():
        assert torch.equal(run_unet(unet), before)
    unet.train()
    assert torch.equal(run_unet(unet), before)
    assert injection.num_parameters > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_fresh_injection_changes_no_bit_in_other_dtypes(make_unet, run_unet, dtype):
    unet = make_unet().to(dtype)
    before = run_unet(unet)

    inject(unet, AtomConfig("full"))

    assert torch.equal(run_unet(unet), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_atoms_require_grad_and_each_gets_one(make_unet, unet_inputs, perturb, variant):
    unet = make_unet()
    injection = perturb(inject(unet, AtomConfig(variant)))

    unet(**unet_inputs).sample.square().mean().backward()

    own = dict(injection.named_parameters())
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in own.values()}
    for name, parameter in own.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_train_atoms_thaws_atoms_that_others_froze(make_convnet):
    model = make_convnet()
    injection = inject(model)
    model.requires_grad_(False)
    model.head.requires_grad_(True)

    injection.train_atoms()

    assert all(p.requires_grad for p in injection.parameters())
    assert not model.head.weight.requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_eject_brings_everything_back(make_unet, run_unet, perturb, variant):
    unet = make_unet()
    unet.conv_in.train()
    unet.conv_out.weight.requires_grad_(False)
    kept = unet.conv_in.register_forward_hook(lambda *_: None)
    before, bits, output = snapshot(unet), copy.deepcopy(unet.state_dict()), run_unet(unet)

    injection = perturb(inject(unet, AtomConfig(variant)))
    assert not torch.equal(run_unet(unet), output)
    unet.conv_in.register_forward_hook(lambda *_: None)
    unet.conv_out.register_forward_pre_hook(lambda *_: None)
    unet.register_state_dict_pre_hook(lambda *_: None)
    kept.remove()
    unet.train()
    unet.requires_grad_(True)
    injection.eject()

    after = snapshot(unet)
    for name, module in before[0].items():
        assert after[0][name] is module, name
    assert before[1:] == after[1:]
    assert list(unet.state_dict()) == list(bits)
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, bits[name]), name
    assert torch.equal(run_unet(unet), output)


def test_a_second_eject_does_nothing(make_convnet):
    model = make_convnet()
    first = inject(model)
    first.eject()
    model.train()
    second = inject(model)
    first.eject()

    assert model.training
    assert model.stem is second.layers["stem"]
    with pytest.raises(AtomError, match="already carries filter atoms"):
        inject(model)


def test_layers_are_found_inside_the_wrappers_of_others(make_convnet):
    class Wrapper(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

        def forward(self, x):
            return self.base_layer(x)

    model = make_convnet()
    stem = model.stem
    injection = inject(model)
    model.stem = Wrapper(model.stem)

    injection.eject()

    assert model.stem.base_layer is stem


def test_what_carries_atoms_is_refused_in_whole_and_in_part(make_convnet):
    model = nn.Sequential(make_convnet(), nn.Conv2d(3, 8, 3))
    inject(model[0])
    with pytest.raises(AtomError, match="already carries filter atoms"):
        inject(model)


def test_what_has_baked_adapters_is_refused(make_unet, make_file):
    unet = make_unet()
    adapters = load_atoms(unet, make_file(), strength=0)
    with pytest.raises(AtomError, match=r"has baked adapters; call AdapterSet\.clear\(\)"):
        inject(unet)
    with pytest.raises(AtomError, match="has baked adapters"):
        inject(nn.Sequential(unet))
    adapters.clear()
    inject(unet)


def test_meta_models_are_refused(make_unet):
    with pytest.raises(AtomError, match="meta device"):
        inject(make_unet().to("meta"))


def test_what_is_no_model_and_no_config_is_refused(make_convnet):
    for model in (None, {"unet": make_convnet()}, "unet"):
        with pytest.raises(AtomError, match="came where a torch module fits; a pipeline's is pipe"):
            inject(model)
    with pytest.raises(AtomError, match="a str came as config where an AtomConfig fits"):
        inject(make_convnet(), "atoms")


def test_the_representation_names_views_and_atoms(make_convnet):
    model = make_convnet()
    inject(model, AtomConfig("full", num_inner_atoms=2, block_size=2))
    text = repr(model)
    assert "(stem): AtomConv2d(\n    3, 16, kernel_size=(3, 3)" in text
    assert "OvercompleteDelta(spatial, atoms=9, width=9, parameters=216)" in text
    assert "AtomDelta(joint 2x1, atoms=18, width=18, parameters=324)" in text
    assert "AtomDelta(channel 2x2, atoms=4, width=4, parameters=16)" in text


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_the_model_leaves_atoms_in_float32(make_unet, run_unet, perturb, cast):
    unet = make_unet()
    injection = perturb(inject(unet, AtomConfig("full")))
    before = injection.state_dict()

    getattr(unet, cast)()

    for name, tensor in injection.state_dict().items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, before[name]), name
    assert torch.isfinite(run_unet(unet)).all()


def test_state_dict_round_trip_and_refusals(make_unet, run_unet, perturb):
    unet, other = make_unet(), make_unet()
    injection, fresh = perturb(inject(unet)), inject(other)
    state = injection.state_dict()

    fresh.load_state_dict(state)

    assert torch.equal(run_unet(unet), run_unet(other))
    key = "conv_in.spatial.inner_atoms"
    for bad, sentence in [
        ({k: v for k, v in state.items() if k != key}, "is missing from the given"),
        (state | {"conv_in.spatial.extra": state[key]}, "fits no injected layer"),
        (state | {key: state[key][:1]}, r"has shape \(1, 1, 9\) where"),
        (state | {key: state[key] / 0}, "holds NaN or infinite"),
    ]:
        with pytest.raises(AtomError, match=sentence):
            fresh.load_state_dict(bad)
        assert same_weights(fresh, state)


SLOW = [("sparse", "coefficients"), ("sparse", "full")]
"""Sparse codes of blocks, which take their time."""


@pytest.mark.parametrize(
    ("variant", "decomposition"),
    [
        pytest.param(v, d, marks=pytest.mark.slow if (d, v) in SLOW else ())
        for v in VARIANTS
        for d in ("linear", "sparse")
    ],
)
def test_the_state_of_an_injected_model_is_a_safetensors_file(
    tmp_path, make_unet, make_convnet, perturb, variant, decomposition
):
    makers = [make_unet, make_convnet]
    if variant in ("coefficients", "full"):
        makers.append(lambda: nn.TransformerEncoderLayer(8, 2, 16))
    for make in makers:
        model = make()
        perturb(inject(model, AtomConfig(variant, decomposition=decomposition)))
        path = tmp_path / "state.safetensors"
        save_file(model.state_dict(), path)
        found = load_file(path)
        assert found.keys() == model.state_dict().keys()
        assert all(torch.equal(found[k], t) for k, t in model.state_dict().items())


class Reading(nn.Module):
    """Hands weights on to functions, as torchvision's Swin and timm's BEiT and MobileViT do."""

    def __init__(self):
        super().__init__()
        for name in ("qkv", "proj", "part", "called", "asked"):
            setattr(self, name, nn.Linear(8, 8))

    def forward(self, x):
        x = x.to(self.asked.weight.dtype)
        if isinstance(self.asked.weight, torch.Tensor):
            x = self.asked(self.called(x))
        x = nn.functional.linear(x, self.qkv.weight, bias=self.qkv.bias)
        x = nn.functional.linear(x, weight=self.proj.weight)
        return nn.functional.linear(x, self.part.weight[:4])


def test_layers_whose_weight_is_read_without_a_call_are_left_out():
    """Atoms there would train nothing, in silence."""
    model = nn.Sequential(Reading(), nn.Linear(4, 4))
    injection = inject(model, AtomConfig("coefficients", block_size=2))
    notes = {path: row.note for path, row in find_rows(injection).items() if not row.view}
    assert set(notes) == {"0.qkv", "0.proj", "0.part"}
    assert set(notes.values()) == {"left out: Reading reads its weight without calling the layer"}
    model(torch.ones(2, 8)).square().sum().backward()
    assert all(p.grad.any() for p in injection.parameters())
    with pytest.raises(AtomError, match=r"takes atoms .* reads its weight"):
        inject(nn.Sequential(Reading()), AtomConfig("coefficients", target_modules="0.qkv"))


def test_without_source_no_reading_is_seen_and_the_log_says_so(caplog):
    """As in frozen applications: layers get their atoms as if they were called."""
    code = compile(
        "class Sourceless(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.qkv = nn.Linear(8, 8)\n"
        "    def forward(self, x):\n"
        "        return nn.functional.linear(x, self.qkv.weight)\n",
        "<frozen>",
        "exec",
    )
    space = {"nn": nn, "__name__": __name__}
    exec(code, space)
    model = nn.Sequential(space["Sourceless"](), space["Sourceless"]())
    injection = inject(model, AtomConfig("coefficients", block_size=2))
    assert set(injection.layers) == {"0.qkv", "1.qkv"}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "no source of Sourceless.forward" in lines[0] and "exclude that layer" in lines[0]


def test_the_fused_transformer_path_does_not_pass_atoms_by(rng, perturb, tolerance):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 16, generator=rng)
    injection = perturb(inject(model, AtomConfig("coefficients")), 0.3)

    trained = model.train()(x).detach()
    with torch.inference_mode():
        inferred = model.eval()(x).clone()

    torch.testing.assert_close(inferred, trained, **tolerance[torch.float32])
    injection.eject()
    assert not model.layers[0]._forward_hooks


@pytest.mark.parametrize("variant", ["overcomplete", "full"])
def test_inner_coefficients_differ_between_layers_and_follow_the_seed(make_unet, variant):
    def betas(seed):
        state = inject(make_unet(), AtomConfig(variant, num_inner_atoms=1, seed=seed)).state_dict()
        return {k: v for k, v in state.items() if k.endswith("inner_coefficients")}

    a, b, c = betas(0), betas(0), betas(2**64 - 1)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not any(torch.equal(a[k], c[k]) for k in a)
    same_shape = [v for v in a.values() if v.shape == (32, 9, 1)]
    assert not torch.equal(same_shape[0], same_shape[1])


def test_a_deep_copy_of_an_injected_model_is_independent(make_unet, run_unet, perturb):
    unet = make_unet()
    injection = perturb(inject(unet))
    twin, before = copy.deepcopy(unet), run_unet(unet)
    perturb(injection)
    assert torch.equal(run_unet(twin), before)
    assert isinstance(twin.conv_in, AtomConv2d)


def test_subclasses_and_their_attributes_stay(make_convnet):
    model = make_convnet()
    inject(model, AtomConfig("full"))
    assert isinstance(model.head, AtomLinear)
    assert model.head.in_features == 48
    assert model.grouped.groups == 4
