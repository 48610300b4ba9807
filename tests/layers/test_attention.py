"""Laws of atoms in nn.MultiheadAttention and of the fused paths around it."""

import copy
import itertools

import pytest
import torch
from tiny.modules import Attention, build, same_weights
from torch import nn

from sdatoms import (
    AtomConfig,
    AtomError,
    AtomMultiheadAttention,
    inject,
    load_atoms,
    read_atoms,
    save_atoms,
)
from sdatoms.adapters.bake import bake_injection
from sdatoms.files.writer import pack_atoms

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]

CONFIG = AtomConfig("coefficients", block_size=2)
KINDS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other widths": {"kdim": 6, "vdim": 10},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
    "odd heads": {"num_heads": 1, "batch_first": True},
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def make_model(kind="batch first", dtype=torch.float32):
    model = build(Attention, **KINDS[kind]).to(dtype).eval()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)
    # torch multiplies transposed inputs in another order when the weight asks for a gradient.
    return model.requires_grad_(False)


def make_inputs(rng, kind, dtype=torch.float32):
    """Arguments of `Attention`, batched, of 3 queries and 5 keys where they differ."""
    draw = lambda *shape: torch.randn(shape, generator=rng).to(dtype)
    if kind == "other widths":
        return draw(3, 2, 8), draw(5, 2, 6), draw(5, 2, 10)
    return (draw(2, 4, 8) if "batch_first" in KINDS[kind] else draw(4, 2, 8),)


def tune_copy(model, injection):
    """A base model whose parameters are W + ΔW, formed row by row from `delta_weight`s."""
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for path, weight in injection.weights.items():
            name = path.removeprefix("attn.")
            delta = sum(d(weight.base.weight) for d in weight.views.values())
            if name == "out_proj":
                target = tuned.attn.out_proj.weight
            elif tuned.attn.in_proj_weight is None:
                target = getattr(tuned.attn, f"{name}_weight")
            else:
                target = tuned.attn.in_proj_weight.chunk(3)[PROJECTIONS.index(name)]
            wide = torch.promote_types(target.dtype, torch.float32)
            target.copy_(target.to(wide) + delta)
    return tuned


def assert_same(found, expected, **tolerance):
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    assert (found[1] is None) == (expected[1] is None)
    if found[1] is not None:
        torch.testing.assert_close(found[1], expected[1], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_all_modes_compute_the_base_with_the_deltas_added(rng, perturb, tolerance, kind, dtype):
    model, inputs = make_model(kind, dtype), make_inputs(rng, kind, dtype)
    plain = copy.deepcopy(model)
    injection = inject(model, CONFIG)
    with torch.no_grad():
        assert_same(model(*inputs), plain(*inputs), rtol=0, atol=0)

    perturb(injection, 0.3)

    tuned = tune_copy(plain, injection)
    with torch.no_grad():
        expected = tuned(*inputs)
        assert_same(model(*inputs), expected, rtol=0, atol=0)
        assert (expected[0] - plain(*inputs)[0]).abs().max() > 0.05
    trained = [t.detach() for t in model.train()(*inputs)]
    assert_same(trained, expected, **tolerance[dtype])
    model.eval()
    with torch.inference_mode():
        assert_same([t.clone() for t in model(*inputs)], expected, **tolerance[dtype])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_masks_and_flags_are_the_base_s(rng, perturb, tolerance, mode):
    model = make_model()
    plain = copy.deepcopy(model)
    injection = perturb(inject(model, CONFIG), 0.3)
    tuned = getattr(tune_copy(plain, injection), mode)()
    getattr(model, mode)()
    (x,) = make_inputs(rng, "batch first")
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    causal = nn.Transformer.generate_square_subsequent_mask(4)

    for key_padding_mask, attn_mask, need, average in itertools.product(
        (None, padding), (None, causal != 0, torch.ones(4, 4, 4).tril() == 0), (0, 1), (0, 1)
    ):
        flags = {
            "key_padding_mask": key_padding_mask,
            "attn_mask": attn_mask,
            "need_weights": bool(need),
            "average_attn_weights": bool(average),
        }
        with torch.no_grad():
            assert_same(model(x, **flags), tuned(x, **flags), **tolerance[torch.float32])
    flags = {"attn_mask": causal, "is_causal": True, "need_weights": False}
    assert_same(model(x, **flags), tuned(x, **flags), **tolerance[torch.float32])
    assert_same(model(x[0]), tuned(x[0]), **tolerance[torch.float32])


@pytest.mark.parametrize("kind", ["batch first", "other widths"])
def test_a_gradient_reaches_the_atoms_of_every_projection(rng, perturb, kind):
    model = make_model(kind)
    injection = perturb(inject(model, CONFIG))

    model(*make_inputs(rng, kind))[0].square().sum().backward()

    names = {name.split(".")[1] for name, _ in injection.named_parameters()}
    assert names == set(PROJECTIONS)
    for name, parameter in injection.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in model.attn._parameters.values() if p is not None)


def test_no_block_crosses_from_one_projection_into_another(perturb):
    # Width 6 has blocks of 3, and 18 rows would have blocks of 4 if q, k and v were one.
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(6, 2)})
    injection = inject(model, AtomConfig("coefficients", block_size=4, block_atoms=2))

    rows = {row.path: row for row in injection.report()}

    assert list(rows) == [f"attn.{name}" for name in PROJECTIONS]
    assert {row.view for row in rows.values()} == {"channel 3x3"}
    assert {row.shape for row in rows.values()} == {(6, 6)}
    assert injection.num_parameters == 4 * 2 * 9
    with torch.no_grad():
        injection.weights["attn.k_proj"].views["block"].atoms.fill_(0.1)
    change = injection.layers["attn"].tuned_weights()["in_proj_weight"] - model.attn.in_proj_weight
    assert change[:6].abs().max() == 0
    assert change[6:12].abs().min() > 0
    assert change[12:].abs().max() == 0


def test_the_module_is_replaced_as_a_whole_and_comes_back():
    model = make_model()
    base, keys, state = model.attn, list(model.state_dict()), copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    injection = inject(model, CONFIG)

    assert type(model.attn) is AtomMultiheadAttention
    assert isinstance(model.attn, nn.MultiheadAttention)
    assert injection.layers == {"attn": model.attn}
    assert model.attn.out_proj is base.out_proj
    assert model.attn.in_proj_weight is parameters["attn.in_proj_weight"]
    assert [k for k in model.state_dict() if ".deltas." not in k] == keys
    assert "(q_proj): ModuleDict(\n        (block): AtomDelta(channel 2x2" in repr(model)
    injection.eject()
    assert model.attn is base
    assert list(model.state_dict()) == keys
    assert same_weights(model, state)


def test_the_base_constructor_makes_the_base_layer(rng):
    x = torch.randn(2, 3, 8, generator=rng)
    layer = build(AtomMultiheadAttention, 8, 2, batch_first=True)
    base = build(nn.MultiheadAttention, 8, 2, batch_first=True)
    assert list(layer.state_dict()) == list(base.state_dict())
    assert_same(layer(x, x, x), base(x, x, x), rtol=0, atol=0)


def test_patterns_name_the_layer_or_one_projection():
    def paths(**config):
        return list(inject(make_model(), AtomConfig("coefficients", **config)).weights)

    assert paths(target_modules="attn") == [f"attn.{name}" for name in PROJECTIONS]
    assert paths(target_modules="*.out_proj") == ["attn.out_proj"]
    assert paths(target_modules=["attn.q_proj", "attn.v_proj"]) == ["attn.q_proj", "attn.v_proj"]
    assert paths(exclude_modules="*.k_proj") == ["attn.q_proj", "attn.v_proj", "attn.out_proj"]
    with pytest.raises(AtomError, match=r"'attn\.in_proj' matches no convolution, linear layer or"):
        paths(target_modules="attn.in_proj")


@pytest.mark.parametrize("kind", ["batch first", "other widths"])
def test_a_file_bakes_into_the_parameters_and_clears_to_the_bit(
    tmp_path, rng, perturb, tolerance, kind
):
    model, fresh, inputs = make_model(kind), make_model(kind), make_inputs(rng, kind)
    pristine = copy.deepcopy(fresh.state_dict())
    injection = perturb(inject(model, CONFIG), 0.3)
    path = save_atoms(tmp_path / "a", {"model": injection})
    with torch.no_grad():
        expected, base = model(*inputs), fresh(*inputs)

        adapters = load_atoms(fresh, path, name="a")
        assert type(fresh.attn) is nn.MultiheadAttention
        assert_same(fresh(*inputs), expected, **tolerance[torch.float32])
        adapters.load(path, name="b", strength=-1.0)
        assert_same(fresh(*inputs), base, **tolerance[torch.float32])
        assert adapters.verify_base()
        assert adapters.delta("a", "attn.q_proj").shape == (8, 8)
        adapters.set_strengths({"a": 0, "b": 0})
        assert_same(fresh(*inputs), base, rtol=0, atol=0)
        adapters.set_strengths({"a": 0.5})
        adapters.clear()

    assert same_weights(fresh, pristine)
    assert {key.split(".")[2] for key in read_atoms(path).tensors} == set(PROJECTIONS)


def test_atoms_bake_into_their_own_model_for_a_while(tmp_path, rng, perturb):
    model, fresh = make_model(), make_model()
    (x,) = make_inputs(rng, "batch first")
    injection = perturb(inject(model, CONFIG), 0.3)
    file = pack_atoms({"model": injection})
    pristine, state = copy.deepcopy(fresh.state_dict()), injection.state_dict()
    load_atoms(fresh, file)
    with torch.no_grad():
        live = model(x)

        with bake_injection(injection, file.tensors, "model"):
            assert_same(model(x), fresh(x), rtol=0, atol=0)

        assert_same(model(x), live, rtol=0, atol=0)
    assert all(torch.equal(v, pristine[k]) for k, v in model.state_dict().items() if k in pristine)
    assert same_weights(injection, state)


def test_a_foreign_write_to_one_third_is_noticed(tmp_path, perturb):
    path = save_atoms(tmp_path / "a", {"model": perturb(inject(make_model(), CONFIG))})
    model = make_model()
    adapters = load_atoms(model, path)
    with torch.no_grad():
        model.attn.in_proj_weight[9, 0] += 1
    with pytest.raises(AtomError, match=r"'attn\.k_proj' was written to"):
        adapters.clear()


def make_encoder(**kwargs):
    """torch's own encoder, with its nested tensors, as in a text or time-series model."""
    settings = {"batch_first": True, "dropout": 0, "activation": "gelu"} | kwargs
    layer = build(nn.TransformerEncoderLayer, 16, 2, 32, **settings)
    return nn.Sequential(nn.TransformerEncoder(layer, 2)).eval()


@pytest.mark.parametrize("targets", [None, "*.self_attn", "*.linear2"])
def test_the_fused_transformer_paths_do_not_pass_atoms_by(rng, perturb, tolerance, targets):
    model, x = make_encoder(), torch.randn(2, 5, 16, generator=rng)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    real = ~padding
    run = lambda: model[0](x, src_key_padding_mask=padding)[real].clone()
    with torch.no_grad():
        base = run()
        injection = inject(model, AtomConfig("coefficients", target_modules=targets))
        torch.testing.assert_close(run(), base, **tolerance[torch.float32])
        perturb(injection, 0.3)
        inferred = run()
    with torch.inference_mode():
        torch.testing.assert_close(run(), inferred, **tolerance[torch.float32])
    trained = model.train() and run().detach()

    assert (inferred - base).abs().max() > 0.01
    torch.testing.assert_close(inferred, trained, **tolerance[torch.float32])


def test_eject_brings_the_fused_paths_back(rng, perturb):
    model, x = make_encoder(), torch.randn(2, 5, 16, generator=rng)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    kept = model[0].layers[0].register_forward_hook(lambda *_: None)
    kept.remove()
    with torch.no_grad():
        base = model[0](x, src_key_padding_mask=padding)
        injection = perturb(inject(model, CONFIG), 0.3)
        assert not model[0].use_nested_tensor
        injection.eject()
        assert model[0].use_nested_tensor
        assert not any(module._forward_hooks for module in model.modules())
        assert torch.equal(model[0](x, src_key_padding_mask=padding), base)


def test_decoders_carry_atoms_in_both_attentions(rng, perturb, tolerance):
    layer = build(nn.TransformerDecoderLayer, 8, 2, 16, 0, batch_first=True)
    model = nn.Sequential(layer).eval()
    x, memory = torch.randn(2, 3, 8, generator=rng), torch.randn(2, 4, 8, generator=rng)
    injection = perturb(inject(model, CONFIG), 0.3)
    assert {"0.self_attn.q_proj", "0.multihead_attn.v_proj"} < set(injection.weights)

    with torch.no_grad():
        inferred = model[0](x, memory)

    torch.testing.assert_close(
        inferred, model.train()[0](x, memory).detach(), **tolerance[torch.float32]
    )


def test_subclasses_of_attention_are_left_out_by_name():
    class Biased(nn.MultiheadAttention):
        """Another library's, whose forward may read anything."""

    model = nn.ModuleDict({"odd": Biased(8, 2), "attn": nn.MultiheadAttention(8, 2)})
    notes = {row.path: row.note for row in inject(model, CONFIG).report()}
    assert notes["odd.q_proj"] == "left out: Biased is a layer of another library"
    assert notes["attn.q_proj"] == ""


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.*")
def test_it_compiles_without_a_break_and_copies_and_casts(rng, perturb, tolerance):
    model = make_model()
    injection = perturb(inject(model, CONFIG), 0.3)
    (x,) = make_inputs(rng, "batch first")
    run = lambda x: model(x, need_weights=False)[0]
    expected = run(x)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, **tolerance[torch.float32])
    twin = copy.deepcopy(model)
    perturb(injection)
    assert torch.equal(twin(x, need_weights=False)[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = twin(x, need_weights=False)[0]
    torch.testing.assert_close(mixed.float(), expected, **tolerance[torch.bfloat16])
    torch._dynamo.reset()
