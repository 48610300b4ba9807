"""Laws of sparse atom files: small, refused where codes would be others, exact to sum."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.atoms import VARIANTS
from tiny.modules import copy_weights, same_weights

from sdatoms import AtomConfig, AtomError, inject, load_atoms, read_atoms
from sdatoms.adapters.export import convert_to_diff
from sdatoms.files.compose import compose
from sdatoms.files.contents import report_file
from sdatoms.files.writer import FileFacts, pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pictures(rng):
    return torch.randn(2, 3, 12, 12, generator=rng)


def test_files_hold_no_codes(make_convnet, sparse_file):
    path = sparse_file(variant="full")
    tensors = load_file(path)
    layers = json.loads(read_atoms(path).metadata["layers"])
    kinds = {key.split(".", 2)[2] for key in tensors if ".grouped." in key}
    assert kinds == {
        "sparse.base_atoms",
        "sparse.block_base_atoms",
        "spatial.inner_coefficients",
        "spatial.inner_atoms",
        "block.atoms",
    }
    assert set(layers["model.grouped"]["sparse"]["penalties"]) == {"spatial", "block"}
    assert layers["model.grouped"]["sparse"]["solver"] == "fista"
    small = sparse_file("small", variant="atoms", exclude_modules="depthwise")
    weights = sum(p.numel() for p in make_convnet().parameters())
    assert sum(t.numel() for t in load_file(small).values()) == 2 * 2 * 81 < weights / 10


def test_sparse_files_are_reported_and_exported(make_convnet, perturb):
    config = AtomConfig("full", "sparse", num_atoms=12)
    file = pack_atoms({"unet": perturb(inject(make_convnet(), config))})
    rows = {(row.layer, row.view): row for row in report_file(file)}
    stem = rows["unet.stem", "spatial"]
    assert (stem.atoms, stem.change) == (12, None)
    assert stem.bytes == 4 * (stem.parameters + 12 * 9)
    assert sum(row.parameters for row in rows.values()) == file.num_parameters

    diff = convert_to_diff(file, make_convnet())
    delta = load_atoms(make_convnet(), file, name="dog").delta("dog", "stem")
    assert torch.equal(diff.tensors["lora_unet_stem.diff"], delta)
    with pytest.raises(AtomError, match="not those these sparse atoms"):
        convert_to_diff(file, make_convnet(seed=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_sixteen_bits_keep_their_base_atoms(make_convnet, perturb, pictures, dtype):
    injection = perturb(inject(make_convnet(), AtomConfig("atoms", "sparse")))
    half = pack_atoms({"model": injection}, dtype=dtype)
    assert half.tensors["model.stem.sparse.base_atoms"].dtype == torch.float32
    assert half.tensors["model.stem.spatial.atoms"].dtype == dtype
    full, fresh = make_convnet(), make_convnet()
    load_atoms(full, pack_atoms({"model": injection}))
    load_atoms(fresh, half)
    with torch.no_grad():
        torch.testing.assert_close(fresh(pictures), full(pictures), rtol=0.02, atol=0.01)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 4e-4), (torch.bfloat16, 5e-3)])
def test_a_base_in_sixteen_bits_drifts_within_bounds(make_convnet, sparse_file, dtype, limit):
    path = sparse_file(variant="atoms", size=0.2)
    full = load_atoms(make_convnet(), path)
    cast = load_atoms(make_convnet().to(dtype), path)
    for layer in ("stem", "grouped"):
        exact = full.delta("dog", layer)
        drift = (cast.delta("dog", layer) - exact).norm() / exact.norm()
        assert 0 < float(drift) <= limit


def test_another_base_is_refused_and_stays(make_convnet, sparse_file):
    path = sparse_file()
    other = make_convnet(seed=1)
    before = copy_weights(other)
    with pytest.raises(AtomError, match="weights of 5 of 5 layers are not those these sparse"):
        load_atoms(other, path)
    assert same_weights(other, before)
    assert not any(name.startswith("_sdatoms") for name in vars(other))
    one = make_convnet()
    one.stem.weight.data.neg_()
    with pytest.raises(AtomError, match=r"weights of 1 of 5 layers .* first 'stem'"):
        load_atoms(one, path)


def test_a_file_without_fingerprints_is_refused(make_convnet, sparse_file):
    path = sparse_file()
    file = read_atoms(path)
    save_file(file.tensors, path, file.metadata | {"base_fingerprints": "{}"})
    with pytest.raises(AtomError, match="weights of 5 of 5 layers"):
        load_atoms(make_convnet(), path)


def spoil_layout(**facts):
    def spoil(tensors, metadata):
        layers = json.loads(metadata["layers"])
        layers["model.stem"]["sparse"] |= facts
        metadata["layers"] = json.dumps(layers)

    return spoil


def spoil_tensor(change):
    key = "model.stem.sparse.base_atoms"
    return lambda tensors, metadata: tensors.update({key: change(tensors[key]).contiguous()})


def without_facts(tensors, metadata):
    layers = json.loads(metadata["layers"])
    del layers["model.stem"]["sparse"]
    metadata["layers"] = json.dumps(layers)


def as_linear(tensors, metadata):
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | {"decomposition": "linear"})


def with_encoder(tensors, metadata):
    tensors["model.stem.spatial.encoder"] = torch.eye(9)


BAD = {
    "no penalties": (spoil_layout(penalties=None), "without the penalties"),
    "no facts": (without_facts, "without the penalties"),
    "other views": (spoil_layout(penalties={"block": 1}), "penalty is no number above 0"),
    "zero": (spoil_layout(penalties={"spatial": 0, "block": 1}), "penalty is no number above 0"),
    "nan": (spoil_layout(penalties={"spatial": torch.nan}), "penalty is no number above 0"),
    "text": (spoil_layout(penalties={"spatial": "1"}), "penalty is no number above 0"),
    "solver": (spoil_layout(solver="lars\n"), "of the solver 'lars ' where 'fista' fits"),
    "for ever": (spoil_layout(iterations=10**9), "no whole number from 1 to 10000"),
    "truth": (spoil_layout(iterations=True), "no whole number from 1 to 10000"),
    "tolerance": (spoil_layout(tolerance=-1), "tolerance is no number from 0 to 1"),
    "norm": (spoil_tensor(lambda t: t * 1.1), "not of unit norm"),
    "null": (spoil_tensor(torch.zeros_like), "not of unit norm"),
    "infinite": (spoil_tensor(lambda t: t / 0), "holds NaN or infinite"),
    "width": (
        spoil_tensor(lambda t: t[:, :4]),
        r"has base atoms of shape \(9, 4\) where \(at most",
    ),
    "too many": (
        spoil_tensor(lambda t: t.repeat(9, 1)),
        r"shape \(81, 9\) where \(at most 72, 9\)",
    ),
    "flat": (spoil_tensor(lambda t: t.flatten()), r"has base atoms of shape \(81,\)"),
    "missing": (
        lambda t, m: t.pop("model.stem.sparse.base_atoms"),
        "not base atoms with one set of trained tensors",
    ),
    "unknown": (
        lambda t, m: t.update({"model.stem.sparse.codes": torch.ones(1)}),
        r"none of the base atoms sparse\.base_atoms",
    ),
    "encoder": (with_encoder, "not base atoms with one set of trained tensors"),
    "linear": (as_linear, "not one encoder with one set of trained tensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(make_convnet, sparse_file, case):
    spoil, sentence = BAD[case]
    path = sparse_file(variant="overcomplete")
    file = read_atoms(path)
    tensors, metadata = dict(file.tensors), dict(file.metadata)
    spoil(tensors, metadata)
    save_file(tensors, path, metadata)

    with pytest.raises(AtomError, match=sentence) as error:
        load_atoms(make_convnet(), path)

    assert str(error.value).isprintable()
    assert "dog.safetensors" in str(error.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sums_of_files_with_the_same_codes(make_convnet, sparse_file, variant):
    files = [
        read_atoms(sparse_file(name, seed=seed, variant=variant, num_inner_atoms=2))
        for seed, name in enumerate(("dog", "cat", "owl"))
    ]
    strengths = [1.0, 0.5, -0.7]
    composed = compose(files, strengths)
    again = compose([compose(files[:2], strengths[:2]), files[2]], [1.0, strengths[2]])
    swapped = compose(files[::-1], strengths[::-1])

    mixed = load_atoms(make_convnet(), files[0], name="0", strength=1.0)
    for number, strength in enumerate(strengths[1:], 1):
        mixed.load(files[number], name=str(number), strength=strength)
    for key, value in composed.tensors.items():
        assert torch.equal(value, swapped.tensors[key]), key
    for file in (composed, again):
        fresh = make_convnet()
        load_atoms(fresh, file)
        for key, value in fresh.state_dict().items():
            torch.testing.assert_close(value, mixed.target.state_dict()[key], rtol=1e-5, atol=1e-6)
    if variant in ("atoms", "coefficients"):
        assert composed.num_parameters == files[0].num_parameters


def test_a_composed_sparse_file_is_a_valid_file(tmp_path, sparse_file):
    files = [read_atoms(sparse_file(name, seed=s)) for s, name in enumerate(("dog", "cat"))]
    composed = compose(files)
    back = read_atoms(composed.save(tmp_path / "both.safetensors"))
    assert back.config.decomposition == "sparse"
    assert back.sha256 == composed.sha256
    assert back.layers == composed.layers


def test_files_of_different_views_go_side_by_side(make_convnet, sparse_file):
    files = [
        read_atoms(sparse_file("dog", variant="atoms")),
        read_atoms(sparse_file("cat", variant="coefficients")),
    ]
    both, mixed = make_convnet(), make_convnet()
    load_atoms(both, compose(files))
    load_atoms(mixed, files[0], name="a").load(files[1], name="b")
    for key, value in both.state_dict().items():
        torch.testing.assert_close(value, mixed.state_dict()[key], rtol=1e-5, atol=1e-6)


def test_files_with_other_codes_do_not_compose_but_load_side_by_side(
    tmp_path, make_convnet, perturb, sparse_file
):
    dog = read_atoms(sparse_file("dog", variant="atoms"))
    linear = pack_atoms(
        {"model": perturb(inject(make_convnet(), AtomConfig("atoms")))},
        FileFacts(trigger="sks owl"),
    )
    for settings, sentence in [
        (
            {"sparsity": 0.2},
            r"a sparsity of 0\.\d+ and 'sks \w+' of 0\.\d+; sparse files compose only",
        ),
        ({"config_seed": 5}, r"have different sparse atoms, λ or solvers in 'model\.\w+\.spatial'"),
        ({"num_atoms": 12}, r"'sks \w+' and 'sks \w+' have different sparse atoms"),
    ]:
        seed = settings.pop("config_seed", 0)
        config = AtomConfig("atoms", "sparse", seed=seed, **settings)
        other = pack_atoms(
            {"model": perturb(inject(make_convnet(), config))}, FileFacts(trigger="sks cat")
        )
        with pytest.raises(AtomError, match=sentence):
            compose([dog, other])
        adapters = load_atoms(make_convnet(), dog, name="dog").load(other, name="cat")
        assert adapters.names == ("dog", "cat")
    for files in ([dog, linear], [linear, dog]):
        with pytest.raises(AtomError, match="sparse files compose only with sparse ones"):
            compose(files)

    model, back = make_convnet(), make_convnet()
    adapters = load_atoms(model, dog, name="dog").load(linear, name="owl")
    load_atoms(back, linear, name="owl").load(dog, name="dog")
    for key, value in model.state_dict().items():
        assert torch.equal(value, back.state_dict()[key]), "the order of loading matters"
    total = (
        make_convnet().stem.weight + adapters.delta("dog", "stem") + adapters.delta("owl", "stem")
    )
    torch.testing.assert_close(model.stem.weight, total, rtol=1e-5, atol=1e-6)
    adapters.clear()
    assert torch.equal(model.stem.weight, make_convnet().stem.weight)
