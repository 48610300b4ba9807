"""Laws of atoms on bitsandbytes layers: frozen, never baked, nothing weight-sized kept."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from sdatoms import AtomConfig, AtomError, inject, load_atoms, save_atoms
from sdatoms.adapters.bake import bake_injection
from sdatoms.files.writer import pack_atoms

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = AtomConfig("coefficients", block_size=4)
PRODUCT = AtomConfig("coefficients", block_form="product", block_size=16)
SHARED = AtomConfig("coefficients", block_form="shared")
KINDS = {
    "nf4": lambda i, o: bnb.nn.Linear4bit(i, o, quant_type="nf4"),
    "fp4": lambda i, o: bnb.nn.Linear4bit(i, o, quant_type="fp4", compress_statistics=False),
    "nf4 class": lambda i, o: bnb.nn.LinearNF4(i, o, bias=False),
    "fp4 class": lambda i, o: bnb.nn.LinearFP4(i, o),
    "bfloat16": lambda i, o: bnb.nn.Linear4bit(i, o, compute_dtype=torch.bfloat16),
    "int8": lambda i, o: bnb.nn.Linear8bitLt(i, o, has_fp16_weights=False),
}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def make_model(kind, quantize=True):
    """A quantized layer of 128 × 64 weights, which every packing fits, and a plain one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(KINDS[kind](128, 64), nn.Linear(64, 8))
    # bitsandbytes quantizes on the first move to a device, the CPU included.
    return model.to("cpu") if quantize else model


def read_plainly(layer):
    """The dequantized weight by bitsandbytes' own functions, from a layer that never ran."""
    if isinstance(layer, bnb.nn.Linear8bitLt):
        return layer.weight.CB.float() * layer.weight.SCB[:, None] / 127
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


@pytest.fixture
def x(rng):
    return torch.randn(3, 5, 128, generator=rng)


@pytest.mark.parametrize("config", [CONFIG, PRODUCT, SHARED], ids=["map", "product", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_modes_multiply_with_the_dequantized_weight_and_the_delta(x, perturb, kind, config):
    model = make_model(kind)
    weight, bias = read_plainly(model[0]), model[0].bias
    injection = perturb(inject(model, config), 0.1)
    layer = injection.layers["0"]
    dtype = getattr(layer, "compute_dtype", None) or torch.float32

    tuned = (weight + injection.weights["0"].views["block"](weight)).detach()
    expected = x.to(dtype) @ tuned.to(dtype).T + (0 if bias is None else bias.to(dtype))
    expected = expected.float()
    tolerance = TOLERANCE if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}

    torch.testing.assert_close(layer(x).detach(), expected, **tolerance)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, **tolerance)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).clone(), expected, **tolerance)
    torch.testing.assert_close(layer.delta_weight(), tuned - weight, **TOLERANCE)
    assert (tuned - weight).norm() > 0.05 * weight.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_injection_computes_what_the_base_does(x, kind):
    model = make_model(kind)
    # Gradients keep bitsandbytes' own layer from the kernels that round the scales.
    x.requires_grad_(True)
    before = model.train()(x)
    base, bits = model[0], copy.deepcopy(model[0].weight.data)
    injection = inject(model, CONFIG)

    after = model(x)

    if kind == "int8":  # bitsandbytes rounds the input to 8 bits too; the atom layer does not
        assert (after - before).norm() < 0.02 * before.norm()
    else:
        assert torch.equal(after, before)
    assert type(injection.layers["0"]) is not type(base)
    assert isinstance(injection.layers["0"], type(base))
    assert injection.layers["0"].weight is base.weight
    injection.eject()
    assert model[0] is base
    assert torch.equal(model[0].weight.data, bits)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gradients_are_those_of_a_plain_layer_of_that_weight(x, perturb, kind):
    model = make_model(kind)
    plain = nn.Sequential(nn.Linear(128, 64), copy.deepcopy(model[1]))
    with torch.no_grad():
        plain[0].weight.copy_(read_plainly(model[0]))
        plain[0].bias.copy_(model[0].bias)
    runs = []
    for net in (model, plain):
        injection = perturb(inject(net, CONFIG))
        inputs = x.clone().requires_grad_(True)
        net(inputs).square().sum().backward()
        runs.append([inputs.grad, *(p.grad for p in injection.parameters())])

    for found, expected in zip(*runs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_autograd_keeps_nothing_of_the_size_of_the_weight(x, perturb, kind):
    def kept(net):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            net(x).sum()
        return max(sizes, default=0)

    model = nn.Sequential(make_model(kind)[0])
    perturb(inject(model, CONFIG))
    plain = nn.Sequential(nn.Linear(128, 64))
    perturb(inject(plain, CONFIG))

    assert kept(plain) >= 128 * 64
    assert kept(model) < 128 * 64


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_files_attach_to_quantized_layers_and_never_bake(tmp_path, x, perturb, kind):
    trained, model = make_model(kind), make_model(kind)
    injection = perturb(inject(trained, CONFIG), 0.1)
    path = save_atoms(tmp_path / "a", {"model": injection})
    base, plain = model[0], make_model(kind)
    bits = base.weight.data.clone()
    keys = list(model.state_dict())
    with torch.no_grad():
        expected, start = trained(x), model.train()(x.requires_grad_(True)).detach()
    one = nn.Sequential(model[0])

    adapters = load_atoms(model, path, name="a")

    assert isinstance(model[0], type(base))
    assert torch.equal(model[0].weight.data, bits)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-3, atol=1e-4)
    assert adapters.verify_base()
    assert list(model.state_dict()) == keys
    assert not list(model[0].deltas.parameters())
    weight = read_plainly(plain[0])
    for strength in (0.5, -2.0):
        adapters.set_strengths({"a": strength})
        tuned = weight + strength * adapters.delta("a", "0")
        torch.testing.assert_close(
            model[0](x).detach(),
            nn.functional.linear(x.detach(), tuned, base.bias.detach()),
            rtol=1e-3,
            atol=1e-3,
        )
    adapters.load(path, name="b", strength=2.0)
    torch.testing.assert_close(model(x).detach(), start, rtol=0.02, atol=0.02)
    adapters.set_strengths({"a": 0, "b": 0})
    assert model[0] is base
    assert torch.equal(model(x), start)
    adapters.set_strengths({"a": 1})
    adapters.clear()
    assert model[0] is base
    assert one[0] is base
    assert torch.equal(base.weight.data, bits)
    assert adapters.verify_base()
    assert torch.equal(model(x), start)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_layout_for_some_processors_is_read_too(tmp_path, x, perturb, kind):
    model, never_ran = make_model(kind), make_model(kind)
    weight = read_plainly(never_ran[0])
    path = save_atoms(tmp_path / "a", {"model": perturb(inject(never_ran, CONFIG), 0.1)})
    adapters = load_atoms(model, path, name="a")
    adapters.clear()
    with torch.no_grad():
        model.eval()(x)  # packs the weight, where the processor has the instructions
    packed = getattr(model[0].weight.quant_state, "packing_format_for_cpu", False)
    if not packed:
        pytest.skip("this processor computes in the common layout")

    assert adapters.verify_base()
    injection = inject(model, CONFIG)
    found = injection.weights["0"].base.weight.float()
    assert (found - weight).norm() < 4e-3 * weight.norm()  # its scales are bfloat16


def test_atoms_attach_to_their_own_model_for_a_while(x, perturb):
    model, fresh = make_model("nf4"), make_model("nf4")
    injection = perturb(inject(model, CONFIG), 0.1)
    file, bits = pack_atoms({"model": injection}), model[0].weight.data.clone()
    load_atoms(fresh, file)
    with torch.no_grad():
        live = model(x)
        perturb(injection, 0.3)
        with bake_injection(injection, file.tensors, "model"):
            assert torch.equal(model(x), fresh(x))
        assert not torch.allclose(model(x), live, atol=1e-2)
    assert torch.equal(model[0].weight.data, bits)


def test_another_adapter_s_layer_in_the_way_is_noticed(tmp_path, perturb):
    path = save_atoms(tmp_path / "a", {"model": perturb(inject(make_model("nf4"), CONFIG))})
    model = make_model("nf4")
    adapters = load_atoms(model, path)
    with pytest.raises(AtomError, match="has baked adapters"):
        inject(model, CONFIG)
    attached, model[0] = model[0], nn.Linear(128, 64)
    with pytest.raises(AtomError, match="'0' was replaced by something else"):
        adapters.clear()
    model[0] = attached
    adapters.clear()


def test_what_is_not_quantized_yet_is_left_out_by_name():
    rows = {r.path: r for r in inject(make_model("nf4", quantize=False), CONFIG).report()}
    assert "not quantized yet; move the model to its device first" in rows["0"].note
    sixteen = nn.Sequential(bnb.nn.Linear8bitLt(128, 64), nn.Linear(64, 8)).to("cpu")
    rows = {r.path: r for r in inject(sixteen, CONFIG).report()}
    assert "not quantized yet" in rows["0"].note


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_copies_and_casts_carry_working_atoms(x, perturb, kind):
    model = make_model(kind)
    injection = perturb(inject(model, CONFIG))
    twin = copy.deepcopy(model)
    expected = model(x).detach()
    perturb(injection, 0.3)
    torch.testing.assert_close(twin(x).detach(), expected, **TOLERANCE)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = twin(x).detach()
    torch.testing.assert_close(mixed.float(), expected, rtol=5e-2, atol=5e-2)


def test_the_package_is_imported_only_by_whoever_has_its_layers():
    code = (
        "import sys, torch, sdatoms; "
        "sdatoms.inject(torch.nn.Sequential(torch.nn.Linear(8, 8)), sdatoms.AtomConfig('full')); "
        "print('bitsandbytes' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
