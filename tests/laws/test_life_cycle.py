"""Laws of loaded adapters: linear in their strengths, in any order, and gone without a trace."""

import copy

import pytest
import torch
from tiny.atoms import VARIANTS
from tiny.modules import build, copy_weights, same_weights
from torch import nn

from sdatoms import AdapterSet, AtomConfig, AtomError, inject, load_atoms
from sdatoms.adapters.state import find_state
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


def make_three():
    layers = lambda: (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 4))
    return build(lambda: nn.Sequential(*layers()))


def test_a_thousand_cycles_leave_every_bit(perturb):
    """Loading, changing strengths, mixing, removing and clearing, in changing turns."""
    files = []
    for seed, variant in enumerate(VARIANTS):
        config = AtomConfig(variant, num_inner_atoms=1, block_size=2)
        files.append(pack_atoms({"unet": perturb(inject(make_three(), config), 0.1, seed)}))
    model = make_three()
    before = copy_weights(model)
    for turn in range(1000):
        one, two = files[turn % 4], files[(turn + 1 + turn // 4) % 4]
        adapters = load_atoms(model, one, name="one", strength=turn / 500 - 1)
        if turn % 3:
            adapters.load(two, name="two", strength=1.7)
        adapters.set_strengths({"one": 0.3 * turn + 0.1})
        if turn % 97 == 0:
            assert not same_weights(model, before)
            assert adapters.verify_base()
        if turn % 3 == 1:
            adapters.remove("one")
        adapters.clear()
        if turn % 50 == 0:
            assert same_weights(model, before)
    assert same_weights(model, before)
    assert adapters.names == ()


@pytest.mark.parametrize("variant", VARIANTS)
def test_strengths_are_linear_and_zero_is_the_base(make_convnet, make_atoms, variant):
    model, file = make_convnet(), make_atoms(variant=variant)
    before = copy_weights(model)
    adapters = load_atoms(model, file, name="dog", strength=0)
    assert same_weights(model, before)
    paths = list(file.maps("model"))
    deltas = {path: adapters.delta("dog", path) for path in paths}
    for strength in (1.0, -0.5, 2.25, 0.0):
        adapters.set_strengths({"dog": strength})
        for path in paths:
            weight = model.get_submodule(path).weight
            expected = before[f"{path}.weight"] + strength * deltas[path]
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)
    assert same_weights(model, before)
    adapters.set_strengths({"dog": 0.8})
    direct, once = make_convnet(), copy_weights(model)
    load_atoms(direct, file, strength=0.8)
    assert same_weights(direct, once)  # strengths leave no history


def test_the_order_of_loading_changes_no_bit(make_convnet, make_atoms):
    files = {v: make_atoms(seed=k, variant=v) for k, v in enumerate(VARIANTS)}
    strengths = dict(zip(VARIANTS, (0.3, -1.1, 0.7, 2.0), strict=True))
    found = []
    for order in (VARIANTS, VARIANTS[::-1], ["full", "atoms", "coefficients", "overcomplete"]):
        model = make_convnet()
        for name in order:
            adapters = load_atoms(model, files[name], name=name, strength=strengths[name])
        assert adapters.names == tuple(order)
        found.append(copy_weights(model))
    assert all(torch.equal(v, found[0][k]) for other in found for k, v in other.items())
    adapters.remove("full").load(files["full"], name="again", strength=2.0)
    assert same_weights(model, found[0])


def test_strengths_switch_between_adapters(make_convnet, make_atoms):
    """0 and 1 are as if only the one had been loaded, whatever it is called."""
    files = {"a": make_atoms(seed=1), "b": make_atoms(seed=2, variant="full")}
    alone = {}
    for name, file in files.items():
        model = make_convnet()
        load_atoms(model, file, name=f"only {name}")
        alone[name] = copy_weights(model)
    model = make_convnet()
    base = copy_weights(model)
    adapters = load_atoms(model, files["a"], name="a").load(files["b"], name="b", strength=0)
    assert same_weights(model, alone["a"])
    adapters.set_strengths({"a": 0, "b": 1})
    assert same_weights(model, alone["b"])
    both = copy_weights(load_both(make_convnet(), files))
    adapters.set_strengths({"a": 1})
    assert same_weights(model, both)
    adapters.set_strengths({"a": 1, "b": 1})  # once more is the same
    assert same_weights(model, both)
    adapters.remove("a")
    assert same_weights(model, alone["b"])
    adapters.remove("b")
    assert same_weights(model, base)


def load_both(model, files):
    for name, file in files.items():
        load_atoms(model, file, name=name)
    return model


def test_loading_leaves_parameters_their_objects_flags_and_modes(make_convnet, make_atoms):
    model = make_convnet().train()
    model.stem.requires_grad_(False)
    model.grouped.eval()
    facts = lambda: (
        [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        [(name, id(m), m.training) for name, m in model.named_modules()],
        list(model.state_dict()),
    )
    before = facts()
    adapters = load_atoms(model, make_atoms(), name="dog")
    assert facts() == before
    adapters.set_strengths({"dog": 0.5}).clear()
    assert facts() == before


def test_a_copy_of_a_baked_model_is_cleared_by_itself(make_convnet, make_atoms):
    model = make_convnet()
    before = copy_weights(model)
    adapters = load_atoms(model, make_atoms(), name="dog")
    baked = copy_weights(model)
    twin = copy.deepcopy(model)
    others = AdapterSet(twin)
    assert others.names == ("dog",) and others.verify_base()
    others.clear()
    assert same_weights(twin, before)
    assert same_weights(model, baked) and adapters.names == ("dog",)
    adapters.clear()
    assert same_weights(model, before)


def test_blocks_of_a_unet_take_strengths_of_their_own(make_unet, make_file):
    unet, path = make_unet(), make_file()
    before = copy_weights(unet)
    adapters = load_atoms(unet, path, name="dog", strength={"down": 0.2, "up": 0.7})
    wanted = {"conv_in": 0.2, "down_blocks": 0.2, "mid_block": 1.0, "up_blocks": 0.7}
    wanted["conv_out"] = 0.7
    seen = set()
    for layer in find_state(unet).adapters["dog"].maps:
        strength = wanted[layer.split(".")[0]]
        seen.add(layer.split(".")[0])
        expected = before[f"{layer}.weight"] + strength * adapters.delta("dog", layer)
        weight = unet.get_submodule(layer).weight
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7, msg=layer)
    assert seen == set(wanted)
    adapters.set_strengths({"dog": {"down": 0, "mid": 0, "up": 0}})
    assert same_weights(unet, before)
    assert adapters.strengths == {"dog": {"down": 0.0, "mid": 0.0, "up": 0.0}}


def test_every_set_on_a_module_is_the_same_set(make_convnet, make_atoms):
    model = make_convnet()
    before = copy_weights(model)
    first = load_atoms(model, make_atoms(seed=1), name="a", strength=0.5)
    second = load_atoms(model, make_atoms(seed=2), name="b")
    assert first.names == second.names == ("a", "b")
    assert first.strengths == {"a": 0.5, "b": 1.0}
    second.set_strengths({"a": 1.0})
    assert first.strengths["a"] == 1.0
    first.remove("b")
    assert repr(second) == "AdapterSet(a=1.0)"
    second.clear()
    assert same_weights(model, before)
    assert first.verify_base()


def test_swapping_adapters_compiles_nothing_anew(make_convnet, make_atoms, rng):
    """Weights are changed in place, so that a compiled model goes on as it is."""
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model, x = make_convnet(), torch.randn(2, 3, 12, 12, generator=rng)
    run = torch.compile(model, backend=count)
    with torch.no_grad():
        outputs = [run(x)]
        graphs = len(compiled)
        adapters = load_atoms(model, make_atoms(seed=1), name="a")
        outputs.append(run(x))
        adapters.load(make_atoms(seed=2, variant="full"), name="b", strength=0.5).remove("a")
        outputs.append(run(x))
        assert torch.equal(run(x), model(x))
        adapters.clear()
        assert torch.equal(run(x), outputs[0])
    assert len(compiled) == graphs > 0
    assert not torch.equal(outputs[1], outputs[0]) and not torch.equal(outputs[2], outputs[1])


def test_failed_calls_change_nothing(make_convnet, make_atoms):
    model, file = make_convnet(), make_atoms()
    adapters = load_atoms(model, file, name="dog", strength=0.5)
    before, strengths = copy_weights(model), adapters.strengths
    for call, sentence in [
        (lambda: adapters.load(file, name="dog"), "'dog' is already loaded"),
        (lambda: adapters.load(file, name="x", strength=float("inf")), "takes a finite number"),
        (lambda: adapters.load(file, name="x", strength={"left": 1}), "blocks are down, mid and"),
        (lambda: adapters.load(file, name="x", component="vae"), "holds no component 'vae'"),
        (lambda: adapters.load(file, name="x", scale=2), "takes no argument 'scale'"),
        (lambda: adapters.set_strengths({"dog": 1, "cat": 1}), "no adapter is named 'cat'; loaded"),
        (lambda: adapters.set_strengths({"dog": "1"}), "is '1'; it takes a finite number"),
        (lambda: adapters.remove("cat"), "no adapter is named 'cat'"),
        (lambda: adapters.delta("dog", "nowhere"), "changes no layer 'nowhere'"),
    ]:
        with pytest.raises(AtomError, match=sentence):
            call()
        assert same_weights(model, before)
        assert adapters.strengths == strengths


def test_writes_of_others_are_noticed_and_never_restored_over(make_convnet, make_atoms):
    model = make_convnet()
    adapters = load_atoms(model, make_atoms(), name="dog")
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] += 1
    written = copy_weights(model)
    for call in (adapters.clear, lambda: adapters.remove("dog"), adapters.verify_base):
        with pytest.raises(AtomError, match="'stem' was written to by something else"):
            call()
        assert same_weights(model, written)


@pytest.mark.parametrize("call", ["clear", "verify_base"])
def test_a_change_of_dtype_is_answered_and_undone_by_casting_back(make_convnet, make_atoms, call):
    model = make_convnet().to(torch.bfloat16)
    before = copy_weights(model)
    adapters = load_atoms(model, make_atoms(), name="dog")
    model.float()
    cast = copy_weights(model)
    with pytest.raises(AtomError, match=r"cast from torch\.bfloat16 to torch\.float32 while"):
        getattr(adapters, call)()
    assert same_weights(model, cast) and adapters.names == ("dog",)
    model.to(torch.bfloat16)
    adapters.clear()
    assert same_weights(model, before)


def test_a_cast_that_lost_bits_is_never_restored_over(make_convnet, make_atoms):
    model = make_convnet()
    adapters = load_atoms(model, make_atoms(), name="dog")
    model.half().float()
    cast = copy_weights(model)
    with pytest.raises(AtomError, match="was written to by something else"):
        adapters.clear()
    assert same_weights(model, cast)


def test_weights_gone_to_the_meta_device_are_answered(make_convnet, make_atoms):
    model = make_convnet()
    adapters = load_atoms(model, make_atoms(), name="dog")
    model.to("meta")
    for change in (adapters.clear, lambda: adapters.set_strengths({"dog": 0.5})):
        with pytest.raises(AtomError, match=r"moved to the meta device \(offload\?\); bring it"):
            change()
    assert adapters.strengths == {"dog": 1.0}
