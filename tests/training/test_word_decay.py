"""Decay by what other words say: the proximal step it claims, and what it does in a run."""

import random
from dataclasses import replace

import pytest
import torch
from tiny.atoms import check_start
from tiny.pipelines import build_pipeline
from tiny.runs import make_config
from torch import nn

from sdatoms import AtomError
from sdatoms.diffusion.open import load_base
from sdatoms.layers.inject import inject
from sdatoms.training.checks import READING
from sdatoms.training.config import TrainConfig, make_atom_config
from sdatoms.training.optimizers import make_optimizer
from sdatoms.training.reading import list_other_words, list_word_atoms, measure_other_words
from sdatoms.training.trainer import Trainer
from sdatoms.training.word_decay import WordDecay

DECAYED = {
    "atom_variant": "coefficients",
    "block_form": "shared",
    "block_factors": "each",
    "atom_layers": "text",
    "word_decay": 10.0,
}


def draw_problem(rng, rows=3, width=6, samples=40):
    x = torch.randn(samples, width, generator=rng, dtype=torch.float64)
    return x.mT @ x / samples, nn.Parameter(torch.randn(rows, width, generator=rng))


def measure_loudness(atoms, others):
    """Of each atom in other words, beside its own length."""
    return ((atoms.double() @ others) * atoms).sum(1) / atoms.double().square().sum(1)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 400.0])
def test_a_decay_is_the_proximal_step_in_any_unit(rng, unit):
    others, atoms = draw_problem(rng)
    before = atoms.detach().double().clone()
    WordDecay(others * unit, 10.0, [atoms]).decay(0.02, atoms)
    scaled = others / others.diagonal().mean()
    solved = torch.linalg.solve(torch.eye(6) + 0.02 * 10.0 * scaled, before.mT).mT
    torch.testing.assert_close(atoms.detach().double(), solved, rtol=1e-5, atol=1e-6)


def test_what_other_words_do_not_say_stays_at_every_rate(rng):
    others, atoms = draw_problem(rng, samples=3)  # three directions of six
    silent = torch.linalg.eigh(others)[1][:, :3].float()
    before = atoms.detach().clone()
    WordDecay(others, 1.0, [atoms]).decay(1e6, atoms)
    torch.testing.assert_close(atoms @ silent, before @ silent)
    assert measure_loudness(atoms, others).max() < 1e-6 * measure_loudness(before, others).min()


def test_silent_words_and_no_strength_change_nothing(rng):
    others, atoms = draw_problem(rng)
    before = atoms.detach().clone()
    WordDecay(torch.zeros_like(others), 10.0, [atoms]).decay(1.0, atoms)
    assert torch.equal(atoms.detach(), before)
    for strength, rate in ((0.0, 1.0), (10.0, 0.0)):
        WordDecay(others, strength, [atoms]).decay(rate, atoms)
        assert torch.equal(atoms.detach(), before)


def test_the_start_turns_away_from_other_words_at_the_same_length(rng):
    others, atoms = draw_problem(rng)
    before = atoms.detach().clone()
    WordDecay(others, 10.0, [atoms]).start()
    torch.testing.assert_close(atoms.norm(), before.norm())
    assert measure_loudness(atoms, others).sum() < measure_loudness(before, others).sum()


def test_the_optimizer_is_followed_at_the_rate_of_each_step_and_nothing_else_decays(rng):
    others, atoms = draw_problem(rng)
    beside = nn.Parameter(torch.ones(2))
    expected, kept = atoms.detach().clone(), WordDecay(others, 10.0, [atoms])
    groups = [{"params": [atoms, beside], "lr": 0.0, "name": "unet.block"}]
    optimizer = make_optimizer(groups, 1e-2, name="torch.optim.SGD")
    kept.follow(optimizer)
    for rate in (0.0, 0.01, 0.05):
        optimizer.param_groups[0]["lr"] = rate
        atoms.grad, beside.grad = torch.zeros_like(atoms), torch.zeros_like(beside)
        optimizer.step()
        expected = kept.shrink(expected, rate * 10.0)
        torch.testing.assert_close(atoms.detach(), expected)
    assert torch.equal(beside, torch.ones(2))


def test_atoms_of_another_length_are_refused(rng):
    others, _ = draw_problem(rng)
    with pytest.raises(AtomError, match="read 7 numbers, and the text encoder says 6"):
        WordDecay(others, 1.0, [nn.Parameter(torch.zeros(2, 7))])


@pytest.mark.parametrize("factors", ["shared", "each"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_trained_atoms_end_quieter_in_other_words(train_config, kind, factors):
    settings = DECAYED | {"block_factors": factors, "learning_rate": 1e-2}
    found = []
    for decay in (0.0, 10.0):
        trainer = Trainer(train_config(kind, **settings | {"word_decay": decay}))
        for _ in range(3):
            trainer.take_step()
        (kept,) = trainer.injections["unet"].find_shared()
        found.append(kept.shared_atoms.detach())
    pipe = load_base(trainer.config.pretrained_model_name_or_path)
    words = list_other_words(pipe, [trainer.config.instance_prompt])
    others = measure_other_words(pipe, words, random.Random(0))
    plain, decayed = (measure_loudness(atoms, others).mean() for atoms in found)
    assert decayed < 0.8 * plain


@pytest.mark.parametrize("layers", [name for name in READING if name != "text"])
def test_beside_other_layers_atoms_that_read_words_decay_and_no_others(layers):
    config = make_config(**DECAYED | {"atom_layers": layers, "instance_data_dir": "x"})
    unet = build_pipeline(width=12).unet
    injection = inject(unet, make_atom_config(config))
    (atoms,) = list_word_atoms(injection)
    assert atoms.shape[1] == unet.config.cross_attention_dim
    assert len(injection.find_shared()) > 1
    # Where text is as wide as a level of the UNet, its layers share atoms with those of pictures.
    injection = inject(build_pipeline(width=16).unet, make_atom_config(config))
    with pytest.raises(AtomError, match="share their atoms with others here; --atom_layers text"):
        list_word_atoms(injection)


def test_other_atoms_than_those_that_read_words_do_not_decay(train_config, tiny_base):
    """A step without a gradient leaves them as they were drawn, and the others quieter."""
    given = {"atom_layers": "cross-attention", "adam_weight_decay": 0.0}
    given["pretrained_model_name_or_path"] = str(tiny_base)
    trainer = Trainer(train_config(**DECAYED | given))
    kept = [delta.shared_atoms for delta in trainer.injections["unet"].find_shared()]
    before = [atoms.detach().clone() for atoms in kept]
    for atoms in kept:
        atoms.grad = torch.zeros_like(atoms)
    trainer.optimizer.step()
    reading = list_word_atoms(trainer.injections["unet"])
    changed = [not torch.equal(a, b) for a, b in zip(before, kept, strict=True)]
    assert changed == [any(atoms is own for own in reading) for atoms in kept]
    assert True in changed and False in changed


@pytest.mark.parametrize("layers", ["text", "cross-attention"])
def test_the_base_is_unchanged_until_it_trains(train_config, tiny_base, layers):
    given = {"atom_layers": layers, "pretrained_model_name_or_path": str(tiny_base)}
    check_start(Trainer(train_config(**DECAYED | given)))


def test_drawn_atoms_start_quieter_in_what_the_bundled_base_is_told():
    pipe = load_base()
    words = list_other_words(pipe, ["a sks cup"])
    others, strange = (measure_other_words(pipe, words, random.Random(k)) for k in (0, 1))
    atoms = nn.Parameter(torch.randn(4, len(others), generator=torch.Generator().manual_seed(0)))
    before = measure_loudness(atoms, strange).sum()
    WordDecay(others, 10.0, [atoms]).start()
    assert measure_loudness(atoms, strange).sum() < before / 3  # other draws of other words


def test_what_does_not_go_together_is_refused():
    config = TrainConfig(instance_data_dir="x", instance_prompt="a sks cup", **DECAYED)
    for changes in (
        {"block_form": "map", "block_factors": None},
        {"atom_layers": "convolutions"},
        {"shared_atoms": "captions"},
        {"atom_variant": "overcomplete"},
    ):
        with pytest.raises(AtomError, match="--word_decay needs --atom_variant coefficients"):
            replace(config, **changes)
    with pytest.raises(AtomError, match="--word_decay is -1; it takes 0 to"):
        replace(config, word_decay=-1)
