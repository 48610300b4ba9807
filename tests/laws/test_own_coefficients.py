"""Shared atoms with coefficients of each layer's own, read from weights and from activations."""

from dataclasses import replace

import pytest
import torch
from tiny.atoms import check_reload, refuse_damaged
from torch import nn

from sdatoms import AtomConfig, AtomError, compose, inject, load_atoms, read_atoms
from sdatoms.atoms.decompose import View
from sdatoms.atoms.shared import run_own
from sdatoms.diffusion.open import load_base
from sdatoms.files.anatomy import mute_atom
from sdatoms.files.contents import report_file
from sdatoms.files.likeness import compare_files
from sdatoms.files.writer import pack_atoms

SETTINGS = {"block_form": "shared", "block_factors": "each", "target_modules": ("*",)}
CONFIG = AtomConfig("coefficients", block_atoms=2, **SETTINGS)
OWNERS = ("conv", "point")
ROWS = {"conv": 6 * 9, "point": 12, "grouped": 8 * 9, "query": 5}


def make_model(seed=0):
    """Two layers that read 8 numbers, two that read 6."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {
                "conv": nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
                "point": nn.Conv2d(6, 12, 1),
                "grouped": nn.Conv2d(12, 8, 3, stride=2, dilation=2, padding=2, groups=2),
                "query": nn.Linear(8, 5),
            }
        )


def run(model, x):
    y = model["grouped"](model["point"](model["conv"](x)))
    return y, model["query"](y.flatten(2).mT.contiguous())


@pytest.fixture
def x(rng):
    return torch.randn(2, 8, 5, 4, generator=rng)


def make_file(seed, perturb, scale=0.3, **settings):
    injection = inject(make_model(), AtomConfig(**{**CONFIG.to_dict(), **settings}))
    return pack_atoms({"model": perturb(injection, scale, seed)})


def form_changes(file):
    """Path → ΔW of a file, as it is baked."""
    model, base = make_model(), make_model()
    load_atoms(model, file)
    return {name: (model[name].weight - base[name].weight).detach() for name in base}


@pytest.mark.parametrize("groups", [0, 2])
def test_gradients_are_those_of_finite_differences(groups, rng):
    base = nn.Conv2d(4, 6, 3, groups=2) if groups else nn.Linear(4, 3)
    base = base.double().requires_grad_(False)
    view = View("channel", tuple(base.weight.shape), groups or 1, (1, 2 if groups else 4))
    shapes = ((view.height, 2), (2, view.width))
    x = torch.randn((1, 4, 3, 3) if groups else (2, 4), generator=rng).double()
    own = [torch.randn(s, generator=rng).double() for s in shapes]
    inputs = [t.requires_grad_() for t in (x, *own)]
    branch = nn.functional.linear
    if groups:
        branch = lambda z, w: nn.functional.conv2d(z, w, groups=2)
    assert torch.autograd.gradcheck(
        lambda x, c, d: run_own(x, c, d, base, branch, view, groups), inputs
    )


def test_layers_share_atoms_and_start_at_the_base(x, perturb):
    model = make_model()
    before = [y.detach() for y in run(model, x)]
    injection = inject(model, CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(run(model, x), before, strict=True))
    names = {name: p.numel() for name, p in injection.named_parameters()}
    own = {f"{path}.block.coefficients": 2 * rows for path, rows in ROWS.items()}
    shared = {"conv.block.shared_atoms": 2 * 8, "point.block.shared_atoms": 2 * 6}
    assert names == own | shared
    assert injection.num_parameters == sum(names.values())
    rows = {row.path: row.parameters for row in injection.report()}
    assert rows == {
        p: 2 * n + 2 * (8 if p == "conv" else 6) * (p in OWNERS) for p, n in ROWS.items()
    }
    sum(y.square().sum() for y in run(model, x)).backward()
    grads = {name: p.grad.abs().max() for name, p in injection.named_parameters()}
    assert all((grad > 0) == ("coefficients" in name) for name, grad in grads.items())
    perturb(injection, 0.3)
    injection.model.zero_grad()
    model["query"](torch.randn(3, 8)).sum().backward()
    assert injection.layers["conv"].deltas["block"].shared_atoms.grad.abs().max() > 0
    for path, layer in injection.layers.items():  # activations and weight give one layer
        seen = torch.randn(2, *({"query": (5, 8), "grouped": (12, 7, 6)}.get(path, (8, 7, 6))))
        seen = seen[:, :6] if path == "point" else seen
        plain = make_model()[path]
        plain.weight.data = layer.tuned_weight().detach()
        torch.testing.assert_close(layer(seen), plain(seen), rtol=1e-4, atol=1e-5)
    injection.eject()
    assert all(torch.equal(a, b) for a, b in zip(run(model, x), before, strict=True))


def test_a_file_keeps_the_atoms_once_and_loads_as_it_was_trained(x, perturb, tmp_path):
    model = make_model()
    injection = perturb(inject(model, CONFIG), 0.3)
    trained = [y.detach() for y in run(model, x)]
    file = pack_atoms({"model": injection})
    injection.eject()
    assert sorted(key.rpartition(".")[2] for key in file.tensors) == (
        ["coefficients"] * 4 + ["shared_atoms"] * 2
    )
    read = read_atoms(file.save(tmp_path / "a.safetensors"))
    assert read.sha256 == file.sha256
    assert {p: [m.owner for m in maps] for p, maps in read.maps("model").items()} == {
        "conv": [None],
        "point": [None],
        "grouped": ["point"],
        "query": ["conv"],
    }
    rows = report_file(read)
    assert sum(row.parameters for row in rows) == file.num_parameters
    assert {row.view for row in rows} == {"shared 1x8", "shared 1x6"}
    check_reload(model, CONFIG, read, lambda: run(model, x), trained)


def test_sums_are_sums_of_the_changes_and_share_atoms(perturb):
    files = [make_file(seed, perturb) for seed in range(5)]
    strengths = [1.0, 0.5, -1.0, 2.0, 0.1]
    twice = compose([files[0], files[0]], [0.5, 0.25])
    assert twice.num_parameters == files[0].num_parameters
    two, five = compose(files[:2], strengths[:2]), compose(files, strengths)
    assert two.num_parameters == 2 * files[0].num_parameters
    assert len(two.tensors) == len(five.tensors) == 6
    for summed, count in ((two, 2), (five, 5)):
        parts = [form_changes(file) for file in files[:count]]
        for path, change in form_changes(summed).items():
            expected = sum(s * p[path] for s, p in zip(strengths, parts, strict=False))
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
    assert compose(files[::-1]).sha256 == compose(files).sha256
    encoded = make_file(7, perturb, block_factors="shared")
    both = compose([files[0], encoded])
    for path, change in form_changes(both).items():
        expected = form_changes(files[0])[path] + form_changes(encoded)[path]
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)


def test_likeness_is_that_of_the_changes(perturb):
    files = [make_file(seed, perturb) for seed in range(2)]
    files.append(compose(files, [1.0, 0.5]))
    flat = [torch.cat([c.flatten() for c in form_changes(f).values()]) for f in files]
    found = compare_files(files)
    for a, first in enumerate(flat):
        for b, second in enumerate(flat):
            cosine = torch.cosine_similarity(first, second, 0)
            assert found[a][b].cosine == pytest.approx(float(cosine), abs=1e-4)


def test_muting_one_layer_leaves_what_others_share(perturb):
    file = make_file(0, perturb)
    before = form_changes(file)
    for path in ROWS:
        after = form_changes(mute_atom(file, 0, path=path))
        assert not torch.equal(after[path], before[path])
        for other in ROWS.keys() - {path}:
            torch.testing.assert_close(after[other], before[other])


def hide_owner(layers):
    layers.pop("model.conv")
    layers["model.conv"] = {"kernel": [3, 3], "groups": 1, "shared_with": "nobody"}


DAMAGES = {
    "coefficients without atoms": (
        lambda tensors, layers: tensors.pop("model.conv.block.shared_atoms")
    ),
    "rows that no kernel has": (
        lambda tensors, layers: tensors.update(
            {"model.grouped.block.coefficients": torch.ones(7, 2)}
        )
    ),
    "another number of atoms": (
        lambda tensors, layers: tensors.update({"model.query.block.coefficients": torch.ones(5, 3)})
    ),
    "an encoder beside coefficients": (
        lambda tensors, layers: tensors.update(
            {"model.conv.block.shared_encoder": torch.ones(8, 2)}
        )
    ),
    "no coefficients where others have some": (
        lambda tensors, layers: tensors.pop("model.query.block.coefficients")
    ),
    "an owner that has no blocks of its own": (lambda tensors, layers: hide_owner(layers)),
    "a vector": (
        lambda tensors, layers: tensors.update({"model.query.block.coefficients": torch.ones(5)})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused_in_one_sentence(damage, perturb, tmp_path):
    refuse_damaged(make_file(0, perturb), damage, tmp_path / "a.safetensors")


def test_a_file_for_other_rows_is_refused(perturb):
    file = make_file(0, perturb)
    other = make_model()
    other["query"] = nn.Linear(8, 7)
    with pytest.raises(AtomError, match="has 7 rows where the file's atoms have 5"):
        load_atoms(other, file)


def test_sums_beside_other_forms_keep_every_tensor_its_own(perturb, tmp_path):
    """Shared atoms then stand in `block` of one layer and in `block_2` of another."""
    for factors in ("each", "shared"):
        files = [make_file(seed, perturb, block_factors=factors) for seed in range(2)]
        files.append(
            make_file(
                2,
                perturb,
                block_form="map",
                block_factors="shared",
                block_size=1,
                block_view="channel",
                target_modules=["query"],
            )
        )
        summed = read_atoms(compose(files).save(tmp_path / f"{factors}.safetensors"))
        parts = [form_changes(file) for file in files]
        for path, change in form_changes(summed).items():
            expected = sum(part.get(path, 0) for part in parts)
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factors", ["each", "shared"])
@pytest.mark.parametrize("keep", ["memory", "attach"])
def test_rows_of_another_length_are_refused(factors, keep, perturb):
    wide, narrow = (nn.Sequential(nn.Linear(i, 6)) for i in (8, 4))
    config = AtomConfig("coefficients", **SETTINGS | {"block_factors": factors})
    file = pack_atoms({"model": perturb(inject(narrow, config), 0.3)})
    with pytest.raises(AtomError, match="rows of 8 where the file's shared atoms have 4"):
        load_atoms(wide, file, keep_weights=keep)


def test_files_of_two_bases_are_compared_and_not_summed(perturb):
    files = []
    for rows in (6, 7):
        model = nn.Sequential(nn.Linear(8, rows))
        file = pack_atoms({"model": perturb(inject(model, CONFIG), 0.3)})
        files.append(replace(file, metadata=file.metadata | {"base_fingerprints": "{}"}))
    assert compare_files(files)[0][1].cosine == 0
    with pytest.raises(AtomError, match="with 6 and 7 rows; they fit no common base"):
        compose(files)


@pytest.mark.parametrize("factors", ["each", "shared"])
def test_no_strength_writes_what_is_no_number(factors, perturb):
    model = nn.Sequential(nn.Linear(8, 6))
    config = AtomConfig("coefficients", **SETTINGS | {"block_factors": factors})
    injection = inject(model, config)
    untrained = pack_atoms({"model": injection})
    trained = pack_atoms({"model": perturb(injection, 0.3)})
    injection.eject()
    kept = model[0].weight.clone()
    with pytest.raises(AtomError, match="no finite float32 numbers"):
        load_atoms(model, trained, strength=1e39)
    load_atoms(model, untrained, strength=1e39)  # of nothing
    assert torch.equal(model[0].weight, kept)


def test_the_layers_that_read_the_prompt_hold_few_numbers():
    unet = load_base().unet
    config = AtomConfig(
        "coefficients",
        block_form="shared",
        block_factors="each",
        target_modules=("*.attn2.to_k", "*.attn2.to_v"),
    )
    injection = inject(unet, config)
    rows = sum(layer.out_features for layer in injection.layers.values())
    assert injection.num_parameters == 4 * (rows + unet.config.cross_attention_dim)
    injection.eject()
