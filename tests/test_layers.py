"""Laws of the atom layers: the base layer itself, with `W + ΔW` in one convolution."""

import copy

import pytest
import torch
from torch import nn

from sdatoms import (
    AtomConfig,
    AtomConv1d,
    AtomConv2d,
    AtomConv3d,
    AtomError,
    AtomLinear,
    inject,
    load_atoms,
    read_atoms,
    save_atoms,
)
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
    "depthwise 7x7": ((8, 8, 7), {"groups": 8, "padding": 3}),
    "depthwise multiplier": ((8, 16, 3), {"groups": 8, "bias": False}),
    "all at once": (
        (8, 12, (3, 2)),
        {"stride": (2, 1), "dilation": (1, 2), "groups": 2, "padding": (1, 0)},
    ),
    "circular": ((8, 12, 3), {"padding": 1, "padding_mode": "circular"}),
    "reflect": ((8, 12, 3), {"padding": 1, "padding_mode": "reflect"}),
    "replicate": ((8, 12, 3), {"padding": (2, 1), "padding_mode": "replicate"}),
    "1d": ((8, 12, 5), {"padding": 2, "stride": 2}),
    "1d depthwise": ((8, 8, 3), {"groups": 8, "padding": 1, "padding_mode": "circular"}),
    "3d": ((4, 6, 3), {"padding": 1, "groups": 2}),
    "3d 1x3x2": ((4, 6, (1, 3, 2)), {"padding_mode": "replicate", "padding": (0, 1, 0)}),
}
VARIANTS = ["atoms", "overcomplete", "coefficients", "full"]
SETTINGS = {
    **{variant: {"variant": variant} for variant in VARIANTS},
    "atoms, m < rank": {"variant": "atoms", "num_atoms": 2, "block_atoms": 3},
    "full, m < rank": {"variant": "full", "num_atoms": 2, "block_atoms": 3},
    "channel view": {"variant": "full", "block_view": "channel"},
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def make_base(case):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if case == "linear":
            return nn.Linear(8, 12), (5, 8)
        args, kwargs = CONVS[case]
        if case.startswith("1d"):
            return nn.Conv1d(*args, **kwargs), (2, 8, 9)
        if case.startswith("3d"):
            return nn.Conv3d(*args, **kwargs), (2, 4, 3, 5, 4)
        return nn.Conv2d(*args, **kwargs), (2, 8, 9, 7)


def inject_one(base, setting):
    """`base` in a model of its own, with explicit numbers, so that no budget leaves it out."""
    numbers = {"num_inner_atoms": 2, "block_size": 2, "target_modules": ("0",)}
    return inject(nn.Sequential(base), AtomConfig(**numbers, **SETTINGS[setting]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("case", [*CONVS, "linear"])
def test_the_output_is_that_of_the_base_with_the_delta_added(
    rng, perturb, tolerance, case, setting, dtype
):
    base, shape = make_base(case)
    base = base.to(dtype)
    x = torch.randn(shape, generator=rng).to(dtype)
    reference = copy.deepcopy(base)
    injection = inject_one(base, setting)
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
    ("atom", "plain", "args"),
    [
        (AtomConv1d, nn.Conv1d, (3, 4, 3)),
        (AtomConv2d, nn.Conv2d, (3, 4, 3)),
        (AtomConv3d, nn.Conv3d, (3, 4, 3)),
        (AtomLinear, nn.Linear, (3, 4)),
    ],
)
def test_the_base_constructor_makes_the_base_layer(rng, atom, plain, args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = atom(*args)
        torch.manual_seed(0)
        base = plain(*args)
    x = torch.randn(2, 3, *[5] * (base.weight.dim() - 2), generator=rng)

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
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(3, 4, 3))
    note = "ConvTranspose2d spreads its input, and filter atoms fit plain convolutions only"
    assert note in inject(model, AtomConfig("atoms")).report()[0].note
    with pytest.raises(AtomError, match=f"under 0; left out: {note}"):
        inject(nn.Sequential(model[0]), AtomConfig(target_modules="0"))
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


@pytest.mark.parametrize("case", ["1d", "1d depthwise", "3d", "3d 1x3x2", "all at once"])
def test_files_of_any_convolution_bake_and_clear(tmp_path, rng, perturb, tolerance, case):
    base, shape = make_base(case)
    x, pristine = torch.randn(shape, generator=rng), base.weight.detach().clone()
    plain = nn.Sequential(copy.deepcopy(base))
    injection = perturb(inject_one(base, "full"), 0.3)
    path = save_atoms(tmp_path / "a", {"model": injection})

    adapters = load_atoms(plain, path)

    with torch.no_grad():
        torch.testing.assert_close(plain(x), injection.model(x), **tolerance[torch.float32])
    layout = read_atoms(path).layers["model.0"]
    assert layout["kernel"] == list(base.kernel_size)
    adapters.clear()
    assert torch.equal(plain[0].weight, pristine)


def test_layers_of_other_libraries_are_left_out_by_name():
    from transformers.pytorch_utils import Conv1D

    class Scaled(nn.Linear):
        """A subclass whose forward may do anything."""

    parametrized = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    model = nn.Sequential(Conv1D(4, 4), Scaled(4, 4), parametrized, nn.Linear(4, 4))
    notes = [row.note for row in inject(model, AtomConfig("coefficients")).report()]
    assert notes[:3] == [
        "left out: Conv1D is a layer of another library",
        "left out: Scaled is a layer of another library",
        "left out: its weight is computed from others (weight_norm, pruning?)",
    ]


@pytest.mark.parametrize("lazy", [nn.LazyLinear(4), nn.LazyConv2d(4, 3)])
def test_layers_without_weights_are_refused(lazy):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), lazy)
    with pytest.raises(AtomError, match="no weights yet; run it once before injecting"):
        inject(model, AtomConfig("full"))
    assert type(model[0]) is nn.Conv2d
    assert model[0].weight.requires_grad


def test_one_module_under_two_names_is_one_layer_under_both(rng, perturb):
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    injection = perturb(inject(model, AtomConfig("atoms")))
    assert list(injection.layers) == ["a"]
    assert model["b"][0] is model["a"] is injection.layers["a"]
    injection.eject()
    assert model["b"][0] is model["a"] is shared
