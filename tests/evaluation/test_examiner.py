"""The examiner: its figures on pictures whose truth is known, and the order of its checks."""

import pytest
import torch

from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.examiner import Examiner
from sdatoms.evaluation.rows import score_truth
from sdatoms.evaluation.samples import measure_samples
from sdatoms.evaluation.truth import list_truths, read_truth


def remember(embed):
    """Each picture is embedded once: every subject is held against all the others."""
    known = {}

    def look_up(pictures):
        keys = [picture.convert("RGB").tobytes() for picture in pictures]
        new = {
            key: picture for key, picture in zip(keys, pictures, strict=True) if key not in known
        }
        if new:
            known.update(zip(new, embed(list(new.values())), strict=True))
        return torch.stack([known[key] for key in keys])

    return look_up


@pytest.fixture(scope="module")
def examine():
    evaluator = load_evaluator()
    evaluator.embed_instances = remember(evaluator.embed_instances)
    return lambda name: Examiner(evaluator, read_truth(name))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if place % 6 else [])
        for place, name in enumerate(list_truths())
    ],
)
def test_the_checks_on_true_pictures_are_in_order(examine, name):
    """The true picture is itself, and shows what was asked for; another subject in the same setting
    shows another thing; the subject alone shows none of the setting."""
    examiner = examine(name)
    prompts = [wish.prompt for wish in examiner.truth.wishes]
    true, other, alone = score_truth(examiner, prompts)
    assert true.truth == pytest.approx(1, abs=1e-5) and true.error == pytest.approx(0, abs=1e-9)
    assert true.followed >= 0.85 and alone.followed < 0.2
    for row in (other, alone):
        assert row.truth < 0.8 and row.error > 0.01
    assert (true.pictures, other.pictures) == (len(prompts), 7 * len(prompts))


def test_only_known_prompts_count(examine):
    examiner = examine("robot")
    plain, beach, *_ = examiner.truth.wishes
    asked = [plain.prompt, beach.prompt, "a sks robot, winking"]
    found = examiner.score([plain.picture, beach.picture, plain.picture], asked)
    assert found["truth"] == pytest.approx(1, abs=1e-5) and found["followed"] == 1
    assert examiner.score([plain.picture], [plain.prompt])["followed"] is None
    assert set(examiner.score([plain.picture], ["a cat"]).values()) == {None}


def test_the_trainer_gets_the_same_figures(examine):
    examiner = examine("robot")
    plain, beach, *_ = examiner.truth.wishes
    measure = measure_samples(examiner.evaluator, examiner.truth)
    call = lambda wish: measure(None, [plain.picture], [wish], [plain.picture], [])
    assert call(plain.prompt)["truth"] == pytest.approx(1, abs=1e-5)
    assert "followed" not in call(plain.prompt)
    assert call(beach.prompt)["followed"] == 0 and call(beach.prompt)["error"] > 0.01
    assert not {"truth", "error", "followed"} & call("a sks robot, winking").keys()
