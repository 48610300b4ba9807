"""Every method of the table begins as the base, and all of it is trained."""

import pytest
import torch
from tiny.pipelines import build_pipeline

from sdatoms.bench.methods import METHODS, TRIGGER, attach_method, count_method
from sdatoms.diffusion.prompts import embed_prompt
from sdatoms.training.config import TrainConfig

PROMPT = f"a {TRIGGER} cat"
NEEDED = ("with_prior_preservation", "prior_preservation_mode", "prior_loss_weight", "prior_share")
REFUSED = {"OFT b4 attention + conv": "unfolds without padding on maps of 2×2"}
"""Rows that PEFT does not run on every model."""
FORMS = (
    "atoms",
    "overcomplete",
    "full atoms b2",
    "coefficients b8 channel, share 0.045",
    "product b16 + spatial",
    "product b8, one a block",
    "product b16: down alone",
    "product b16: text encoder too",
    "product b16: a new word too",
    "whole filters m4 attention + conv",
    "subspace map m16 attention",
)
"""One row of every form of atoms and of other subspaces; tests of atoms hold the same for all
settings."""
PEERS = [
    name
    for name, method in METHODS.items()
    if method.group == "peers" and name not in REFUSED and not method.left_out
]


def attach(name):
    method, pipe = METHODS[name], build_pipeline(tokens=16)
    training = {k: v for k, v in method.training.items() if k not in NEEDED}
    config = TrainConfig(instance_prompt=PROMPT.replace(TRIGGER, "<new>"), **training)
    predict = lambda words: pipe.unet(
        torch.ones(1, 4, 8, 8), 500, embed_prompt(pipe, words).context, return_dict=False
    )[0]
    with torch.no_grad():
        before = predict(PROMPT)
    torch.manual_seed(0)
    return attach_method(pipe, method, config), predict, before


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("name", [*FORMS, *PEERS])
def test_a_method_begins_as_the_base_and_all_of_it_is_trained(name, one_thread):
    peer, predict, before = attach(name)
    facts = count_method(peer)
    assert min(facts.values()) > 0
    assert facts["numbers"] == sum(p.numel() for p in peer.parameters)
    words = peer.rewrite(PROMPT)
    torch.testing.assert_close(predict(words), before, rtol=1e-3, atol=1e-4)

    optimizer = torch.optim.SGD(peer.parameters, lr=1e-2)
    predict(words).square().mean().backward()
    optimizer.step()  # from then on no factor is zero any more
    optimizer.zero_grad()
    predict(words).square().mean().backward()
    for parameter in peer.parameters:
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any()


def test_a_word_stands_in_the_trigger_s_place_alone():
    peer = attach("textual inversion")[0]
    asked = ("two skss at a task", "a sks cat", "two sks horses")
    assert [peer.rewrite(text) for text in asked] == [
        "two <new>s at a task",
        "a <new> cat",
        "two <new> horses",
    ]


def test_every_method_tries_five_rates_in_order_and_says_what_it_depends_on():
    for method in METHODS.values():
        assert len(method.rates) == 5 and list(method.rates) == sorted(method.rates)
    described = [str(method.describe()) for method in METHODS.values()]
    assert len(set(described)) == len(described)


TEXTS = [name for name, m in METHODS.items() if m.training.get("train_text_encoder")]


@pytest.mark.parametrize("name", TEXTS)
def test_a_row_that_trains_the_text_encoder_puts_atoms_there(name, one_thread):
    assert set(attach(name)[0].injections) == {"unet", "text_encoder"}
