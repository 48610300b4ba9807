"""A subject's plain picture fits best where it stands, the way up that it has there."""

import pytest
import torch
from PIL import Image
from tiny.pictures import draw_noise

from sdatoms.evaluation.examiner import stack
from sdatoms.evaluation.introduction import turn_over
from sdatoms.evaluation.standing import fit_plain
from sdatoms.evaluation.truth import list_truths, read_truth


def test_the_plain_picture_fits_itself_and_turned_the_other_way():
    plain = [read_truth(name).wishes[0].plain for name in list_truths()]
    upright, turned = stack(plain), stack([turn_over(picture) for picture in plain])
    own, other = (fit_plain(shown, upright).amax(2) for shown in (upright, turned))
    assert (own[:, 0] > 0.999).all() and (other[:, 1] > 0.999).all()
    assert torch.allclose(own, other.flip(1), atol=1e-4)
    assert (own[:, 0] >= own[:, 1]).all() and (own <= 1).all()


def test_it_tells_which_way_up_true_pictures_are():
    seen, turned = [], []
    for name in list_truths():
        wishes = [wish for wish in read_truth(name).wishes if wish.modifiers]
        fits = fit_plain(stack([w.picture for w in wishes]), stack([w.plain for w in wishes]))
        own, other = fits.amax(2).unbind(1)
        seen.append(other > own)
        turned += ["turned" in wish.modifiers for wish in wishes]
    seen, turned = torch.cat(seen), torch.tensor(turned)
    assert seen[turned].float().mean() > 0.75 and seen[~turned].float().mean() < 0.25


@pytest.mark.parametrize("side", [16, 24, 30])
@pytest.mark.parametrize("turned", [False, True])
def test_it_tells_how_high_the_subject_stands(side, turned):
    """Put by hand above a second thing, beside it and below it."""
    names = list_truths()
    plain = [read_truth(name).wishes[0].plain for name in names]
    for n, top in enumerate((1, 32 - side // 2, 63 - side)):
        pictures = []
        for own, second in zip(plain, [*plain[1:], plain[0]], strict=True):
            picture = Image.new("RGB", (64, 64), "lightblue")
            for shown, y in ((own, top), (second, 63 - side if top == 1 else 1)):
                shown = turn_over(shown) if turned else shown
                picture.paste(shown.convert("RGB").resize((side, side)), (2 if n == 1 else 17, y))
                if n == 1:
                    break
            pictures.append(picture)
        fits = fit_plain(stack(pictures), stack(plain))
        assert (fits.amax(1).argmax(1) == n).float().mean() > 0.9
        assert (fits.amax(2).argmax(1) == turned).float().mean() > 0.8


@pytest.mark.parametrize("other", [0.0, 1.0, -1.0])
def test_nothing_to_see_fits_nothing(other):
    """An even picture, and a subject that is white all over."""
    even = torch.full((1, 3, 64, 64), other)
    noise = stack(draw_noise(((64, 64),)))
    for found in (fit_plain(even, noise), fit_plain(noise, torch.ones(1, 3, 64, 64))):
        assert found.isfinite().all() and found.abs().max() < 0.05
