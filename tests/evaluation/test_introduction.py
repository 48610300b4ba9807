"""Introducing a subject: what is said of its plain picture is its caption, whatever way up."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny.pictures import draw_noise

from sdatoms import AtomError
from sdatoms.diffusion.triggers import clean_prompt
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.examiner import Examiner
from sdatoms.evaluation.introduction import correct_rows, introduce, turn_over, weigh
from sdatoms.evaluation.metrics import measure_alignment
from sdatoms.evaluation.truth import list_truths, read_truth


@pytest.fixture
def rows(rng):
    draw = lambda *shape: F.normalize(torch.randn(*shape, generator=rng), dim=-1)
    return draw(5, 16), draw(5, 2, 16), draw(5, 2, 16)


def test_the_correction_is_the_equation(rows):
    x, a, t = rows
    w = torch.exp(15 * (x[:, None] * a).sum(-1))
    w = w / w.sum(1, keepdim=True)
    wanted = x + 0.5 * (w[:, 0, None] * (t[:, 0] - a[:, 0]) + w[:, 1, None] * (t[:, 1] - a[:, 1]))
    found = correct_rows(x, a, t)
    assert torch.allclose(found, wanted / wanted.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(weigh(x, a).softmax(1), w, atol=1e-6)


def test_nothing_is_corrected_where_nothing_was_mistaken(rows):
    x, a, _ = rows
    assert torch.allclose(correct_rows(x, a, a), x, atol=1e-6)


def test_the_plain_picture_comes_nearer_to_its_caption(rows):
    _, a, t = rows
    for k in (0, 1):
        before, after = a[:, k], correct_rows(a[:, k], a, t)
        assert (measure_alignment(after, t[:, k]) > measure_alignment(before, t[:, k])).all()


class Counting:
    """Embeds by what it was given, and remembers that."""

    def __init__(self):
        self.pictures, self.texts = [], []

    def embed_concepts(self, pictures):
        self.pictures += pictures
        return torch.stack([torch.tensor(p.getpixel((0, 0))).float() for p in pictures])

    def embed_texts(self, texts):
        self.texts += texts
        return torch.tensor([[len(text), 0.0, 0.0] for text in texts])


def test_each_thing_is_looked_at_once_upright_and_upside_down():
    one, other = draw_noise(((64, 64),) * 2)
    seen = Counting()
    known = introduce(seen, [one, other, one], ["a cat", "a dog", "a cat"])
    assert len(seen.pictures) == 4 and known.pictures.shape == known.captions.shape == (3, 2, 3)
    assert seen.texts == ["a cat", "a cat, upside down", "a dog", "a dog, upside down"]
    assert seen.pictures[1].getpixel((0, 0)) == one.getpixel((63, 63))
    assert torch.equal(known.pictures[0], known.pictures[2])
    assert not torch.equal(known.pictures[0], known.pictures[1])
    assert turn_over(turn_over(one)).tobytes() == one.tobytes()


@pytest.mark.parametrize(("count", "captions"), [(0, []), (1, []), (1, ["a cat", "a dog"])])
def test_a_caption_for_each_is_needed(count, captions):
    plain = draw_noise(((64, 64),) * count)
    with pytest.raises(AtomError, match=f"{count} plain pictures came with {len(captions)}"):
        introduce(Counting(), plain, captions)


def test_only_pictures_of_known_prompts_are_corrected(rows):
    truth = read_truth("robot")
    rows, wishes = rows[0][:3, :3], truth.wishes
    asked = [wishes[1].prompt, "a sks robot, winking", wishes[2].prompt]
    examiner = Examiner(Counting(), truth, probe=SimpleNamespace())
    found = examiner.correct(rows, asked)
    assert torch.equal(found[1], rows[1])
    assert not torch.equal(found[0], rows[0]) and not torch.equal(found[2], rows[2])
    assert torch.equal(examiner.correct(rows, ["a", "b", "c"]), rows)


@pytest.mark.parametrize("name", [*list_truths()[::3]])
def test_it_makes_followed_prompts_plainer(name):
    """The right one of a subject's 27 prompts is nearest to its true picture at least as often."""
    evaluator, truth = load_evaluator(), read_truth(name)
    texts = evaluator.embed_texts([clean_prompt(wish.prompt) for wish in truth.wishes])
    seen = evaluator.embed_concepts([wish.picture for wish in truth.wishes])
    known = Examiner(evaluator, truth).correct(seen, [wish.prompt for wish in truth.wishes])
    right = [
        ((rows @ texts.T).argmax(1) == torch.arange(len(texts))).sum() for rows in (seen, known)
    ]
    assert right[1] >= right[0]
