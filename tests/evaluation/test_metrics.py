"""The figures' laws: ranges, ends of the range, symmetry, and what they must not depend on."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sdatoms import AtomError
from sdatoms.evaluation.metrics import (
    measure_alignment,
    measure_diversity,
    measure_drift,
    measure_error,
    measure_fidelity,
    measure_followed,
    measure_truth,
)


@pytest.fixture
def rows(rng):
    return lambda *shape: F.normalize(torch.randn(*shape, generator=rng), dim=-1)


def test_every_figure_stays_in_its_range(rows):
    a, b = rows(50, 6), rows(50, 6)
    for values, low, high in (
        (measure_fidelity(a, b), -1, 1),
        (measure_fidelity(a), -1, 1),
        (measure_alignment(a, b), -1, 1),
        (measure_drift(a, b), 0, 2),
        (measure_truth(a, b), -1, 1),
        (measure_diversity(rows(9, 5, 6)), 0, 2),
    ):
        assert values.ndim == 1
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6


def test_copies_score_one_and_do_not_drift_or_differ(rows):
    one = rows(1, 6)
    copies = one.expand(4, 6)
    torch.testing.assert_close(measure_fidelity(copies, one), torch.ones(4))
    torch.testing.assert_close(measure_fidelity(copies), torch.ones(4))
    torch.testing.assert_close(measure_alignment(copies, copies), torch.ones(4))
    torch.testing.assert_close(measure_drift(copies, copies), torch.zeros(4))
    torch.testing.assert_close(measure_diversity(copies[None]), torch.zeros(1))


def test_opposites_reach_the_other_end(rows):
    a = rows(5, 6)
    torch.testing.assert_close(measure_drift(a, -a), torch.full((5,), 2.0))
    torch.testing.assert_close(measure_alignment(a, -a), torch.full((5,), -1.0))
    pair = torch.stack([a[0], -a[0]])[None]
    torch.testing.assert_close(measure_diversity(pair), torch.full((1,), 2.0))


def test_fidelity_among_themselves_leaves_each_picture_out(rows):
    styles = rows(5, 6)
    alone = [measure_fidelity(styles[i : i + 1], styles[torch.arange(5) != i]) for i in range(5)]
    torch.testing.assert_close(measure_fidelity(styles), torch.cat(alone))


def test_fidelity_is_symmetric_in_the_mean_and_blind_to_order(rows):
    a, b = rows(4, 6), rows(7, 6)
    torch.testing.assert_close(measure_fidelity(a, b).mean(), measure_fidelity(b, a).mean())
    torch.testing.assert_close(measure_fidelity(a, b), measure_fidelity(a, b.flip(0)))


def test_diversity_is_the_mean_over_pairs_of_seeds(rows):
    styles = rows(3, 4, 6)
    pairs = [1 - (styles[:, i] * styles[:, j]).sum(1) for i in range(4) for j in range(4) if i < j]
    torch.testing.assert_close(measure_diversity(styles), torch.stack(pairs).mean(0))
    torch.testing.assert_close(measure_diversity(styles), measure_diversity(styles.flip(1)))


def test_drift_compares_picture_by_picture(rows):
    a = rows(4, 6)
    assert measure_drift(a, a).abs().max() < 1e-6 < measure_drift(a, a.roll(1, 0)).mean()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda r: measure_fidelity(r(2, 6), r(2, 6)[:0]), "instance pictures"),
        (lambda r: measure_fidelity(r(1, 6)), "1 pictures"),
        (lambda r: measure_diversity(r(2, 1, 6)), "2 seeds"),
        (lambda r: measure_drift(r(2, 6), r(3, 6)), "(3, 6)"),
        (lambda r: measure_alignment(r(2, 6), r(2, 5)), "(2, 5)"),
    ],
)
def test_what_cannot_be_measured_is_refused(rows, call, word):
    with pytest.raises(AtomError) as error:
        call(rows)
    assert word in str(error.value)


def test_the_error_is_that_of_pictures_shrunk_to_16_px():
    white, black = (Image.new("RGB", (64, 64), colour) for colour in ("white", "black"))
    half = Image.new("RGB", (64, 64), "white")
    half.paste("black", (0, 0, 32, 64))
    found = measure_error([white, white, white], [white, half, black])
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 1.0]))
    small = half.resize((16, 16), Image.Resampling.BOX)
    assert float(measure_error([half], [small])) == 0


def test_followed_is_the_share_of_what_was_asked_for():
    found = {"place": ["snow", "snow", None], "number": [None, 2, 3]}
    asked = [{"place": "snow"}, {"place": "beach", "number": 2}, {}]
    assert measure_followed(found, asked).tolist()[:2] == [1, 0.5]
    assert measure_followed(found, asked).isnan().tolist() == [False, False, True]
