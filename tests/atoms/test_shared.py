"""Shared atoms: many layers' one map of their inputs, read from weights and from activations."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny.atoms import check_reload, refuse_damaged
from torch import nn

import sdatoms
from sdatoms import AtomConfig, AtomError, compose, inject, load_atoms, read_atoms
from sdatoms.adapters.bake import bake_injection
from sdatoms.atoms.decompose import View
from sdatoms.atoms.shared import apply_shared, compare_shared, draw_atoms, run_shared
from sdatoms.files.contents import report_file
from sdatoms.files.writer import pack_atoms
from sdatoms.training.presets import expand_preset

CONFIG = AtomConfig("coefficients", block_form="shared", block_atoms=2, target_modules=("*",))


def make_model(seed=0):
    """Two layers that read 8 numbers, two that read 6, one whose rows of 1 have no atoms."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {
                "conv": nn.Conv2d(8, 6, 3, padding=1),
                "point": nn.Conv2d(6, 12, 1),
                "grouped": nn.Conv2d(12, 8, 3, groups=2),
                "query": nn.Linear(8, 5),
                "narrow": nn.Linear(1, 4),
            }
        )


def run(model, x):
    y = model["grouped"](model["point"](model["conv"](x)))
    return model["query"](y.flatten(2).mT.contiguous()), model["narrow"](y[:, :1, 0, 0])


@pytest.fixture
def x(rng):
    return torch.randn(2, 8, 5, 4, generator=rng)


def make_file(seed, perturb, **settings):
    model = make_model()
    injection = perturb(inject(model, AtomConfig(**{**CONFIG.to_dict(), **settings})), 0.3, seed)
    return pack_atoms({"model": injection})


@pytest.mark.parametrize("groups", [1, 2])
def test_activations_and_weight_give_one_layer(groups, rng):
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=groups).double()
    p = conv.weight.shape[1]
    view = View("channel", tuple(conv.weight.shape), groups, (1, p))
    encoder, atoms = (torch.randn(s, generator=rng).double() for s in ((p, 3), (3, p)))
    x = torch.randn(2, 8, 5, 4, generator=rng).double()
    change = apply_shared(conv.weight, view, encoder, atoms)
    tuned = nn.functional.conv2d(x, conv.weight + change, conv.bias, padding=1, groups=groups)
    found = run_shared(x, encoder, atoms, conv, groups)
    torch.testing.assert_close(found, tuned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [0, 2])
def test_gradients_are_those_of_finite_differences(groups, rng):
    base = nn.Conv2d(4, 6, 3, groups=2) if groups else nn.Linear(4, 3)
    base = base.double().requires_grad_(False)
    p = 2 if groups else 4
    inputs = [torch.randn(s, generator=rng).double() for s in ((p, 2), (2, p))]
    x = torch.randn((1, 4, 3, 3) if groups else (2, 4), generator=rng).double()
    inputs = [t.requires_grad_() for t in (x, *inputs)]
    assert torch.autograd.gradcheck(lambda x, e, d: run_shared(x, e, d, base, groups), inputs)


def test_layers_of_one_input_width_train_the_same_tensors(x, perturb):
    model = make_model()
    before = [y.detach() for y in run(model, x)]
    injection = inject(model, CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(run(model, x), before, strict=True))
    names = [name for name, _ in injection.named_parameters()]
    owners = ("conv", "point")
    assert names == [
        f"{owner}.block.shared_{name}" for owner in owners for name in ("encoder", "atoms")
    ]
    assert injection.num_parameters == 2 * (8 + 8) + 2 * (6 + 6)
    rows = {row.path: row for row in injection.report()}
    assert {path: row.parameters for path, row in rows.items()} == {
        "conv": 32,
        "point": 24,
        "grouped": 0,
        "query": 0,
        "narrow": 0,
    }
    assert rows["query"].note == "shared with conv" and rows["grouped"].note == "shared with point"
    assert "rows of 1" in rows["narrow"].note and "narrow" not in injection.weights
    perturb(injection, 0.3)
    (run(model, x)[0].square().sum()).backward()
    whole = {name: p.grad.clone() for name, p in injection.named_parameters()}
    assert all(grad.abs().max() > 0 for grad in whole.values())
    # Layers that share alone reach their tensors too.
    injection.model.zero_grad()
    model["query"](torch.randn(3, 8)).sum().backward()
    assert injection.layers["conv"].deltas["block"].shared_atoms.grad.abs().max() > 0
    injection.eject()
    assert all(torch.equal(a, b) for a, b in zip(run(model, x), before, strict=True))


def test_a_file_keeps_shared_atoms_once_and_bakes_the_trained_model(x, perturb, tmp_path):
    model = make_model()
    injection = perturb(inject(model, CONFIG), 0.3)
    trained = [y.detach() for y in run(model, x)]
    file = pack_atoms({"model": injection})
    injection.eject()
    assert len(file.tensors) == 4 and file.num_parameters == 56
    read = read_atoms(file.save(tmp_path / "a.safetensors"))
    assert read.sha256 == file.sha256
    assert {p: [m.owner for m in maps] for p, maps in read.maps("model").items()} == {
        "conv": [None],
        "point": [None],
        "grouped": ["point"],
        "query": ["conv"],
    }
    assert sum(row.parameters for row in report_file(read)) == 56
    check_reload(model, CONFIG, read, lambda: run(model, x), trained)


def test_sums_share_what_their_parts_share(perturb):
    """Ranks add up until the rows have no more; equal files are one at the sum of strengths."""
    files = [make_file(seed, perturb) for seed in range(5)]
    assert compose([files[0], files[0]], [0.5, 0.25]).num_parameters == 56
    two, five = compose(files[:2], [1.0, -0.5]), compose(files, [1.0, 0.5, -1.0, 2.0, 0.1])
    assert two.num_parameters == 4 * (8 + 8) + 4 * (6 + 6)
    assert five.num_parameters == 2 * (8 * 8 + 6 * 6), "as many atoms as rows are long"
    assert [len(file.tensors) for file in (two, five)] == [4, 4]
    for summed, parts, strengths in (
        (two, files[:2], [1.0, -0.5]),
        (five, files, [1.0, 0.5, -1.0, 2.0, 0.1]),
    ):
        for path, maps in summed.maps("model").items():
            expected = sum(
                s * file.maps("model")[path][0].transform
                for file, s in zip(parts, strengths, strict=True)
            )
            torch.testing.assert_close(maps[0].transform, expected, rtol=1e-4, atol=1e-5)
    assert compose(files[::-1]).sha256 == compose(files).sha256


def test_layers_of_which_one_file_has_fewer_keep_what_is_theirs(perturb):
    one = make_file(0, perturb)
    other = make_file(1, perturb, target_modules=["query"])
    summed = compose([one, other], [1.0, 2.0])
    for path, maps in summed.maps("model").items():
        parts = [one.maps("model")[path][0].transform]
        if path == "query":
            parts.append(2 * other.maps("model")[path][0].transform)
        torch.testing.assert_close(maps[0].transform, sum(parts), rtol=1e-4, atol=1e-5)


def test_inner_products_are_those_of_the_full_maps(rng):
    pairs = [
        tuple(torch.randn(s, generator=rng).double() for s in ((6, r), (r, 6))) for r in (2, 3)
    ]
    expected = float(((pairs[0][0] @ pairs[0][1]) * (pairs[1][0] @ pairs[1][1])).sum())
    assert compare_shared(*pairs) == pytest.approx(expected)


def test_atoms_start_the_same_at_every_call_and_small():
    drawn = draw_atoms(3, 64, 7)
    assert torch.equal(drawn, draw_atoms(3, 64, 7)) and not torch.equal(drawn, draw_atoms(3, 64, 8))
    assert drawn.abs().max() <= 1 / 8 and drawn.std() == pytest.approx(1 / (8 * 3**0.5), rel=0.2)


DAMAGES = {
    "an owner that is not there": (
        lambda tensors, layers: layers["model.query"].update(shared_with="nobody")
    ),
    "an owner that is no name": (
        lambda tensors, layers: layers["model.query"].update(shared_with=3)
    ),
    "an owner of another width": (
        lambda tensors, layers: layers["model.query"].update(shared_with="point")
    ),
    "an owner that shares itself": (
        lambda tensors, layers: layers["model.query"].update(shared_with="grouped")
    ),
    "tensors beside those shared": (
        lambda tensors, layers: layers["model.conv"].update(shared_with="point")
    ),
    "no atoms": (lambda tensors, layers: tensors.pop("model.conv.block.shared_atoms")),
    "other columns": (
        lambda tensors, layers: tensors.update({"model.conv.block.shared_atoms": torch.ones(2, 7)})
    ),
    "no atom at all": (
        lambda tensors, layers: tensors.update(
            {
                "model.conv.block.shared_atoms": torch.ones(0, 8),
                "model.conv.block.shared_encoder": torch.ones(8, 0),
            }
        )
    ),
    "blocks of two rows": (lambda tensors, layers: layers["model.conv"].update(block=[2, 4])),
    "another view": (lambda tensors, layers: layers["model.conv"].update(view="joint")),
    "blocks that are no pair": (lambda tensors, layers: layers["model.query"].update(block=7)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused_in_one_sentence(damage, perturb, tmp_path):
    refuse_damaged(make_file(0, perturb), damage, tmp_path / "a.safetensors")


def test_what_shared_atoms_have_no_place_for_is_refused():
    for settings, named in (
        ({"block_size": 8}, "block_size is 8"),
        ({"block_share": 0.1}, "block_share is 0.1"),
        ({"decomposition": "sparse"}, "decomposition 'sparse'"),
    ):
        with pytest.raises(AtomError, match=named):
            AtomConfig("coefficients", block_form="shared", **settings)
    config = AtomConfig("coefficients", block_form="shared")
    assert AtomConfig.from_dict(config.to_dict()) == config
    with pytest.raises(AtomError, match="no layer of this Linear"):
        inject(nn.Linear(1, 4), config)


def test_sharing_is_part_of_what_a_file_is(perturb):
    file = make_file(0, perturb)
    layers = file.layers
    del layers["model.query"]
    less = replace(file, metadata=file.metadata | {"layers": json.dumps(layers)})
    assert less.tensors == file.tensors and less.sha256 != file.sha256


def test_names_that_no_tensor_could_have_are_refused(perturb, tmp_path):
    file = make_file(0, perturb)
    for name in ("model.", "model.x\ny", "model.\ud800", "model", ".x"):
        layers = file.layers | {name: file.layers["model.query"]}
        odd = replace(file, metadata=file.metadata | {"layers": json.dumps(layers)})
        with pytest.raises(AtomError, match="is no name of a layer"):
            read_atoms(odd.save(tmp_path / "a.safetensors"))


def test_many_layers_that_share_cost_a_sum_one_tensor(perturb):
    """A small file may name tens of thousands of them."""
    file = make_file(0, perturb)
    layers = file.layers
    layers |= {f"model.q{n}": layers["model.query"] for n in range(2000)}
    many = replace(file, metadata=file.metadata | {"layers": json.dumps(layers)})
    summed = compose([many, file], [1.0, 0.5])
    assert len(summed.tensors) == 4 + 2 and len(summed.layers) == len(layers)


@pytest.mark.parametrize("form", ["shared", "product"])
@pytest.mark.parametrize("strength", [1e38, 3e38])
def test_what_leaves_float32_is_refused_and_changes_nothing(perturb, form, strength):
    model = nn.ModuleDict({"query": nn.Linear(8, 6)})
    plain = copy.deepcopy(model)
    config = AtomConfig("coefficients", block_form=form, target_modules=("*",))
    file = pack_atoms({"model": perturb(inject(model, config), 30.0)})
    kept = plain["query"].weight.clone()
    with pytest.raises(AtomError, match="no finite float32 numbers"):
        load_atoms(plain, file, strength=strength)
    assert torch.equal(plain["query"].weight, kept)


@pytest.mark.parametrize("form", ["shared", "product"])
def test_empty_batches_and_channels_last_are_the_base(form, rng):
    conv = nn.Conv2d(64, 32, 3, padding=1).requires_grad_(False)
    model = nn.Sequential(conv)
    inputs = [torch.randn(1, 64, side, side, generator=rng) for side in (1, 16)]
    inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
    inputs.append(torch.zeros(0, 64, 4, 4))
    before = [model(x) for x in inputs]
    inject(model, AtomConfig("coefficients", block_form=form, target_modules=("*",)))
    for x, expected in zip(inputs, before, strict=True):
        found = model(x)
        assert torch.equal(found, expected) and found.stride() == expected.stride()


def test_a_models_own_state_holds_shared_tensors_once(x, perturb, tmp_path):
    """safetensors refuses tensors that share memory, and `assign` would part them."""
    model = make_model()
    injection = perturb(inject(model, CONFIG), 0.3)
    expected = [y.detach() for y in run(model, x)]
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    assert all(torch.equal(a, b) for a, b in zip(run(model, x), expected, strict=True))
    perturb(injection, 0.3, 5)
    changed = [y.detach() for y in run(model, x)]
    again = inject(other := make_model(), CONFIG)
    again.load_state_dict(injection.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(run(other, x), changed, strict=True))
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(run(twin, x), changed, strict=True))
    with torch.no_grad():
        twin["conv"].deltas["block"].shared_encoder.zero_()
    assert twin["query"].deltas["block"].shared_encoder.abs().max() == 0
    assert all(torch.equal(a, b) for a, b in zip(run(model, x), changed, strict=True))


def test_a_form_without_blocks_forgets_the_side_of_another():
    product = AtomConfig("coefficients", block_form="product")
    shared = replace(product, block_form="shared")
    assert AtomConfig.from_dict(shared.to_dict()) == shared
    settings = expand_preset("quick", {"block_form": "shared", "atom_layers": "text"})
    assert "block_size" not in settings


def test_part_of_the_tensors_bakes_into_the_own_model(x, perturb):
    """Spatial tensors alone, as averages of one kind are."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    config = AtomConfig("full", block_form="shared", num_inner_atoms=1)
    injection = perturb(inject(model, config), 0.3)
    named = {f"model.{k}": t for k, t in injection.state_dict().items() if ".spatial." in k}
    with torch.no_grad(), bake_injection(injection, named, "model"):
        assert model(torch.randn(1, 8, 9, 9)).isfinite().all()


def test_they_are_public_like_every_other_form(make_unet, make_file):
    file = sdatoms.read_atoms(make_file(variant="coefficients", block_form="shared"))
    assert {row.view.split()[0] for row in report_file(file)} == {"shared"}
