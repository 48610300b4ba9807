"""Pictures are covered and cut, never distorted, and land in the nearest bucket."""

import numpy as np
import pytest
from PIL import Image

from sdatoms import AtomError
from sdatoms.training.buckets import cut_picture, fit_picture, list_buckets


def test_automatic_buckets_lie_on_the_grid_within_the_area():
    for resolution, grid in ((512, 64), (64, 8), (16, 4)):
        buckets = list_buckets("auto", resolution, grid, 4)
        assert (resolution, resolution) in buckets and len(buckets) > 2
        assert {(w, h) for h, w in buckets} == set(buckets)
        for h, w in buckets:
            assert h % grid == w % grid == 0 and h * w <= resolution**2
            assert max(h, w) <= 2 * min(h, w)


def test_a_base_too_small_for_its_grid_has_buckets_beside_the_square():
    buckets = list_buckets("auto", 64, 32, 8)  # the bundled base
    assert {(48, 80), (64, 64), (80, 48)} <= set(buckets)


def test_buckets_can_be_named():
    assert list_buckets("64,32;48,40", 64, 16, 8) == [(64, 32), (48, 40)]
    assert list_buckets(None, 64, 16, 8) == [(64, 64)]
    for text, words in (("64", 'it takes "auto"'), ("64,60", "multiples of 8"), ("a,b", "takes")):
        with pytest.raises(AtomError, match=words):
            list_buckets(text, 64, 16, 8)
    with pytest.raises(AtomError, match="--resolution is 60; this base takes multiples of 8"):
        list_buckets(None, 60, 16, 8)


@pytest.mark.parametrize("size", [(100, 100), (300, 200), (200, 300), (1000, 10), (7, 9)])
def test_a_picture_covers_its_bucket_in_its_own_proportions(size):
    width, height = size
    fit = fit_picture(width, height, list_buckets("auto", 64, 8, 8))
    (sh, sw), (top, left), (th, tw) = fit.scaled, fit.corner, fit.target
    assert sh >= th and sw >= tw and (sh == th or sw == tw)
    assert 0 <= top <= sh - th and 0 <= left <= sw - tw
    scale = max(th / height, tw / width)
    assert abs(sh - scale * height) <= 0.5 and abs(sw - scale * width) <= 0.5


def test_the_nearest_proportions_win():
    buckets = list_buckets("64,64;48,80;80,48", 64, 8, 8)
    assert fit_picture(160, 96, buckets).target == (48, 80)
    assert fit_picture(96, 160, buckets).target == (80, 48)
    assert fit_picture(100, 95, buckets).target == (64, 64)


def test_the_middle_is_cut_out():
    picture = Image.new("RGB", (300, 100), "white")
    picture.paste("red", (100, 0, 200, 100))
    cut = cut_picture(picture, fit_picture(300, 100, [(64, 64)]))
    assert cut.size == (64, 64)
    assert np.array(cut)[:, 4:60].reshape(-1, 3).min(0).tolist() == [255, 0, 0]
