"""Laws of the sparse decomposition from injection to file and back: those of the linear one, with
codes that no file holds.

Those of single layers are in `test_laws.py`.
"""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.atoms import VARIANTS, inject_one
from tiny.modules import SelfAttention, build
from torch import nn

from sdatoms import AtomConfig, AtomError, inject, load_atoms, read_atoms, save_atoms
from sdatoms.adapters.bake import bake_injection
from sdatoms.adapters.export import convert_to_diff
from sdatoms.atoms.codes import (
    CodeBook,
    clear_cache,
    encode_weight,
    fetch_codes,
    find_cache,
    fit_codes,
    measure_cache,
)
from sdatoms.atoms.decompose import View
from sdatoms.atoms.sparse import encode_rows
from sdatoms.files.anatomy import report_file
from sdatoms.files.compose import compose
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sparse_file(tmp_path, make_atoms):
    """Save sparse atoms tuned on `make_convnet()`; returns the path."""

    def make(name="dog", seed=1, variant="full", **settings):
        file = make_atoms(f"sks {name}", seed, decomposition="sparse", variant=variant, **settings)
        return file.save(tmp_path / f"{name}.safetensors")

    return make


@pytest.fixture
def pictures(rng):
    return torch.randn(2, 3, 12, 12, generator=rng)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("SDATOMS_CODE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sdatoms" / "codes"


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


@pytest.mark.parametrize("num_atoms", [4, 9, 12])
def test_the_rms_of_atoms_is_the_relative_change(rng, num_atoms):
    """Exactly for one atom, on average for all of them together."""
    weight = torch.randn(32, 64, 3, 3, generator=rng)
    basis, _ = fit_codes(weight, View("spatial", tuple(weight.shape)), num_atoms, 0.15, 0)
    changes = []
    for atom in range(num_atoms):
        delta = torch.zeros(num_atoms, 9)
        delta[atom] = torch.randn(9, generator=rng)
        delta *= 0.01 / delta.square().mean().sqrt()
        changes.append(float((basis.values @ delta).norm() / weight.norm()))
    assert changes == pytest.approx([0.01] * num_atoms, rel=1e-3)
    changes = []
    for _ in range(50):
        delta = 0.01 * torch.randn(num_atoms, 9, generator=rng)
        changes.append(float((basis.values @ delta).norm() / weight.norm()))
    assert sum(changes) / 50 == pytest.approx(0.01, rel=0.05)


def test_atoms_that_hardly_any_filter_uses_are_not_blown_up(rng):
    atoms = torch.eye(9)
    weight = torch.randn(30, 100, 9, generator=rng)
    weight[..., 8] = 0
    weight[0, 0, 8] = 3
    view = View("spatial", (30, 100, 3, 3))
    codes = encode_weight(weight.reshape(view.shape), view, CodeBook(atoms, 0.15))
    norms = codes.norm(dim=0)
    whole = float(weight.norm()) / 9
    assert norms[:8].tolist() == pytest.approx([whole] * 8, rel=1e-4)
    assert 0 < float(norms[8]) < 0.7 * whole
    with pytest.raises(AtomError, match="every code is zero"):
        encode_weight(weight.reshape(view.shape), view, CodeBook(atoms, 99.0))


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
    before = {k: v.clone() for k, v in injection.state_dict().items()}
    model.to(torch.bfloat16)
    assert model.grouped.deltas["spatial"].codes.dtype == torch.float32
    assert all(torch.equal(v, before[k]) for k, v in injection.state_dict().items())
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
        assert all(torch.equal(v, state[k]) for k, v in fresh.state_dict().items())
    with torch.no_grad():
        assert torch.equal(other(pictures), model(pictures))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_base_with_the_file_is_the_injected_model(
    tmp_path, make_convnet, perturb, pictures, variant
):
    model, fresh = make_convnet(), make_convnet()
    base = {k: v.clone() for k, v in fresh.state_dict().items()}
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
    half = {k: v.clone() for k, v in fresh.state_dict().items()}
    adapters.set_strengths({"dog": 1.0}).set_strengths({"dog": 0.25})
    assert all(torch.equal(v, half[k]) for k, v in fresh.state_dict().items())
    assert adapters.verify_base()
    adapters.clear()
    assert all(torch.equal(v, base[k]) for k, v in fresh.state_dict().items())


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
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(AtomError, match="weights of 5 of 5 layers are not those these sparse"):
        load_atoms(other, path)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
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
def test_a_cache_hit_is_a_miss_bit_for_bit(make_convnet, sparse_file, cache, variant, monkeypatch):
    path = sparse_file(variant=variant)
    first, second, third = make_convnet(), make_convnet(), make_convnet()
    assert measure_cache() == (0, 0)
    load_atoms(first, path)
    kept, size = measure_cache()
    files = sorted(cache.iterdir())
    assert kept == len(files) > 0
    assert size == sum(file.stat().st_size for file in files)
    stamps = [file.stat().st_mtime_ns for file in files]
    load_atoms(second, path)
    assert [file.stat().st_mtime_ns for file in sorted(cache.iterdir())] == stamps
    monkeypatch.setenv("SDATOMS_CODE_CACHE", "0")
    load_atoms(third, path)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
        assert torch.equal(value, third.state_dict()[key]), key


def test_the_cache_tells_weights_atoms_views_and_penalties_apart(cache, rng):
    weight = torch.randn(12, 8, 3, 3, generator=rng)
    view = View("spatial", (12, 8, 3, 3))
    basis, _ = fit_codes(weight, view, 9, 0.15, 0)
    book = basis.book
    assert torch.equal(fetch_codes(weight, view, book), basis.values)
    other, _ = fit_codes(weight, view, 9, 0.15, 1)
    changed = weight.clone()
    changed[0, 0, 0, 0] += 1e-3
    for number, (w, v, b) in enumerate(
        [
            (changed, view, book),
            (weight, View("spatial", (12, 8, 3, 3), 2), book),
            (weight, view, other.book),
            (weight, view, CodeBook(book.atoms, book.penalty * 1.01)),
        ],
        2,
    ):
        assert torch.equal(fetch_codes(w, v, b), encode_weight(w, v, b))
        assert measure_cache()[0] == number
    clear_cache()
    assert measure_cache() == (0, 0)


@pytest.mark.parametrize("damage", ["cut", "bits", "empty"])
def test_damaged_codes_are_found_anew(cache, rng, damage):
    weight = torch.randn(12, 8, 3, 3, generator=rng)
    view = View("spatial", (12, 8, 3, 3))
    basis, _ = fit_codes(weight, view, 9, 0.15, 0)
    fetch_codes(weight, view, basis.book)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    spoiled = {"cut": data[:-4], "bits": data[:-4] + b"\0\0\0\1", "empty": b""}[damage]
    file.write_bytes(spoiled)
    assert torch.equal(fetch_codes(weight, view, basis.book), basis.values)
    assert file.read_bytes() == data


def test_a_cache_that_cannot_be_written_is_done_without(cache, rng, caplog):
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the directory should be")
    weight = torch.randn(12, 8, 3, 3, generator=rng)
    view = View("spatial", (12, 8, 3, 3))
    basis, _ = fit_codes(weight, view, 9, 0.15, 0)
    assert torch.equal(fetch_codes(weight, view, basis.book), basis.values)
    assert "codes are not kept" in caplog.text
    assert measure_cache() == (0, 0)


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert find_cache() is None
    assert measure_cache() == (0, 0)
    monkeypatch.delenv("SDATOMS_CODE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (None, "", "relative"):
        if value is None:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert find_cache() == tmp_path / ".cache" / "sdatoms" / "codes"


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
        {"model": perturb(inject(make_convnet(), AtomConfig("atoms")))}, trigger="sks owl"
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
        other = pack_atoms({"model": perturb(inject(make_convnet(), config))}, trigger="sks cat")
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


def test_the_trainer_passes_the_decomposition_on():
    from sdatoms.training.config import TrainConfig, make_atom_config

    config = make_atom_config(TrainConfig(atom_decomposition="sparse", num_atoms=12))
    assert (config.decomposition, config.num_atoms) == ("sparse", 12)
