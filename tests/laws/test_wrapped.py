"""Laws of company: hooks on atom layers, copies, compilers, checkpoints, other dtypes."""

import copy
import io
import shutil

import pytest
import torch
from accelerate.hooks import (
    AlignDevicesHook,
    ModelHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from torch.utils.checkpoint import checkpoint

from sdatoms import AtomConfig, AtomError, inject, load_atoms, save_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


CONFIG = AtomConfig("full", num_inner_atoms=2, block_size=2)


@pytest.fixture
def x(rng):
    return torch.randn(2, 3, 9, 9, generator=rng)


class Doubling(ModelHook):
    """A hook that shows in the output."""

    def post_forward(self, module, output):
        return 2 * output


@pytest.mark.parametrize("path", ["stem", "head"])
def test_accelerate_hooks_go_with_the_layer(rng, make_convnet, perturb, tolerance, path):
    model = make_convnet()
    base = model.get_submodule(path)
    x = torch.randn((2, 3, 6, 6) if path == "stem" else (2, 48), generator=rng)
    add_hook_to_module(base, AlignDevicesHook(execution_device="cpu"))
    add_hook_to_module(base, Doubling(), append=True)
    hooked = base.forward
    before = base(x).detach()
    injection = inject(model, CONFIG)
    layer = model.get_submodule(path)
    assert torch.equal(layer(x), before)

    perturb(injection, 0.3)

    with torch.no_grad():
        expected = 2 * type(layer).forward(layer, x)
    torch.testing.assert_close(layer(x).detach(), expected, **tolerance[torch.float32])
    assert (expected - before).abs().max() > 0.01
    remove_hook_from_module(layer)
    torch.testing.assert_close(2 * layer(x).detach(), expected, **tolerance[torch.float32])
    injection.eject()
    assert model.get_submodule(path) is base
    assert base.forward is hooked


def test_what_a_removed_hook_leaves_behind_is_no_obstacle(x, make_convnet, perturb):
    model = make_convnet()
    add_hook_to_module(model.stem, Doubling())
    remove_hook_from_module(model.stem)
    assert "forward" in vars(model.stem)
    before = model(x)

    perturb(inject(model, CONFIG), 0.3)

    assert (model(x) - before).abs().max() > 1e-3


def test_foreign_forwards_are_refused_by_name(make_convnet):
    model = make_convnet()
    base, plain = model.head, type(model.head).forward
    model.head.forward = lambda x: plain(base, x)
    before = dict(model.named_modules())
    with pytest.raises(AtomError, match="forward of this Linear was replaced by another library"):
        inject(model, CONFIG)
    assert dict(model.named_modules()) == before
    assert all(p.requires_grad for p in model.parameters())


def test_a_hooked_model_and_its_copy_are_independent(x, make_convnet, perturb):
    model = make_convnet()
    add_hook_to_module(model.stem, Doubling())
    injection = perturb(inject(model, CONFIG))
    twin, before = copy.deepcopy(model), model(x).detach()

    perturb(injection, 0.3)

    assert torch.equal(twin(x), before)
    assert not torch.equal(model(x), before)


def test_a_copy_carries_working_atoms(x, make_convnet, perturb):
    model = make_convnet()
    injection = perturb(inject(model, CONFIG))
    twin = copy.deepcopy(model)
    trained = [p for p in twin.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == injection.num_parameters

    twin(x).square().sum().backward()

    assert all(p.grad.abs().sum() > 0 for p in trained)
    assert all(p.grad is None for p in injection.parameters())


def test_an_injected_model_is_saved_and_read_by_torch(x, make_convnet, perturb):
    model = make_convnet()
    perturb(inject(model, CONFIG))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), model(x))


@pytest.mark.parametrize("variant", ["overcomplete", "full"])
def test_compiled_models_compute_the_same_and_train(x, make_convnet, perturb, tolerance, variant):
    model = make_convnet()
    injection = perturb(inject(model, AtomConfig(variant)))
    expected = model(x)
    expected.square().sum().backward()
    grads = {name: p.grad for name, p in injection.named_parameters()}
    for parameter in injection.parameters():
        parameter.grad = None

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(x)
    found.square().sum().backward()

    torch.testing.assert_close(found, expected, **tolerance[torch.float32])
    for name, parameter in injection.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-3, atol=1e-4)
    perturb(injection, 0.3)
    torch.testing.assert_close(compiled(x), model(x), **tolerance[torch.float32])
    assert not torch.allclose(model(x), expected, atol=1e-3)
    torch._dynamo.reset()


def test_what_is_compiled_already_is_seen_through(x, tmp_path, make_convnet, perturb, tolerance):
    """Keys stay the plain model's, and the compiled one takes up atoms, files and strengths."""
    model, plain = make_convnet(), make_convnet()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        before = compiled(x)
        injection = perturb(inject(compiled, CONFIG), 0.3)
        assert list(injection.layers) == list(inject(plain, CONFIG).layers)
        path = save_atoms(tmp_path / "a", {"model": injection})
        tuned = compiled(x)
        assert not torch.equal(tuned, before)
        with pytest.raises(AtomError, match="already carries filter atoms"):
            inject(model, CONFIG)
        injection.eject()
        assert torch.equal(compiled(x), before)
        adapters = load_atoms(compiled, path, name="a")
        assert load_atoms(model, path, name="b", strength=0).names == ("a", "b")
        torch.testing.assert_close(compiled(x), tuned, **tolerance[torch.float32])
        adapters.set_strengths({"a": 0})
        assert torch.equal(compiled(x), before)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler's backend needs g++")
def test_the_default_compiler_gives_the_same_gradients(x, make_convnet, perturb, tolerance):
    model = make_convnet()
    injection = perturb(inject(model, AtomConfig("full")))
    expected = model(x)
    grads = torch.autograd.grad(expected.square().sum(), list(injection.parameters()))
    found = torch.compile(model)(x)
    again = torch.autograd.grad(found.square().sum(), list(injection.parameters()))
    torch.testing.assert_close(found, expected, **tolerance[torch.float32])
    for one, other in zip(grads, again, strict=True):
        assert other.any()
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(x, make_convnet, perturb, reentrant):
    model = make_convnet()
    injection = perturb(inject(model, CONFIG))
    x.requires_grad_(True)
    model(x).square().sum().backward()
    grads = [p.grad.clone() for p in injection.parameters()]
    for parameter in injection.parameters():
        parameter.grad = None

    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()

    for parameter, expected in zip(injection.parameters(), grads, strict=True):
        # The reentrant kind runs forward without gradients first, where weights are formed.
        assert reentrant or torch.equal(parameter.grad, expected)
        torch.testing.assert_close(parameter.grad, expected)


def test_autocast_in_bfloat16_trains_float32_atoms(x, make_convnet, perturb, tolerance):
    model = make_convnet()
    injection = perturb(inject(model, CONFIG))
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    found.float().square().sum().backward()

    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, **tolerance[torch.bfloat16])
    assert all(p.grad.dtype == torch.float32 for p in injection.parameters())
    assert all(torch.isfinite(p.grad).all() for p in injection.parameters())


def test_atoms_cast_to_half_precision_do_not_train(make_convnet):
    model = make_convnet()
    injection = inject(model, CONFIG)
    model.requires_grad_(False)
    atoms = injection.weights["stem"].views["block"].atoms
    atoms.data = atoms.data.half()
    sentence = r"'stem\.block\.atoms' was cast to torch\.float16; atoms train in float32"

    with pytest.raises(AtomError, match=sentence):
        torch.optim.AdamW(injection.parameters())
    with pytest.raises(AtomError, match=sentence):
        injection.train_atoms()
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_is_not_the_atoms_dtype(make_convnet, default):
    model = make_convnet()
    torch.set_default_dtype(default)
    try:
        state = inject(model, CONFIG).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
