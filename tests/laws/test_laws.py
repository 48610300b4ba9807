"""Every law of a tuned layer, in every cell of flavour × setting × decomposition × dtype.

Quantized layers have no dtype of their own and no sparse atoms: `test_quantized.py` is theirs.
"""

import copy
import math

import pytest
import torch
from tiny.atoms import DTYPES, SETTINGS, inject_one
from tiny.modules import FLAVOURS, make_base
from torch import nn

from sdatoms import load_atoms, read_atoms, save_atoms
from sdatoms.layers.atom_layers import AtomLayer
from sdatoms.layers.weights import find_weight

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODED = (torch.float32, torch.bfloat16)
PLAIN, RICH = ("3x3", "attention"), "full, 12 atoms"
"""Flavours that see every setting in every dtype, and the setting that every flavour sees so, with
the fast tests; the slow ones see all of all."""


def is_fast(case, setting, decomposition, dtype):
    """A sum in another dtype is the same code for all: what it rounds to is seen once of each."""
    plain = decomposition == "linear" and case in PLAIN
    return dtype == torch.float32 or setting == RICH or plain


CELLS = [
    pytest.param(cell, marks=() if is_fast(*cell) else pytest.mark.slow)
    for case in FLAVOURS
    for decomposition in ("linear", "sparse")
    for setting in SETTINGS
    if decomposition == "linear" or "block_form" not in SETTINGS[setting]
    for dtype in DTYPES
    # Codes are found in float32 whatever the weight's dtype: one setting shows it of all four.
    if decomposition == "linear" or dtype in ENCODED or setting == RICH
    for cell in [(case, setting, decomposition, dtype)]
]


def name_cell(value):
    return str(value).removeprefix("torch.")


@pytest.fixture
def cell(request, rng):
    """The injected model, a copy of its base, and an input."""
    case, setting, decomposition, dtype = request.param
    base, shape = make_base(case)
    # torch multiplies transposed inputs in another order when a weight asks for a gradient.
    base = base.to(dtype).eval().requires_grad_(False)
    x = torch.randn(shape, generator=rng).to(dtype)
    plain = nn.Sequential(copy.deepcopy(base)).eval()
    return inject_one(base, setting, decomposition=decomposition), plain, x


@pytest.mark.parametrize("cell", CELLS, indirect=True, ids=lambda c: "-".join(map(name_cell, c)))
def test_every_law_holds(cell, perturb, tolerance, tmp_path):
    injection, plain, x = cell
    model, close = injection.model, tolerance[x.dtype]

    with torch.no_grad():
        assert torch.equal(model(x), plain(x)), "not the same bits before training"
    check_counts(injection)
    perturb(injection, 0.3)
    tuned = add_deltas(plain, injection)
    check_modes(model, plain, tuned, x, close)
    check_gradients(injection, x)
    check_training(injection, x)
    assert model.state_dict().keys() > plain.state_dict().keys(), "base keys were renamed"
    # A file's delta is formed in float32 too, in another order.
    close = tolerance[torch.float32 if x.dtype == torch.float64 else x.dtype]
    check_file(injection, plain, x, close, tmp_path / "a.safetensors")
    injection.eject()
    assert not any(isinstance(m, AtomLayer) for m in model.modules())
    assert model.state_dict().keys() == plain.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[key]), key


def check_counts(injection):
    """As many numbers as the page's formulas say."""
    for path, weight in injection.weights.items():
        found = {view: sum(p.numel() for p in d.parameters()) for view, d in weight.views.items()}
        expected = count_numbers(weight.base, injection.config)
        for view, delta in weight.views.items():
            if delta.keeper:  # what is shared counts with the layer that keeps it
                kept = delta.keeper.named_parameters()
                expected[view] -= sum(p.numel() for name, p in kept if name.startswith("shared_"))
        assert found == expected, path
    assert injection.num_parameters == sum(row.parameters for row in injection.report())


def count_numbers(base, config):
    """View → numbers of one weight `(g·o, i, *kernel)`."""
    o, i, g = base.shape[0] // base.groups, base.shape[1], base.groups
    p = math.prod(base.shape[2:])
    variant, spatial = config.variant, p > 1
    wants = {"spatial": spatial and variant != "coefficients", "block": variant[0] in "cf"}
    wants["block"] |= not spatial  # named by the caller
    if spatial and g > 1 and i == 1:
        wants, variant = {"spatial": True}, variant.replace("coefficients", "atoms")
    found = {}
    if wants["spatial"]:
        most = p if config.decomposition == "linear" else 8 * p
        m, m1 = min(config.num_atoms or p, most, o * i * g), config.num_inner_atoms
        if variant == "atoms" and config.num_atoms is None:
            m = min(m, o * i * g * p // 4 // p)  # at most a quarter of the layer's numbers
        found["spatial"] = m * p if variant == "atoms" else g * i * m * m1 + m * m1 * p
    if wants.get("block") and config.block_form == "product":
        side = lambda n: max(b for b in range(1, config.block_size + 1) if n % b == 0)
        bo, bi = side(o), side(i)
        shared = config.block_factors == "shared"
        found["block"] = bo**2 + bi**2 if shared else g * (o * bo + i * bi)
    elif wants.get("block") and config.block_form == "shared":
        if i > 1:
            rows = g * o * p if config.block_factors == "each" else i
            found["block"] = (rows + i) * min(config.block_atoms or 4, i)
    elif wants.get("block"):
        side = lambda n: max(b for b in (1, config.block_size) if n % b == 0)
        width = side(o) * side(i) * (p if config.block_view == "joint" else 1)
        height = g * o * i * p // width
        asked = config.block_atoms or width
        if config.block_share:
            asked = max(1, math.floor(config.block_share * height))
        found["block"] = min(asked, width, height) * width
    return found


def add_deltas(plain, injection):
    """A copy of the base with `W + ΔW` written into it, summed as wide as float32 at least."""
    tuned = copy.deepcopy(plain)
    for path, weight in injection.weights.items():
        with torch.no_grad():
            delta = sum(delta(weight.base.weight) for delta in weight.views.values())
            target = find_weight(tuned, path).weight
            assert delta.dtype == torch.float32
            assert float(delta.norm() / target.float().norm()) > 0.1
            wide = torch.promote_types(target.dtype, torch.float32)
            target.copy_(target.to(wide) + delta)
    return tuned


def check_modes(model, plain, tuned, x, close):
    """Train mode, eval and no_grad, and inference mode compute the tuned base."""
    with torch.no_grad():
        expected = tuned(x)
        assert not torch.equal(expected, plain(x))
        torch.testing.assert_close(model(x), expected, **close)
    torch.testing.assert_close(model.train()(x).detach(), expected, **close)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x).clone(), expected, **close)


def check_gradients(injection, x):
    """A gradient reaches every atom, the input, and nothing else."""
    x = x.clone().requires_grad_()
    injection.model(x).square().sum().backward()
    own = dict(injection.named_parameters())
    for name, parameter in own.items():
        assert parameter.requires_grad and parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
    assert x.grad.any()
    ids = {id(p) for p in own.values()}
    others = [p for p in injection.model.parameters() if id(p) not in ids]
    assert others and all(p.grad is None and not p.requires_grad for p in others)


def check_training(injection, x):
    """Two steps lower the loss and move every atom, also under an optimizer over everything."""
    before = {name: p.detach().clone() for name, p in injection.named_parameters()}
    optimizer = torch.optim.AdamW(injection.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = injection.model(x).float().square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    for name, parameter in injection.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def check_file(injection, plain, x, close, path):
    """A fresh base with the file is the injected model; strength 0 and clear are the base."""
    model = copy.deepcopy(plain)
    save_atoms(path, {"model": injection})
    file = read_atoms(path)
    assert file.config == injection.config
    assert file.num_parameters == injection.num_parameters
    adapters = load_atoms(model, path, name="a")
    with torch.no_grad():
        torch.testing.assert_close(model(x), injection.model(x), **close)
    for where, weight in injection.weights.items():
        live = sum(delta(weight.base.weight) for delta in weight.views.values()).detach()
        torch.testing.assert_close(adapters.delta("a", where), live, rtol=1e-4, atol=1e-6)
    adapters.set_strengths({"a": 0})
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    adapters.clear()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[key]), key
