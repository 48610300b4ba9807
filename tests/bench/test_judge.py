"""The judge of the benchmark, on pictures of which the answer is known."""

import pytest

from sdatoms.bench.judge import MEASURES, Judge, Painted, Painting
from sdatoms.bench.tasks import open_task
from sdatoms.diffusion.open import load_base
from sdatoms.evaluation.evaluator import load_evaluator

PAINTING = Painting((0, 1), prompts=6, unrelated=2, num_inference_steps=2)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The judge of a subject in scenes, and its figures of three sets of pictures."""
    task = open_task("robot", tmp_path_factory.mktemp("tasks"))
    pipe = load_base()
    judge = Judge(task, load_evaluator(), PAINTING, pipe)
    unrelated = judge.paint(pipe, judge.unrelated, range(len(judge.unrelated)))
    measure = lambda pictures: judge.measure(
        Painted([p for p in pictures for _ in PAINTING.seeds], unrelated)
    )
    turned = judge.true[3:] + judge.true[:3]
    plain = [wish.plain for wish in judge.wishes]
    return {"true": measure(judge.true), "others": measure(turned), "plain": measure(plain)}


def mean(values, name):
    return sum(values[name]) / len(values[name])


def test_prompts_are_spread_and_each_has_its_own_figure(judged):
    assert PAINTING.choose(26) == [0, 4, 8, 13, 17, 21] and Painting().choose(3) == [0, 1, 2]
    for values in judged.values():
        assert list(values) == [name for name in MEASURES if name != "imagenet"]
        assert all(len(values[name]) == 6 for name in values if name != "drift")
        assert len(values["drift"]) == 2


def test_the_true_picture_is_without_fault(judged):
    true = judged["true"]
    assert min(true["truth"]) > 0.999 and max(true["error"]) == 0
    assert mean(true, "followed") > 0.9
    assert max(true["drift"]) < 1e-5 and max(abs(v) for v in true["diversity"]) < 1e-5


@pytest.mark.parametrize("other", ["others", "plain"])
@pytest.mark.parametrize("name", ["truth", "followed", "alignment"])
def test_it_stands_above_what_does_not_follow(judged, name, other):
    """Alignment too, since the judge introduces the subject: the plain subject alone follows no
    prompt, nor does the true picture of another one."""
    assert mean(judged["true"], name) > mean(judged[other], name) + 0.1
