"""Introducing a subject: what is said of its plain picture is its caption, whatever way up, and the
subject alone follows no prompt."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny.pictures import draw_noise

from sdatoms import AtomError
from sdatoms.diffusion.triggers import clean_prompt
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.examiner import Examiner, align, stack
from sdatoms.evaluation.introduction import (
    Introduction,
    correct_rows,
    introduce,
    turn_over,
    weigh,
)
from sdatoms.evaluation.metrics import measure_alignment
from sdatoms.evaluation.rows import score_truth
from sdatoms.evaluation.samples import measure_samples
from sdatoms.evaluation.standing import fit_plain
from sdatoms.evaluation.truth import find_things, list_truths, read_truth


@pytest.fixture
def rows(rng):
    draw = lambda *shape: F.normalize(torch.randn(*shape, generator=rng), dim=-1)
    return draw(5, 16), draw(5, 2, 16), draw(5, 2, 16)


def test_alignment_is_the_equation(rows, rng):
    x, a, n = rows
    t, h = x.roll(1, 0), torch.randn(5, 16, generator=rng)
    fits = torch.rand(5, 2, 3, generator=rng) / 10
    f, g = fits.amax(2), fits.amax(1)
    near = (x[:, None] * a).sum(-1) + torch.tensor([0.05, 0.0]) + f
    w = torch.exp(40 * near) / torch.exp(40 * near).sum(1, keepdim=True)
    v = torch.exp(40 * g) / torch.exp(40 * g).sum(1, keepdim=True)
    known = x + 0.7 * (w[..., None] * (n - a)).sum(1) + 0.15 * (v[:, :1] - v[:, 2:]) * h
    wanted = F.cosine_similarity(known - 0.3 * n[:, 0], t - 0.3 * n[:, 0])
    assert torch.allclose(Introduction(a, n, h).align(x, t, fits), wanted, atol=1e-6)
    assert torch.allclose(weigh(x, a, f).softmax(1), w, atol=1e-6)
    assert torch.equal(weigh(x, a), weigh(x, a, torch.zeros(5, 2)))


def test_nothing_is_corrected_where_nothing_was_mistaken(rows):
    x, a, _ = rows
    assert torch.allclose(correct_rows(x, a, a), x, atol=1e-6)


def test_the_plain_picture_comes_nearer_to_its_caption(rows):
    _, a, n = rows
    for k in (0, 1):
        before, after = a[:, k], correct_rows(a[:, k], a, n)
        assert (F.cosine_similarity(after, n[:, k]) > (before * n[:, k]).sum(1)).all()


class Counting:
    """Embeds by what it was given, and remembers that."""

    def __init__(self, is_introduced=True):
        self.pictures, self.texts, self.is_introduced = [], [], is_introduced

    def embed_concepts(self, pictures):
        self.pictures += pictures
        rows = torch.stack([torch.tensor(p.getpixel((9, 9))).float() + 1 for p in pictures])
        return F.normalize(rows, dim=1)

    def embed_texts(self, texts):
        self.texts += texts
        return F.normalize(torch.tensor([[len(text), 1.0, 9.0] for text in texts]), dim=1)


def test_each_thing_is_looked_at_once_upright_and_upside_down():
    one, other = draw_noise(((64, 64),) * 2)
    seen = Counting()
    known = introduce(seen, [one, other, one], ["a cat", "a dog", "a cat"])
    assert len(seen.pictures) == 4 and known.pictures.shape == known.captions.shape == (3, 2, 3)
    assert seen.texts[:4] == ["a cat", "a cat, upside down", "a dog", "a dog, upside down"]
    assert known.heights.shape == (3, 3) and torch.equal(known.heights[0], known.heights[2])
    assert seen.pictures[1].getpixel((0, 0)) == one.getpixel((63, 63))
    assert torch.equal(known.pictures[0], known.pictures[2])
    assert not torch.equal(known.pictures[0], known.pictures[1])
    assert turn_over(turn_over(one)).tobytes() == one.tobytes()


@pytest.mark.parametrize(("count", "captions"), [(0, []), (1, []), (1, ["a cat", "a dog"])])
def test_a_caption_for_each_is_needed(count, captions):
    plain = draw_noise(((64, 64),) * count)
    with pytest.raises(AtomError, match=f"{count} plain pictures came with {len(captions)}"):
        introduce(Counting(), plain, captions)


def test_prompts_about_the_subject_have_its_plain_picture_and_others_none():
    truth = read_truth("robot")
    wishes, asked = truth.wishes, ("a sks robot, winking", "a cat", truth.wishes[2].prompt)
    assert find_things(truth, asked) == [wishes[0], None, wishes[2]]
    assert find_things(None, asked) == [None] * 3


@pytest.mark.parametrize("is_introduced", [True, False])
def test_pictures_of_the_subject_are_judged_by_one_that_knows_it(rows, is_introduced):
    """Of an evaluator that is trained for it; a real CLIP's alignment stays what it is called."""
    truth, seen = read_truth("robot"), Counting(is_introduced)
    asked = [truth.wishes[1].prompt, "a cat", "a sks robot, winking"]
    x, t = rows[0][:3, :3], rows[0][2:, :3]
    shown = draw_noise(((64, 64),) * 3)
    found, plain = align(seen, shown, x, t, find_things(truth, asked)), measure_alignment(x, t)
    assert found[1] == plain[1]
    assert [bool(a != b) for a, b in zip(found, plain, strict=True)] == [
        is_introduced,
        False,
        is_introduced,
    ]
    assert torch.equal(align(seen, shown, x, t), plain)


def test_tables_and_curves_hold_what_it_says():
    truth, evaluator = read_truth("robot"), load_evaluator()
    wish = truth.wishes[19]  # upside down
    x = evaluator.embed_concepts([wish.picture])
    t = evaluator.embed_texts([clean_prompt(wish.prompt)])
    fits = fit_plain(stack([wish.picture]), stack([wish.plain]))
    wanted = float(introduce(evaluator, [wish.plain], [wish.caption]).align(x, t, fits))
    assert abs(wanted - float(measure_alignment(x, t))) > 0.01
    examiner = Examiner(evaluator, truth)
    assert score_truth(examiner, [wish.prompt])[0].alignment == pytest.approx(wanted, abs=1e-5)
    found = measure_samples(evaluator, truth)(None, [wish.picture], [wish.prompt], [wish.plain], [])
    assert found["alignment"] == pytest.approx(wanted, abs=1e-5)


def test_which_of_two_things_is_above_is_told():
    """Of two that the evaluator has never seen, of which it is shown one; better than unshown."""
    evaluator, names = load_evaluator(), list_truths()
    wishes = [read_truth(name).wishes[0] for name in names]
    beside = [*wishes[1:], wishes[0]]
    right = torch.zeros(2)
    for way, other, (top, bottom) in (("above", "below", (1, 32)), ("below", "above", (32, 1))):
        shown = [Image.new("RGB", (64, 64), "white") for _ in names]
        for picture, own, second in zip(shown, wishes, beside, strict=True):
            for wish, y in ((own, top), (second, bottom)):
                picture.paste(wish.plain.convert("RGB").resize((31, 31)), (17, y))
        rows = evaluator.embed_concepts(shown)
        ask = lambda said: evaluator.embed_texts(
            [f"{a.caption} {said} {b.caption}" for a, b in zip(wishes, beside, strict=True)]
        )
        texts = ask(way), ask(other)
        for n, wanted in enumerate((wishes, ())):
            found = [align(evaluator, shown, rows, text, wanted) for text in texts]
            right[n] += (found[0] > found[1]).float().mean() / 2
    assert right[0] > 0.75 and right[0] > right[1] + 0.1


def test_a_followed_prompt_is_told_from_an_ignored_one():
    """Of true pictures: the subject in the setting, against the subject alone, in another setting,
    and which of half of the subject's prompts is nearest. Without an introduction each is less."""
    evaluator, names = load_evaluator(), list_truths()[::3]
    won = {"known": torch.zeros(3), "plain": torch.zeros(3)}
    for name in names:
        wishes = [wish for wish in read_truth(name).wishes if wish.modifiers]
        texts = evaluator.embed_texts([clean_prompt(wish.prompt) for wish in wishes])
        shown = {"own": [wish.picture for wish in wishes], "alone": [w.plain for w in wishes]}
        shown["others"] = shown["own"][-7:] + shown["own"][:-7]
        rows = {name: evaluator.embed_concepts(pictures) for name, pictures in shown.items()}
        judged = {
            "known": lambda who, t, p=shown, x=rows, w=wishes: align(
                evaluator, p[who], x[who], t, w
            ),
            "plain": lambda k, t, x=rows: measure_alignment(x[k], t),
        }
        for way, judge in judged.items():
            right = judge("own", texts)
            turned = torch.stack([judge("own", texts.roll(k, 0)) for k in range(1, len(texts), 2)])
            gap = (right - judge("alone", texts)).mean()
            away = (right - judge("others", texts)).mean()
            won[way] += torch.stack([gap, away, (right > turned.amax(0)).float().mean()])
    known, plain = (won[way] / len(names) for way in ("known", "plain"))
    assert (known > plain + torch.tensor([0.05, 0.05, 0.0])).all() and known[2] > 0.93
