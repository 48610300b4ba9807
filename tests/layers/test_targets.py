"""Which layers take atoms: by default, by name, and never those that cannot."""

import pytest
import torch
from tiny.atoms import find_rows
from tiny.modules import snapshot
from torch import nn

from sdatoms import AtomConfig, AtomError, inject

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"target_modules": ["conv_in", "conv_inn"]}, "pattern 'conv_inn' matches no convolution"),
        ({"target_modules": ["time_proj"]}, "pattern 'time_proj' matches no convolution"),
        ({"exclude_modules": ["*"]}, "takes atoms of variant 'overcomplete' under the default"),
    ],
)
def test_targets_that_do_not_exist_are_refused_by_name(make_unet, config, sentence):
    unet = make_unet()
    before = snapshot(unet)
    with pytest.raises(AtomError, match=sentence):
        inject(unet, AtomConfig(**config))
    assert snapshot(unet) == before


def test_default_targets(make_unet, make_convnet):
    def paths(model, variant):
        return set(find_rows(inject(model, AtomConfig(variant))))

    spatial = {n for n, m in make_unet().named_modules() if getattr(m, "kernel_size", 0) == (3, 3)}
    assert paths(make_unet(), "overcomplete") == spatial
    full = paths(make_unet(), "full")
    assert spatial < full
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_k" in full
    assert not any("time_emb" in path for path in full)
    assert paths(make_convnet(), "atoms") == {"stem", "depthwise", "grouped"}
    assert paths(make_convnet(), "full") == {"stem", "depthwise", "pointwise", "grouped", "head"}


def test_named_layers_without_spatial_filters_take_block_atoms(make_convnet):
    config = AtomConfig("atoms", target_modules="head", block_size=2)
    row = find_rows(inject(make_convnet(), config))["head"]
    assert row.view == "channel 2x2"
    assert row.parameters == 16


def test_layers_that_cannot_be_tuned_are_left_out_and_named(make_convnet):
    model = make_convnet()
    nn.init.zeros_(model.stem.weight)
    model.grouped.weight.data[0] = torch.nan
    model.tied = nn.Conv2d(16, 16, 7, groups=16)
    model.tied.weight = model.depthwise.weight
    model.computed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    model.whole = nn.Conv2d(8, 8, 3)
    model.whole.weight = nn.Parameter(torch.ones(8, 8, 3, 3).to(torch.int8), requires_grad=False)
    model.good = nn.Conv2d(8, 8, 3)

    rows = find_rows(inject(model, AtomConfig("coefficients")))

    notes = {path: row.note for path, row in rows.items() if not row.view}
    assert set(notes) == {"stem", "grouped", "depthwise", "tied", "computed", "whole"}
    assert "zero everywhere" in notes["stem"]
    assert "NaN" in notes["grouped"]
    assert "tied to another layer" in notes["tied"]
    assert "computed from others" in notes["computed"]
    assert "stored as torch.int8" in notes["whole"]
    assert all(rows[path].parameters == 0 for path in notes)
