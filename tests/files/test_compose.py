"""Laws of composition: the sum of the bakes, of bounded size, in any order."""

import itertools
import json

import pytest
import torch
from tiny.atoms import VARIANTS
from tiny.modules import build, copy_weights
from torch import nn

from sdatoms import AtomConfig, AtomError, compose, inject, load_atoms, read_atoms
from sdatoms.adapters.bake import sum_maps
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bake(make_convnet):
    """The weights with files loaded one beside the other."""

    def run(files, strengths):
        model = make_convnet()
        for k, (file, strength) in enumerate(zip(files, strengths, strict=True)):
            load_atoms(model, file, name=str(k), strength=strength)
        return copy_weights(model)

    return run


@pytest.fixture
def check_sum(bake, tmp_path):
    """Compose, save, read, and compare one bake with the sum of bakes; returns the file."""

    def check(files, strengths):
        file = read_atoms(compose(files, strengths).save(tmp_path / "sum.safetensors"))
        expected, found = bake(files, strengths), bake([file], [1.0])
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)
        return file

    return check


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_bakes_what_its_files_bake_together(make_atoms, check_sum, bake, variant, dtype):
    """With one encoder, and with those of a base stored in another dtype."""
    files = [
        make_atoms("a", 1, variant=variant),
        make_atoms("b", 2, variant=variant, dtype=dtype),
        make_atoms("c", 3, variant=variant),
    ]

    file = check_sum(files, [0.7, -1.3, 0.25])

    assert file.config.variant == variant
    own = bake([file], [1.0])
    assert not torch.equal(own["stem.weight"], bake([], [])["stem.weight"])


MIXED = [
    {"variant": "atoms"},
    {"variant": "atoms", "num_atoms": 3},
    {"variant": "overcomplete", "num_inner_atoms": 2},
    {"variant": "overcomplete", "num_inner_atoms": 1, "num_atoms": 4},
    {"variant": "coefficients", "block_size": 2},
    {"variant": "coefficients", "block_size": 4, "block_view": "channel"},
    {"variant": "coefficients", "block_size": 2, "block_atoms": 3},
    {"variant": "full", "num_inner_atoms": 1},
    {"variant": "coefficients", "block_form": "product", "block_size": 4},
    {"variant": "full", "block_form": "product", "block_factors": "each", "block_size": 2},
    {"variant": "coefficients", "block_form": "shared"},
    {"variant": "atoms", "target_modules": ["head", "stem"]},
]


@pytest.mark.parametrize(("one", "other"), itertools.combinations(range(len(MIXED)), 2))
def test_any_two_configs_go_together(make_atoms, check_sum, one, other):
    check_sum([make_atoms("a", 1, **MIXED[one]), make_atoms("b", 2, **MIXED[other])], [0.5, -2])


def test_all_configs_go_together_and_sums_are_summed_again(make_atoms, check_sum, bake):
    files = [make_atoms(str(k), k, **config) for k, config in enumerate(MIXED)]
    strengths = [0.3 * k - 1 for k in range(len(files))]
    first = check_sum(files[:5], strengths[:5])
    second = check_sum([first, *files[5:]], [2.0, *strengths[5:]])

    expected = bake(files, [2 * s for s in strengths[:5]] + strengths[5:])
    for name, weight in bake([second], [1.0]).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=2e-6, msg=name)
    assert second.config.variant == "full"


def test_strengths_are_one_when_none_are_given_and_zero_adds_nothing(make_atoms, bake):
    a, b = make_atoms("a", 1), make_atoms("b", 2)
    both, one = bake([compose([a, b])], [1]), bake([compose([a, b], [1, 0])], [1])
    for name, weight in bake([a, b], [1, 1]).items():
        torch.testing.assert_close(both[name], weight, rtol=1e-5, atol=1e-6)
    for name, weight in bake([a], [1]).items():
        torch.testing.assert_close(one[name], weight, rtol=1e-6, atol=1e-7)


@pytest.fixture
def make_wide(perturb):
    """Atoms of one 64×64 convolution: an `overcomplete` delta of 1,971 numbers at m1 = 3."""

    def make(seed, dtype=torch.float32, **config):
        model = nn.Sequential(build(nn.Conv2d, 64, 64, 3)).to(dtype).float()
        injection = perturb(inject(model, AtomConfig(**config)), seed=seed)
        return pack_atoms({"model": injection})

    return make


def count_bytes(file):
    return sum(t.numel() * t.element_size() for t in file.tensors.values())


@pytest.mark.parametrize("variant", ["atoms", "coefficients"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_plain_atoms_of_one_encoder_keep_their_size(make_wide, variant, count):
    files = [make_wide(k, variant=variant, block_size=2) for k in range(count)]
    summed = compose(files)
    assert summed.num_parameters == files[0].num_parameters
    assert count_bytes(summed) == count_bytes(files[0])
    assert set(summed.tensors) == set(files[0].tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overcomplete_sums_are_bounded_whatever_their_number(make_wide, dtype):
    one = make_wide(0, num_inner_atoms=3)
    others = [make_wide(k, dtype if k % 2 else torch.float32, num_inner_atoms=3) for k in range(8)]
    sizes = {count: compose(others[:count]).num_parameters for count in (1, 2, 4, 8)}

    assert one.num_parameters == 64 * 9 * 3 + 9 * 3 * 9
    assert sizes[1] == one.num_parameters
    if dtype == torch.float32:
        assert sizes[2] == 2 * one.num_parameters
    assert sizes[4] == sizes[8] == 64 * 9 * 9
    assert max(sizes.values()) <= 9 / 3 * one.num_parameters
    again = compose([compose(others[:4]), compose(others[4:])])
    assert again.num_parameters == sizes[8]


def test_few_different_encoders_stand_side_by_side(make_wide):
    """m = 2 and 3 of 9: five columns, where an identity encoder would take nine."""
    few, more = make_wide(1, variant="atoms", num_atoms=2), make_wide(2, variant="overcomplete")
    three = make_wide(2, variant="atoms", num_atoms=3)
    assert compose([few, three]).num_parameters == few.num_parameters + three.num_parameters
    assert compose([few, few, three]).num_parameters == 5 * 9
    assert compose([few, more]).num_parameters == 64 * 9 * 9


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_arguments_changes_no_bit(make_atoms, variant):
    files = [make_atoms(t, k, variant=variant) for k, t in enumerate("abc")]
    strengths = [0.3, -0.9, 1.7]
    sums = [
        compose([files[k] for k in order], [strengths[k] for k in order])
        for order in itertools.permutations(range(3))
    ]
    for other in sums[1:]:
        assert list(other.tensors) == list(sums[0].tensors)
        assert all(torch.equal(t, sums[0].tensors[k]) for k, t in other.tensors.items())
        dates = {"modelspec.date": ""}
        assert other.metadata | dates == sums[0].metadata | dates


def test_more_than_nine_block_views_are_read_back(tmp_path, perturb):
    def make(seed, **config):
        model = nn.Sequential(build(nn.Conv2d, 12, 12, 3))
        config = AtomConfig("coefficients", block_atoms=2, **config)
        return pack_atoms({"model": perturb(inject(model, config), seed=seed)})

    sides = (1, 2, 3, 4, 6)
    files = [make(b, block_size=b, block_view=v) for b in sides for v in ("channel", "joint")]
    files.append(make(12, block_size=12, block_view="channel"))
    file = read_atoms(compose(files).save(tmp_path / "many.safetensors"))
    assert file.num_parameters == sum(f.num_parameters for f in files)
    assert len(file.maps("model")["0"]) == 11


def test_files_of_half_precision_go_with_files_of_full(make_convnet, perturb, check_sum):
    injection = perturb(inject(make_convnet()))
    files = [
        pack_atoms({"model": injection}, dtype=dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    assert {t.dtype for t in check_sum(files, [1, 1, 1]).tensors.values()} == {torch.float32}


def test_components_stand_side_by_side(make_convnet, perturb):
    one, two = perturb(inject(make_convnet(0))), perturb(inject(make_convnet(1)), seed=1)
    files = [pack_atoms({"unet": one}), pack_atoms({"text_encoder": two})]
    summed = compose(files, [2, 1])
    assert set(summed.components) == {"text_encoder", "unet"}
    assert set(summed.tensors) == set(files[0].tensors) | set(files[1].tensors)
    key = "unet.stem.spatial.inner_atoms"
    assert torch.equal(summed.tensors[key], 2 * files[0].tensors[key])
    twice = pack_atoms({"unet": one, "text_encoder": two})
    assert compose([twice, files[0]]).num_parameters > twice.num_parameters


def test_the_header_says_what_was_summed(make_atoms):
    a, b = make_atoms("sks dog", 1), make_atoms("wtr style", 2)
    summed = compose([a, b], [0.5, -1])
    meta = summed.metadata
    assert set(summed.trigger.split(", ")) == {"sks dog", "wtr style"}
    assert meta["base_model"] == "base 0"
    assert "'sks dog' at 0.5" in meta["modelspec.description"]
    assert "'wtr style' at -1" in meta["modelspec.description"]
    sources = {s["sha256"]: s["strength"] for s in json.loads(meta["composed_from"])}
    assert sources == {a.sha256: 0.5, b.sha256: -1}
    assert meta["modelspec.architecture"] == a.metadata["modelspec.architecture"]
    assert compose([a], title="mine").metadata["modelspec.title"] == "mine"


def test_what_cannot_be_summed_is_refused_by_name(make_atoms, perturb):
    a, b, other = make_atoms("sks dog", 1), make_atoms("b", 2), make_atoms("cat\n", 3, base=1)
    for files, strengths, sentence in [
        ([], [], "nothing to compose"),
        ([a, b], [1], "2 files came with 1 strengths"),
        ([a], [float("nan")], "a strength is nan; it takes a finite number"),
        ([a], ["1"], "a strength is '1'"),
        ([a], [True], "a strength is True"),
        (["a.safetensors"], None, "takes a list of atom files, as read_atoms gives them"),
        ([a], [1e300], "leave 'model.* no finite sum in float32"),
    ]:
        with pytest.raises(AtomError, match=sentence):
            compose(files, strengths)
    with pytest.raises(AtomError, match=r"3 of 3 common layers differ, first 'stem'") as error:
        compose([a, other])
    assert "'sks dog' (base 0)" in str(error.value)
    assert "'cat ' (base 1)" in str(error.value)


@pytest.mark.parametrize(
    ("one", "other", "sentence"),
    [
        (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 5), r"kernels \((3, 3|5, 5)\) and \((3, 3|5, 5)\)"),
        (nn.Conv2d(4, 4, 3), nn.Conv2d(8, 8, 3), "with 4 and 8 input channels"),
    ],
)
def test_layers_of_other_shapes_are_refused_without_fingerprints(perturb, one, other, sentence):
    """A header may keep silent about its base; the layers speak."""
    files = [pack_atoms({"model": perturb(inject(nn.Sequential(m)))}) for m in (one, other)]
    for file in files:
        file.metadata["base_fingerprints"] = "{}"
    with pytest.raises(AtomError, match=sentence):
        compose(files)


def test_products_stand_side_by_side_until_one_full_map_is_smaller(make_wide, tmp_path):
    """A pair of 4×4 factors holds 32 numbers, a full map 256 and its encoder as many."""
    config = {"variant": "coefficients", "block_form": "product", "block_size": 4}
    files = [make_wide(k, **config) for k in range(40)]
    sizes = {count: compose(files[:count]).num_parameters for count in (1, 2, 15, 16, 40)}
    assert sizes == {1: 32, 2: 64, 15: 480, 16: 256, 40: 256}
    few, many = compose(files[:3], [0.5, -1.0, 2.0]), compose(files, [0.1] * 40)
    for summed, parts, strengths in ((few, files[:3], [0.5, -1.0, 2.0]), (many, files, [0.1] * 40)):
        read = read_atoms(summed.save(tmp_path / "sum.safetensors"))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weight = nn.Conv2d(64, 64, 3).weight.detach()
        expected = sum(
            s * sum_maps(weight, [(1.0, m) for m in file.maps("model")["0"]])
            for file, s in zip(parts, strengths, strict=True)
        )
        found = sum_maps(weight, [(1.0, m) for m in read.maps("model")["0"]])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert compose(files[::-1]).sha256 == compose(files).sha256


def test_equal_products_are_one_at_the_sum_of_their_strengths(make_wide):
    file = make_wide(0, variant="coefficients", block_form="product", block_size=4)
    summed = compose([file, file], [0.5, 0.25])
    assert summed.num_parameters == 32
    assert float(summed.tensors["model.0.block.strength"]) == 0.75
    assert compose([summed], [2.0]).tensors["model.0.block.strength"] == 1.5
