"""Laws of the atom layers: the base layer itself, with `W + ΔW` in one convolution."""

import copy

import pytest
import torch
from torch import nn

from sdatoms import AtomConfig, AtomConv2d, AtomError, AtomLinear, inject
from sdatoms.adopt import adopt

pytestmark = pytest.mark.usefixtures("one_thread")

CONVS = {
    "1x1": ((8, 12, 1), {}),
    "3x3": ((8, 12, 3), {"padding": 1}),
    "3x1": ((8, 12, (3, 1)), {}),
    "strided": ((8, 12, 3), {"stride": 2, "padding": 1}),
    "dilated": ((8, 12, 3), {"dilation": 2, "padding": "same"}),
    "grouped": ((8, 12, 3), {"groups": 4, "bias": False}),
    "depthwise": ((8, 8, 3), {"groups": 8, "padding": 1}),
    "circular": ((8, 12, 3), {"padding": 1, "padding_mode": "circular"}),
    "reflect": ((8, 12, 3), {"padding": 1, "padding_mode": "reflect"}),
    "replicate": ((8, 12, 3), {"padding": (2, 1), "padding_mode": "replicate"}),
}
VARIANTS = ["atoms", "overcomplete", "coefficients", "full"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def make_base(case):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if case == "linear":
            return nn.Linear(8, 12), (5, 8)
        args, kwargs = CONVS[case]
        return nn.Conv2d(*args, **kwargs), (2, 8, 9, 7)


def inject_one(base, variant):
    """`base` in a model of its own, with explicit numbers, so that no budget leaves it out."""
    config = AtomConfig(variant, num_inner_atoms=2, block_size=2, target_modules=("0",))
    return inject(nn.Sequential(base), config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", [*CONVS, "linear"])
def test_the_output_is_that_of_the_base_with_the_delta_added(
    rng, perturb, tolerance, case, variant, dtype
):
    base, shape = make_base(case)
    base = base.to(dtype)
    x = torch.randn(shape, generator=rng).to(dtype)
    reference = copy.deepcopy(base)
    injection = inject_one(base, variant)
    layer = injection.layers["0"]

    with torch.no_grad():
        assert torch.equal(layer(x), reference(x)), "not the same bits before training"
        perturb(injection, 0.3)
        delta = layer.delta_weight()
        assert delta.dtype == torch.float32
        wide = torch.promote_types(dtype, torch.float32)
        reference.weight.copy_((reference.weight.to(wide) + delta.to(wide)).to(dtype))
        assert float(delta.norm() / base.weight.float().norm()) > 0.1
        expected = reference(x)

    layer.train()
    torch.testing.assert_close(layer(x).detach(), expected, **tolerance[dtype])
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, **tolerance[dtype])
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).clone(), expected, **tolerance[dtype])


@pytest.mark.parametrize("case", ["3x3", "strided", "dilated", "grouped", "depthwise"])
def test_the_convolution_is_the_functional_one(rng, perturb, tolerance, case):
    base, shape = make_base(case)
    x = torch.randn(shape, generator=rng)
    layer = perturb(inject_one(base, "overcomplete")).layers["0"]

    with torch.no_grad():
        weight = base.weight + layer.delta_weight()
        expected = nn.functional.conv2d(
            x, weight, base.bias, base.stride, base.padding, base.dilation, base.groups
        )
        torch.testing.assert_close(layer(x), expected, **tolerance[torch.float32])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", [*CONVS, "linear"])
def test_a_gradient_reaches_every_atom_and_nothing_else(rng, perturb, case, variant):
    base, shape = make_base(case)
    injection = inject_one(base, variant)
    x = torch.randn(shape, generator=rng, requires_grad=True)

    injection.layers["0"](x).square().sum().backward()
    for name, parameter in injection.named_parameters():
        moves = not name.endswith("inner_coefficients")  # these wait for inner atoms off zero
        assert bool(parameter.grad.abs().sum() > 0) == moves, name
        parameter.grad = None
    perturb(injection)
    injection.layers["0"](x).square().sum().backward()

    for name, parameter in injection.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
        assert torch.isfinite(parameter.grad).all(), name
    assert x.grad.abs().sum() > 0
    assert base.weight.grad is None


@pytest.mark.parametrize("mixed", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_sum_and_not_the_delta(rng, perturb, tolerance, mixed):
    base, shape = make_base("3x3")
    x = torch.randn(shape, generator=rng)
    layer = perturb(inject_one(base, "full")).layers["0"]

    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", mixed):
            assert torch.equal(layer.delta_weight(), layer.delta_weight())
            y = layer(x)

    assert y.dtype == mixed
    torch.testing.assert_close(y.float(), expected, **tolerance[mixed])


@pytest.mark.parametrize(
    ("atom", "plain", "args"), [(AtomConv2d, nn.Conv2d, (3, 4, 3)), (AtomLinear, nn.Linear, (3, 4))]
)
def test_the_base_constructor_makes_the_base_layer(rng, atom, plain, args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = atom(*args)
        torch.manual_seed(0)
        base = plain(*args)
    x = torch.randn((2, 3, 5, 5) if plain is nn.Conv2d else (2, 3), generator=rng)

    assert isinstance(layer, plain)
    assert list(layer.state_dict()) == list(base.state_dict())
    assert torch.equal(layer(x), base(x))
    assert layer.delta_weight() is None


@pytest.mark.parametrize("case", ["3x3", "linear"])
def test_an_atom_layer_shares_all_that_the_base_has(case):
    base, _ = make_base(case)
    base.mark = object()
    layer = adopt(base)

    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert layer.mark is base.mark
    assert isinstance(layer, type(base))
    assert list(layer.state_dict()) == list(base.state_dict())
    base.to(torch.float64)
    assert layer.weight is base.weight
    assert layer.weight.dtype == torch.float64


def test_what_is_no_plain_layer_is_not_adopted():
    with pytest.raises(AtomError, match="not ConvTranspose2d"):
        adopt(nn.ConvTranspose2d(3, 4, 3))
    hooked = nn.Conv2d(3, 4, 3)
    hooked.forward = lambda x: x
    with pytest.raises(AtomError, match="replaced by another library"):
        adopt(hooked)


def test_channels_last_weights_keep_their_format(rng, perturb, tolerance):
    base, shape = make_base("3x3")
    x = torch.randn(shape, generator=rng)
    expected = perturb(inject_one(copy.deepcopy(base), "full")).layers["0"](x)
    layer = perturb(inject_one(base.to(memory_format=torch.channels_last), "full")).layers["0"]

    assert layer.tuned_weight().is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        layer(x.to(memory_format=torch.channels_last)), expected, **tolerance[torch.float32]
    )
