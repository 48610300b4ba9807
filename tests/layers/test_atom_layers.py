"""Laws of the atom layers: the base layer itself, with `W + ΔW` in one convolution.

Those that hold in every flavour, variant, decomposition and dtype are in `test_laws.py`.
"""

import copy
from collections import Counter

import pytest
import torch
from tiny.atoms import VARIANTS, inject_one
from tiny.modules import make_base
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdatoms import (
    AtomConfig,
    AtomConv1d,
    AtomConv2d,
    AtomConv3d,
    AtomLinear,
    inject,
    load_atoms,
    read_atoms,
    save_atoms,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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


class Counting(TorchDispatchMode):
    """Counts the calls of every operator."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_takes_one_convolution_a_layer(rng, variant):
    base, shape = make_base("3x3")
    layer = inject_one(base, variant).layers["0"]
    x = torch.randn(shape, generator=rng, requires_grad=True)

    with Counting() as counting:
        layer(x).square().sum().backward()

    convolutions = {k: n for k, n in counting.calls.items() if "convolution" in k}
    assert convolutions == {"aten::convolution": 1, "aten::convolution_backward": 1}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", ["3x3", "depthwise", "linear"])
def test_inner_coefficients_wait_for_inner_atoms_off_zero(rng, case, variant):
    base, shape = make_base(case)
    injection = inject_one(base, variant)
    x = torch.randn(shape, generator=rng)

    injection.layers["0"](x).square().sum().backward()

    for name, parameter in injection.named_parameters():
        assert bool(parameter.grad.any()) == (not name.endswith("inner_coefficients")), name


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


def test_one_module_under_two_names_is_one_layer_under_both(rng, perturb):
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    injection = perturb(inject(model, AtomConfig("atoms")))
    assert list(injection.layers) == ["a"]
    assert model["b"][0] is model["a"] is injection.layers["a"]
    injection.eject()
    assert model["b"][0] is model["a"] is shared
