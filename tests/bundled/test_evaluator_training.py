"""What the bundled evaluator is trained by, and how the base is judged: the scripts' own laws."""

import torch
import torch.nn.functional as F
from bundled import base_judge, evaluator_models, evaluator_styles


def test_the_contrastive_loss_is_the_published_formula(rng):
    z = F.normalize(torch.randn(6, 4, generator=rng), dim=1)
    label = torch.tensor([0, 0, 0, 1, 1, 2])
    logits, apart = z @ z.T / 0.1, ~torch.eye(6, dtype=torch.bool)
    terms = []
    for i in range(5):  # the sixth has no positive
        others = [k for k in range(6) if k != i]
        total = torch.stack([logits[i, k].exp() for k in others]).sum()
        own = [k for k in others if label[k] == label[i]]
        terms.append(torch.stack([-(logits[i, k].exp() / total).log() for k in own]).mean())
    found = evaluator_models.contrast(logits, label[:, None] == label, apart)
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_every_batch_holds_two_vendors_of_each_concept(rng):
    concept = torch.arange(12).repeat_interleave(3)
    vendor = torch.arange(3).repeat(12)
    collection = type("Shown", (), {"concept": concept, "vendor": vendor})
    by_concept = [(concept == c).nonzero()[:, 0] for c in range(12)]
    pick = evaluator_models.pick_pictures(collection, by_concept, 5, rng)
    assert len(pick) == len(set(pick.tolist())) == 10
    first, second = pick[::2], pick[1::2]
    assert torch.equal(concept[first], concept[second])
    assert (vendor[first] != vendor[second]).all()


def test_restyling_is_one_per_group_and_leaves_group_0_and_paper_alone(rng):
    one = torch.rand(1, 3, 8, 8, generator=rng)
    one[..., 0] = 1.0
    x = one.repeat(5, 1, 1, 1)
    styled = evaluator_styles.restyle(x, torch.tensor([0, 1, 1, 2, 0]), rng)
    assert torch.equal(styled[0], x[0]) and torch.equal(styled[4], x[4])
    assert torch.equal(styled[1], styled[2])
    assert not torch.equal(styled[1], styled[3]) and not torch.equal(styled[1], x[1])
    assert (styled[..., 0] == 1).all() and 0 <= styled.min() and styled.max() <= 1


def test_views_keep_shape_and_range_and_follow_the_seed():
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    make = lambda seed: evaluator_models.make_view(x, torch.Generator().manual_seed(seed))
    view = make(0)
    assert view.shape == x.shape and 0 <= view.min() and view.max() <= 1
    assert torch.equal(view, make(0)) and not torch.equal(view, make(1))
    paper = evaluator_models.make_view(torch.ones(4, 3, 64, 64), torch.Generator().manual_seed(3))
    assert paper.mean() > 0.8


def test_a_rank_counts_the_real_pictures_that_are_nearer():
    nearness = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    assert base_judge.rank_own(nearness, [1, 0]).tolist() == [0, 2]


def test_a_picture_shrinks_to_its_own_averages(rng):
    x = torch.rand(2, 3, 64, 64, generator=rng)
    rows = base_judge.shrink(x)
    assert rows.shape == (2, 3 * 32 * 32)
    torch.testing.assert_close(rows[1, 0], x[1, 0, :2, :2].mean())


def test_moving_takes_pixels_as_they_are(rng):
    x = torch.rand(6, 3, 16, 16, generator=rng)
    moved = evaluator_styles.move(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape and not torch.equal(moved, x)
    for own, picture in zip(moved, x, strict=True):
        known = set(picture.flatten().tolist()) | {1.0}
        assert set(own.flatten().tolist()) <= known


def test_settling_measures_the_statistics_of_the_pictures_themselves(rng):
    learner = evaluator_styles.DrawingLearner()
    pictures = torch.randint(0, 256, (64, 3, 32, 32), generator=rng, dtype=torch.uint8)
    evaluator_styles.settle(learner.net, type("Shown", (), {"pictures": pictures}))
    level = learner.net.levels[0]
    features = level.entry(pictures.float() / 127.5 - 1)
    torch.testing.assert_close(level.norm.running_mean, features.mean((0, 2, 3)))
    again = level.norm.running_mean.clone()
    evaluator_styles.settle(learner.net, type("Shown", (), {"pictures": pictures}))
    torch.testing.assert_close(level.norm.running_mean, again)
