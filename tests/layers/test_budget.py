"""Laws of the parameter counts: the page's formulas, and the budget rule."""

import math

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tiny.atoms import VARIANTS
from torch import nn

from sdatoms import AtomConfig, inject
from sdatoms.layers.budget import BUDGET

pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(injection):
    return {row.path: row for row in injection.report()}


@pytest.mark.parametrize(
    ("o", "i", "groups", "kernel"), [(8, 8, 1, 3), (12, 8, 4, 3), (6, 10, 1, (3, 1))]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_are_the_formulas(rng, variant, o, i, groups, kernel):
    m, m1, b = 3, 2, 2
    model = nn.Sequential(nn.Conv2d(i, o, kernel, groups=groups))
    config = AtomConfig(variant, num_atoms=m, num_inner_atoms=m1, block_atoms=5, block_size=b)
    weight = model[0].weight
    p = weight[0, 0].numel()
    spatial = {"atoms": m * p, "coefficients": 0}.get(variant, i * m * m1 + m * m1 * p)
    sides = [max(s for s in (1, b) if n % s == 0) for n in (o // groups, i // groups)]
    width = sides[0] * sides[1] * p
    block = 0 if variant in ("atoms", "overcomplete") else min(5, weight.numel() // width) * width

    injection = inject(model, config)

    assert injection.num_parameters == spatial + block
    assert sum(p.numel() for p in injection.parameters()) == spatial + block
    assert sum(row.parameters for row in injection.report()) == spatial + block


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (AtomConfig("atoms"), 4_212),
        (AtomConfig("overcomplete", num_inner_atoms=3), 1_516_104),
        (AtomConfig("coefficients", block_size=4), 1_059_840),
    ],
)
def test_counts_on_stable_diffusion_1(rng, config, numbers):
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    convs = [m for m in unet.modules() if isinstance(m, nn.Conv2d)]
    shapes = [tuple(m.weight.shape) for m in convs if m.kernel_size == (3, 3)]
    assert (len(convs), len(shapes)) == (98, 52)

    # Counts depend on shapes and ranks only: one random layer stands for all of its shape.
    total = 0
    for o, i, *kernel in set(shapes):
        model = nn.Sequential(nn.utils.skip_init(nn.Conv2d, i, o, kernel))
        model[0].weight.data.uniform_(-1, 1, generator=rng)
        total += shapes.count((o, i, *kernel)) * inject(model, config).num_parameters
    assert total == numbers


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_default_delta_holds_at_most_a_quarter_of_its_layer(make_unet, make_convnet, variant):
    for model in (make_unet(), make_convnet()):
        injection = inject(model, AtomConfig(variant))
        for path, layer in injection.layers.items():
            for view, delta in layer.views().items():
                held = sum(p.numel() for p in delta.parameters())
                assert held <= layer.weight.numel() / BUDGET, (path, view)


def test_the_budget_lowers_defaults_visibly_and_explicit_numbers_stand(make_convnet):
    # stem: 16 x 3 x 3 x 3 = 432 weights, so at most 108; (3 + 9) * 9 = 108 an inner atom.
    row = rows_of(inject(make_convnet(), AtomConfig("overcomplete")))["stem"]
    assert (row.atoms, row.parameters, row.note) == (9, 108, "budget: inner atoms 3 → 1")
    row = rows_of(inject(make_convnet(), AtomConfig(num_inner_atoms=3)))["stem"]
    assert (row.atoms, row.parameters, row.note) == (9, 324, "")
    row = rows_of(inject(make_convnet(), AtomConfig("coefficients")))["stem"]
    assert (row.view, row.parameters) == ("joint 1x1", 81)
    assert row.note == "budget: block 4x3 → 1x1"
    row = rows_of(inject(make_convnet(), AtomConfig("coefficients", block_size=4)))["stem"]
    assert (row.view, row.atoms, row.note) == ("joint 4x3", 4, "")
    row = rows_of(inject(make_convnet(), AtomConfig("atoms", num_atoms=12)))["stem"]
    assert (row.atoms, row.note) == (9, "rank: spatial atoms 12 → 9")
    row = rows_of(inject(make_convnet(), AtomConfig("atoms", num_atoms=2)))["stem"]
    assert (row.atoms, row.note) == (2, "")
    assert 0 < row.error < 1


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("decomposition", ["linear", "sparse"])
def test_block_atoms_hold_the_share_of_every_layer_they_are_given(rng, share, decomposition):
    channels = (8, 16, 32)
    model = nn.Sequential(*(nn.Conv2d(c, c, 3) for c in channels))
    config = AtomConfig(
        "coefficients", decomposition, block_size=8, block_view="channel", block_share=share
    )
    for row, c in zip(inject(model, config).report(), channels, strict=True):
        blocks = 9 * (c // 8) ** 2
        atoms = min(max(1, math.floor(share * blocks)), blocks, 64)
        assert (row.view, row.atoms, row.parameters) == ("channel 8x8", atoms, atoms * 64)
        assert row.parameters <= max(64, share * 9 * c * c)
        complete = min(blocks, 64)
        cut = f"share: channel atoms {complete} → {atoms}"
        assert (cut in row.note) == (atoms < complete)


@pytest.mark.parametrize(("share", "cause"), [(0.3, "share"), (0.9, "budget")])
def test_the_report_says_whether_share_or_budget_cut(rng, share, cause):
    # 36 weights, of which a quarter is one atom of 9; four rows, of which 0.9 would be three.
    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    row = rows_of(inject(model, AtomConfig("coefficients", block_share=share)))["0"]
    assert row.note == f"budget: block 2x2 → 1x1; {cause}: joint atoms 4 → 1"


@pytest.mark.parametrize("variant", ["overcomplete", "coefficients", "full"])
def test_depthwise_layers_fall_back_to_spatial_atoms(make_convnet, variant):
    row = rows_of(inject(make_convnet(), AtomConfig(variant)))["depthwise"]
    # 16 filters of 7x7: 784 weights, at most 196; four atoms of 49.
    assert (row.view, row.atoms, row.parameters) == ("spatial", 4, 196)
    assert row.note.startswith("depthwise: spatial atoms only")
    assert "budget: spatial atoms 16 → 4" in row.note


def test_views_of_more_columns_than_maps_may_have_are_left_out():
    config = AtomConfig("full", block_size=32, target_modules=("0", "1"))
    model = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 1))
    rows = rows_of(inject(model, config))
    note = "joint left out: its 9216 columns are more than the 4096 that fit"
    assert note in rows["0"].note and rows["0"].view == "spatial"
    assert rows["1"].view == "channel 32x32"
