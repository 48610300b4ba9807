"""Laws of the sparse decomposition from injection to file and back: those of the linear one, with
codes that no file holds.

Those of single layers are in `test_laws.py`.
"""

import copy

import pytest
import torch
from tiny.atoms import VARIANTS, inject_one
from tiny.modules import SelfAttention, build, copy_weights, same_weights
from torch import nn

from sdatoms import AtomConfig, AtomError, inject, load_atoms, read_atoms, save_atoms
from sdatoms.adapters.bake import bake_injection
from sdatoms.atoms.sparse import encode_rows
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pictures(rng):
    return torch.randn(2, 3, 12, 12, generator=rng)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_delta_is_codes_times_atoms(rng, perturb, groups):
    """Against loops over the paper's formula, absolute input channels and groups included."""
    o, i = 4, 5
    conv = nn.Conv2d(groups * i, groups * o, (3, 2), groups=groups)
    layer = perturb(
        inject_one(conv, "overcomplete", decomposition="sparse", num_atoms=8), 0.3
    ).layers["0"]
    spatial = layer.deltas["spatial"]
    codes = spatial.codes.reshape(groups * o, i, 8)

    expected = torch.zeros_like(conv.weight)
    for row in range(groups * o):
        for column in range(i):
            channel = row // o * i + column
            atoms = torch.einsum(
                "aj,ajp->ap", spatial.inner_coefficients[channel], spatial.inner_atoms
            )
            expected[row, column] = (codes[row, column] @ atoms).reshape(3, 2).detach()

    torch.testing.assert_close(layer.delta_weight(), expected, rtol=1e-4, atol=1e-6)


def test_more_atoms_than_filters_have_entries(make_convnet):
    config = AtomConfig("atoms", "sparse", num_atoms=12)
    rows = {row.path: row for row in inject(make_convnet(), config).report()}
    assert rows["grouped"].atoms == 12
    assert rows["grouped"].parameters == 12 * 9
    assert rows["depthwise"].atoms == 12
    complete = {
        row.path: row for row in inject(make_convnet(), AtomConfig("atoms", "sparse")).report()
    }
    assert complete["grouped"].atoms == 9
    assert 0 < rows["grouped"].error < complete["grouped"].error < 0.3
    few = inject(nn.Sequential(nn.Conv2d(2, 2, 3)), AtomConfig("atoms", "sparse", num_atoms=12))
    assert few.report()[0].atoms == 4
    assert "filters: spatial atoms 12 → 4" in few.report()[0].note


@pytest.mark.parametrize("num_atoms", [4, 9, 36])
def test_the_reported_error_is_that_of_the_codes_in_use(make_convnet, num_atoms):
    """Whether the solver had converged or was cut off at its last iteration."""
    config = AtomConfig("atoms", "sparse", num_atoms=num_atoms)
    injection = inject(make_convnet(), config)
    (row,) = (row for row in injection.report() if row.path == "grouped")
    delta = injection.layers["grouped"].deltas["spatial"]
    rows = delta.view.rows(injection.bases["grouped"].weight.detach())
    codes = encode_rows(rows, delta.base_atoms, delta.penalty, delta.solver)
    error = (rows - codes @ delta.base_atoms).norm() / rows.norm()
    assert row.error == pytest.approx(float(error), rel=1e-5)
    assert torch.equal(delta.codes != 0, codes != 0)


def test_sparsity_reaches_the_codes(make_convnet):
    def zeros(sparsity):
        injection = inject(make_convnet(), AtomConfig("atoms", "sparse", sparsity=sparsity))
        codes = injection.layers["grouped"].deltas["spatial"].codes
        return float((codes == 0).float().mean()), injection.report()[-1].error

    assert zeros(0.05) < zeros(0.15) < zeros(0.6)


def test_atoms_follow_the_seed_and_differ_between_layers(make_convnet):
    def atoms(seed):
        state = inject(make_convnet(), AtomConfig("full", "sparse", seed=seed)).state_dict()
        return {k: v for k, v in state.items() if k.endswith("base_atoms")}

    a, b, c = atoms(0), atoms(0), atoms(1)
    assert set(a) >= {"stem.sparse.base_atoms", "stem.sparse.block_base_atoms"}
    for key, value in a.items():
        assert torch.equal(value, b[key]), key
        torch.testing.assert_close(value.norm(dim=1), torch.ones(len(value)))
    assert not torch.allclose(
        a["grouped.sparse.base_atoms"], c["grouped.sparse.base_atoms"], atol=1e-2
    )


def test_layers_that_cannot_be_coded_are_left_out_and_named(make_convnet):
    model = make_convnet()
    nn.init.zeros_(model.stem.weight)
    model.grouped.weight.data[0] = torch.nan
    rows = {row.path: row for row in inject(model, AtomConfig("atoms", "sparse")).report()}
    assert "zero everywhere" in rows["stem"].note
    assert "NaN" in rows["grouped"].note
    assert rows["depthwise"].parameters > 0
    assert rows["stem"].parameters == rows["grouped"].parameters == 0


def test_the_representation_and_casts(make_convnet, pictures):
    model = make_convnet()
    injection = inject(model, AtomConfig("atoms", "sparse", num_atoms=12))
    assert "AtomDelta(spatial, sparse atoms=12, width=9, parameters=108)" in repr(model)
    before = copy_weights(injection)
    model.to(torch.bfloat16)
    assert model.grouped.deltas["spatial"].codes.dtype == torch.float32
    assert same_weights(injection, before)
    assert torch.isfinite(model(pictures.bfloat16())).all()


def test_state_dicts_hold_no_codes_and_carry_base_atoms_over(make_convnet, perturb, pictures):
    model, other = make_convnet(), make_convnet()
    injection = perturb(inject(model, AtomConfig("full", "sparse")))
    fresh = inject(other, AtomConfig("full", "sparse", seed=7))
    state = injection.state_dict()
    assert not any("codes" in key for key in [*state, *model.state_dict()])

    fresh.load_state_dict(state)

    with torch.no_grad():
        assert torch.equal(other(pictures), model(pictures))
    key = "stem.sparse.base_atoms"
    for bad, sentence in [
        ({k: v for k, v in state.items() if k != key}, "is missing from the given"),
        (state | {key: 2 * state[key]}, "not of unit norm"),
        (state | {key: state[key][:2]}, "has shape"),
    ]:
        with pytest.raises(AtomError, match=sentence):
            fresh.load_state_dict(bad)
        assert same_weights(fresh, state)
    with torch.no_grad():
        assert torch.equal(other(pictures), model(pictures))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_base_with_the_file_is_the_injected_model(
    tmp_path, make_convnet, perturb, pictures, variant
):
    model, fresh = make_convnet(), make_convnet()
    base = copy_weights(fresh)
    injection = perturb(inject(model, AtomConfig(variant, "sparse", seed=3)))
    path = save_atoms(tmp_path / "dog.safetensors", {"model": injection})
    file = read_atoms(path)
    adapters = load_atoms(fresh, path)

    with torch.no_grad():
        tuned = model(pictures)
        assert not torch.allclose(fresh(pictures), make_convnet()(pictures))
        torch.testing.assert_close(fresh(pictures), tuned, rtol=1e-4, atol=1e-5)
        tensors = {f"model.{k}": v for k, v in injection.state_dict().items()}
        with bake_injection(injection, tensors, "model"):
            assert torch.equal(model(pictures), fresh(pictures)), "not the bits of the loaded file"
        assert torch.equal(model(pictures), tuned)
    assert file.config == injection.config
    assert file.num_parameters == injection.num_parameters
    for path, layer in injection.layers.items():
        delta = adapters.delta("dog", path)
        torch.testing.assert_close(delta, layer.delta_weight(), rtol=1e-4, atol=1e-6)
    adapters.set_strengths({"dog": 0.25})
    half = copy_weights(fresh)
    adapters.set_strengths({"dog": 1.0}).set_strengths({"dog": 0.25})
    assert same_weights(fresh, half)
    assert adapters.verify_base()
    adapters.clear()
    assert same_weights(fresh, base)


def test_attention_is_coded_projection_by_projection(rng, perturb):
    base = build(SelfAttention).eval()
    model, fresh = copy.deepcopy(base), copy.deepcopy(base)
    x = torch.randn(2, 5, 8, generator=rng)
    injection = inject(model, AtomConfig("coefficients", "sparse", block_size=2))
    with torch.no_grad():
        assert torch.equal(model(x), base(x))
        file = pack_atoms({"model": perturb(injection, 0.3)})
        assert "model.attn.q_proj.sparse.block_base_atoms" in file.tensors
        load_atoms(fresh, file)
        assert not torch.allclose(model(x), base(x), atol=1e-3)
        torch.testing.assert_close(fresh(x), model(x), rtol=1e-4, atol=1e-5)


def test_quantized_weights_take_no_sparse_atoms(perturb):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = AtomConfig("coefficients", "sparse", block_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(bnb.nn.Linear4bit(128, 64)).to("cpu")
        plain = nn.Sequential(nn.Linear(128, 64))
    with pytest.raises(AtomError, match="sparse atoms do not fit quantized weights"):
        inject(model, config)
    file = pack_atoms({"model": perturb(inject(plain, config))})
    with pytest.raises(AtomError, match="is quantized; sparse atoms fit floating-point weights"):
        load_atoms(model, file)
