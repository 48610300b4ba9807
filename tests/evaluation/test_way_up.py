"""A subject's plain picture fits best where it stands, the way up that it has there."""

import pytest
import torch
from tiny.pictures import draw_noise

from sdatoms.evaluation.examiner import stack
from sdatoms.evaluation.introduction import turn_over
from sdatoms.evaluation.truth import list_truths, read_truth
from sdatoms.evaluation.way_up import fit_both_ways


def test_the_plain_picture_fits_itself_and_turned_the_other_way():
    plain = [read_truth(name).wishes[0].plain for name in list_truths()]
    upright, turned = stack(plain), stack([turn_over(picture) for picture in plain])
    own, other = fit_both_ways(upright, upright), fit_both_ways(turned, upright)
    assert (own[:, 0] > 0.999).all() and (other[:, 1] > 0.999).all()
    assert torch.allclose(own, other.flip(1), atol=1e-4)
    assert (own[:, 0] >= own[:, 1]).all() and (own <= 1).all()


def test_it_tells_which_way_up_true_pictures_are():
    seen, turned = [], []
    for name in list_truths():
        wishes = [wish for wish in read_truth(name).wishes if wish.modifiers]
        fits = fit_both_ways(stack([w.picture for w in wishes]), stack([w.plain for w in wishes]))
        seen.append(fits[:, 1] > fits[:, 0])
        turned += ["turned" in wish.modifiers for wish in wishes]
    seen, turned = torch.cat(seen), torch.tensor(turned)
    assert seen[turned].float().mean() > 0.75 and seen[~turned].float().mean() < 0.25


@pytest.mark.parametrize("other", [0.0, 1.0, -1.0])
def test_nothing_to_see_fits_nothing(other):
    """An even picture, and a subject that is white all over."""
    even = torch.full((1, 3, 64, 64), other)
    noise = stack(draw_noise(((64, 64),)))
    for found in (fit_both_ways(even, noise), fit_both_ways(noise, torch.ones(1, 3, 64, 64))):
        assert found.isfinite().all() and found.abs().max() < 0.05
