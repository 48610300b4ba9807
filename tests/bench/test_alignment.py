"""Alignment tells followed prompts from ignored ones better after an introduction."""

import pytest
import torch

from sdatoms.bench.alignment import judge_generated, judge_true, rank_apart
from sdatoms.diffusion.open import load_base
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.probe import load_probe
from sdatoms.evaluation.truth import list_truths
from sdatoms.storage import find_assets


def test_ranks_are_shares_of_pairs():
    assert rank_apart(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0])) == 0.75
    assert rank_apart(torch.ones(3), torch.ones(2)) == 0.5


def test_of_true_pictures_the_right_one_stands_out_more():
    found = judge_true(load_evaluator(), list_truths()[1::3])
    alone, known = found["alone"], found["introduced"]
    for what in ("other prompt", "other subject", "subject alone"):
        assert known["true"] - known[what] > alone["true"] - alone[what] > 0


@pytest.mark.slow
def test_what_is_generated_is_told_apart_and_the_base_comes_back():
    pipe, said = load_base(), []
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    files = [("robot", find_assets() / "examples" / "robot.safetensors")]
    judged = (load_evaluator(), load_probe())
    found = judge_generated(pipe, files, *judged, seeds=(0,), prompts=12, report=said.append)
    assert found["pictures"] == 24 and 0 < found["followed"] < 1 and len(said) == 2
    assert 0 <= found["alone"] <= 1 and 0.5 < found["introduced"] <= 1
    assert all(torch.equal(before[key], value) for key, value in pipe.unet.state_dict().items())
