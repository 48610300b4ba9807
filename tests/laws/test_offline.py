"""Without a network everything that a hub would be asked for is refused at once."""

import time

import pytest
import torch
from huggingface_hub import constants

from sdatoms import AtomError, load_atoms
from sdatoms.classifiers.model import open_classifier
from sdatoms.diffusion.open import load_base
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.training.captioners import load_captioner, load_segmenter
from sdatoms.training.faces import load_detector
from sdatoms.training.report import push_run

OPENERS = {
    "atoms": lambda name: load_atoms(torch.nn.Linear(2, 2), name),
    "base": load_base,
    "small base": lambda name: load_base(name, load_in="8bit"),
    "autoencoder": lambda name: load_base(None, vae=name),
    "evaluator": lambda name: load_evaluator(None, name),
    "captions": load_captioner,
    "masks": load_segmenter,
    "faces": load_detector,
    "classifier": lambda name: open_classifier(name, 10),
}


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # diffusers' own
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("what", OPENERS)
def test_what_only_a_hub_has_is_refused_at_once(what, monkeypatch):
    def wait(seconds):
        raise AssertionError(f"waited {seconds} s for a network that is not there")

    monkeypatch.setattr(time, "sleep", wait)
    with pytest.raises(AtomError, match="'owner/none'"):
        OPENERS[what]("owner/none")
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("offline")
def test_a_run_that_cannot_be_pushed_is_said_to_be_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # here the client may try again
    with pytest.raises(AtomError, match="is complete on disk but could not be pushed to 'me/dog'"):
        push_run(tmp_path, "me/dog")
