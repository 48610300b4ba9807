"""Laws of the product that stands for a tuned weight while atoms train: the same output, the same
gradients, and never where it does not pay or would cost bits."""

import copy
from typing import Any

import pytest
import torch
from tiny.atoms import inject_one
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdatoms import AtomLinear, inject
from sdatoms.atoms.columns import WORTH

pytestmark = pytest.mark.usefixtures("one_thread")

CONVS = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "3x2, same": {"kernel_size": (3, 2), "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "uneven": {"kernel_size": (5, 3), "padding": (2, 0), "stride": (1, 2), "bias": False},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "circular"},
    "replicate": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
}
SETTINGS = ["atoms", "atoms, m < rank", "overcomplete", "coefficients", "full", "channel view"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def make_case(flavour, setting, rng, dtype=torch.float32, **asked):
    """A layer of 64 output channels, and an input for at most 12 positions: few enough for blocks
    of 2 × 2."""
    torch.manual_seed(0)
    linear = flavour == "linear"
    base = nn.Linear(6, 64) if linear else nn.Conv2d(6, 64, **CONVS[flavour])
    x = torch.randn((2, 3, 6) if linear else (1, 6, 3, 4), generator=rng)
    injection = inject_one(base.to(dtype).requires_grad_(False), setting, **asked)
    return injection, x.to(dtype).requires_grad_()


def forms_weight(layer, x):
    """Whether the layer forms `W + ΔW` for this input."""
    formed, form = [], layer.tuned_weight
    layer.tuned_weight = lambda: (formed.append(1), form())[1]
    layer(x)
    del layer.tuned_weight
    return bool(formed)


def form_output(layer: Any, x):
    """The layer's output from the tuned weight."""
    if isinstance(layer, AtomLinear):
        return nn.functional.linear(x, layer.tuned_weight(), layer.bias)
    return layer._conv_forward(x, layer.tuned_weight(), layer.bias)


def differentiate(layer, x, y, weights):
    """The gradients of every atom and of the input."""
    return torch.autograd.grad((y * weights).sum(), [*layer.deltas.parameters(), x])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("flavour", [*CONVS, "linear"])
def test_it_is_the_tuned_weight_and_so_are_its_gradients(
    rng, perturb, tolerance, flavour, setting, dtype
):
    injection, x = make_case(flavour, setting, rng, dtype)
    layer = perturb(injection, 0.3).layers["0"]
    close = tolerance[torch.float32 if dtype == torch.float64 else dtype]

    assert not forms_weight(layer, x)
    y, expected = layer(x), form_output(layer, x)

    assert y.dtype == expected.dtype and y.shape == expected.shape
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected, **close)
    weights = torch.randn(y.shape, generator=rng)
    for own, other in zip(
        differentiate(layer, x, y, weights), differentiate(layer, x, expected, weights), strict=True
    ):
        assert own.dtype == other.dtype and other.any()
        scale = float(other.abs().max())
        torch.testing.assert_close(own / scale, other / scale, **close)


@pytest.mark.parametrize("setting", ["overcomplete", "full"])
@pytest.mark.parametrize("mixed", [torch.bfloat16, torch.float16])
def test_autocast_gives_its_dtype_and_float32_gradients(rng, perturb, tolerance, setting, mixed):
    injection, x = make_case("3x3", setting, rng)
    layer = perturb(injection, 0.3).layers["0"]
    with torch.autocast("cpu", mixed):
        y = layer(x)
    assert y.dtype == mixed
    torch.testing.assert_close(y.float(), layer(x), **tolerance[mixed])
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.deltas.parameters())


def test_channels_last_in_is_channels_last_out(rng, perturb):
    injection, x = make_case("3x3", "atoms", rng)
    layer = perturb(injection, 0.3).layers["0"]
    last = x.detach().contiguous(memory_format=torch.channels_last)
    y = layer(last)
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    torch.testing.assert_close(y, layer(x))


@pytest.mark.parametrize(("worth", "formed"), [(0.25, True), (1.0, False), (2.0, False)])
def test_where_columns_pay_is_the_device_s_own(rng, perturb, monkeypatch, worth, formed):
    monkeypatch.setitem(WORTH, "cpu", worth)
    injection, x = make_case("3x3", "overcomplete", rng)
    layer = perturb(injection, 0.3).layers["0"]
    assert forms_weight(layer, torch.cat([x] * 3)) == formed, "36 positions, 64 channels"


def test_the_weight_is_formed_where_columns_do_not_pay(rng, perturb):
    injection, x = make_case("3x3", "overcomplete", rng)
    layer = perturb(injection, 0.3).layers["0"]
    assert not forms_weight(layer, torch.cat([x] * 5)), "60 positions, 64 channels"
    assert forms_weight(layer, torch.cat([x] * 6)), "72 positions, 64 channels"
    assert forms_weight(layer, x[0]), "a single picture without a batch"
    with torch.no_grad():
        assert forms_weight(layer, x), "nothing trains"
    layer.deltas.requires_grad_(False)
    assert forms_weight(layer, x), "nothing trains"

    blocks = perturb(make_case("3x3", "full", rng)[0], 0.3).layers["0"]
    assert not forms_weight(blocks, x), "12 positions times 2 × 2"
    assert forms_weight(blocks, torch.cat([x, x])), "24 positions times 2 × 2"
    stored = perturb(make_case("3x3", "overcomplete", rng, decomposition="sparse")[0], 0.3)
    assert forms_weight(stored.layers["0"], x), "codes are no product of the weight"
    grouped = inject_one(nn.Conv2d(6, 64, 3, padding=1, groups=2), "overcomplete")
    assert forms_weight(perturb(grouped, 0.3).layers["0"], x)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("flavour", ["3x3", "linear"])
def test_until_the_first_step_the_bits_are_the_base_s_with_gradients_too(rng, flavour, setting):
    injection, x = make_case(flavour, setting, rng)
    layer, plain = injection.layers["0"], injection.bases["0"]
    atoms = [p for p in layer.deltas.parameters() if not p.any()]
    assert not forms_weight(layer, x)
    y, expected = layer(x), form_output(layer, x)
    assert torch.equal(y, plain(x)) and y.stride() == expected.stride()
    weights = torch.randn(y.shape, generator=rng)
    for own, other in zip(
        *(torch.autograd.grad((out * weights).sum(), [*atoms, x]) for out in (y, expected)),
        strict=True,
    ):
        assert own.any()
        torch.testing.assert_close(own, other)

    copied = copy.deepcopy(layer)
    optimizer = torch.optim.SGD(atoms, lr=0.1)
    layer(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(layer(x), plain(x))
    assert torch.equal(copied(x), plain(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x)), "a copy's atoms are not at zero"


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_saves_nothing_as_large_as_the_weight(rng, perturb, setting):
    base = nn.Conv2d(64, 256, 3, padding=1)
    layer = perturb(inject_one(base, setting), 0.3).layers["0"]
    x = torch.randn(1, 64, 2, 2, generator=rng)
    sizes = []

    def note(tensor):
        if tensor.untyped_storage().data_ptr() != layer.weight.untyped_storage().data_ptr():
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    assert sizes and max(sizes) < layer.weight.numel() // 4


@pytest.mark.parametrize("setting", ["overcomplete", "full"])
def test_a_compiled_model_takes_it_too(rng, perturb, setting):
    injection, x = make_case("3x3", setting, rng)
    perturb(injection, 0.3)
    expected = injection.model(x)
    gradients = torch.autograd.grad(expected.square().sum(), list(injection.parameters()))
    y = torch.compile(injection.model, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    for parameter, gradient in zip(injection.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_checkpointed_model_takes_it_too(rng, perturb):
    injection, x = make_case("3x3", "full", rng)
    perturb(injection, 0.3)
    expected = injection.model(x)
    y = checkpoint(injection.model, x, use_reentrant=False)
    assert torch.equal(y, expected)
    weights = torch.randn(y.shape, generator=rng)
    own, other = (
        torch.autograd.grad((out * weights).sum(), list(injection.parameters()))
        for out in (y, expected)
    )
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_lora_beside_it_gives_the_sum(rng, perturb):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 64, 3, padding=1)).requires_grad_(False)
    injection = perturb(inject(model), 0.3)
    x = torch.randn(1, 6, 3, 4, generator=rng)
    alone, plain = injection.model(x), form_output(injection.layers["0"], x)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), model
    )
    for parameter in injection.parameters():
        parameter.requires_grad_(True)
    lora: Any = model[0]
    added = lora.lora_B["default"](lora.lora_A["default"](x)) * lora.scaling["default"]
    torch.testing.assert_close(model(x), alone + added)
    torch.testing.assert_close(alone, plain)


def test_a_resumed_layer_goes_the_way_the_uninterrupted_one_goes(rng, perturb):
    injection, x = make_case("3x3", "overcomplete", rng)
    perturb(injection, 0.3)
    other, _ = make_case("3x3", "overcomplete", rng)
    other.load_state_dict(injection.state_dict())
    assert not forms_weight(other.layers["0"], x)
    assert torch.equal(other.layers["0"](x), injection.layers["0"](x))
