"""Shared atoms set to what the captions say: loud there, silent elsewhere, never moved."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny.atoms import check_start
from tiny.pipelines import build_pipeline

from sdatoms import AtomConfig, AtomError, inject
from sdatoms.atoms.shared import draw_atoms
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.prompts import embed_prompt
from sdatoms.diffusion.triggers import UNRELATED_PROMPTS
from sdatoms.training.caption_rules import PLAIN_RULES
from sdatoms.training.config import ATOM_LAYERS, TrainConfig
from sdatoms.training.folder import Source
from sdatoms.training.reading import (
    draw_captions,
    draw_prompt,
    fix_reading_atoms,
    list_other_words,
    solve_reading,
    vary_caption,
)
from sdatoms.training.trainer import Trainer

READING = {
    "atom_variant": "coefficients",
    "block_form": "shared",
    "atom_layers": "text",
    "shared_atoms": "captions",
}
CAPTIONS = ("a sks cup", "a sks cup on the beach", "a blue sks cup")
LAYERS = AtomConfig(
    "coefficients",
    block_form="shared",
    block_factors="each",
    target_modules=ATOM_LAYERS["text"],
)


@pytest.fixture(scope="module")
def base():
    return load_base()


def read_atoms_of(pipe, captions, config=LAYERS):
    injection = inject(pipe.unet, config)
    try:
        fix_reading_atoms(pipe, injection, captions)
        (atoms,) = (t for k, t in injection.state_dict().items() if k.endswith("shared_atoms"))
    finally:
        injection.eject()
    return atoms


@torch.no_grad()
def measure_loudness(pipe, atoms, prompts):
    """Mean square of what the atoms read in prompts."""
    seen = torch.cat([embed_prompt(pipe, prompt).context[0, 1:] for prompt in prompts])
    return float((seen @ atoms.mT).square().mean())


def test_the_directions_are_the_solution_of_the_eigenproblem(rng):
    scipy = pytest.importorskip("scipy.linalg")
    said, others = (
        (lambda x: x.mT @ x / len(x))(torch.randn(40, 6, generator=rng, dtype=torch.float64))
        for _ in range(2)
    )
    atoms = solve_reading(said, others, 2).double()
    ridge = 0.25 * float(torch.linalg.eigvalsh(others).mean())
    beside = others + ridge * torch.eye(6)
    values, vectors = scipy.eigh(said.numpy(), beside.numpy())
    for atom, value, vector in zip(atoms, values[::-1], vectors.T[::-1], strict=False):
        assert float(atom.norm()) == pytest.approx(1)
        assert float(atom @ said @ atom) == pytest.approx(value * float(atom @ beside @ atom))
        unit = torch.tensor(vector.copy()) / float((vector**2).sum()) ** 0.5
        assert abs(float(unit @ atom)) == pytest.approx(1)


def test_atoms_read_the_captions_and_hardly_what_other_prompts_say(base):
    atoms = read_atoms_of(base, CAPTIONS)
    drawn = draw_atoms(4, 128, 0)
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    said, strange = (
        [measure_loudness(base, rows, prompts) for rows in (atoms, drawn)]
        for prompts in (CAPTIONS, UNRELATED_PROMPTS)
    )
    assert said[0] / strange[0] > 5 * said[1] / strange[1]
    assert strange[0] < 0.5 * strange[1]


def test_the_same_captions_give_the_same_atoms_in_any_order(base):
    atoms = read_atoms_of(base, CAPTIONS)
    assert torch.equal(atoms, read_atoms_of(base, [*CAPTIONS[::-1], CAPTIONS[0]]))
    assert not torch.equal(atoms, read_atoms_of(base, ["a sks bell"]))


def test_a_subject_is_read_wherever_it_stands_and_as_one_or_many(base):
    atoms = read_atoms_of(base, CAPTIONS)
    strange = measure_loudness(base, atoms, UNRELATED_PROMPTS)
    for prompt in ("a green sks cup at night", "two sks cups", "a dog next to a sks cup"):
        assert measure_loudness(base, atoms, [prompt]) > 5 * strange, prompt


def test_what_is_read_is_what_is_trained_under(base):
    """Prefixes, wildcards and several captions included, and no caption that was left out."""
    rules = replace(PLAIN_RULES, prefix="a sks cup", wildcards=True, dropout=0.3)
    said = ("on {grass|snow}", "at night")
    source = Source(Path("x.png"), "a cup", None, (64, 64), captions=said, rules=rules)
    found = {f"a sks cup {place}" for place in ("on grass", "on snow", "at night")}
    assert draw_captions([source]) == sorted(found)
    plain = replace(source, captions=(), rules=PLAIN_RULES)
    assert draw_captions([plain, plain]) == ["a cup"]
    silent = replace(source, captions=(), prompt="", rules=PLAIN_RULES)
    injection = inject(base.unet, LAYERS)
    with pytest.raises(AtomError, match="no picture has one"):
        fix_reading_atoms(base, injection, draw_captions([silent]))
    injection.eject()


def test_other_prompts_hold_no_word_of_the_captions(base):
    words = list_other_words(base, ["a blue Cup, smiling", "night!"])
    assert len(words) > 1000 and not {*words} & {"a", "blue", "cup", "smiling", "night"}
    draw = random.Random(1)
    prompts = [draw_prompt(draw, words).split() for _ in range(100)]
    assert {len(prompt) for prompt in prompts} == set(range(1, 9))
    assert all({*prompt} <= {*words} for prompt in prompts)


def test_captions_vary_in_place_and_number_alone():
    draw, words = random.Random(0), ["red", "green", "blue", "white"]
    found = [vary_caption(draw, ["a sks cup"], words).split() for _ in range(200)]
    assert {len(prompt) for prompt in found} == {3, 4, 5, 6}
    kept = [[word for word in prompt if word not in words] for prompt in found]
    assert {row[0] for row in kept} == {"a"} and {row[2] for row in kept} == {"cup", "cups"}
    assert {row[1] for row in kept} == {"sks"}
    assert {prompt.index("sks") for prompt in found} == {1, 2, 3, 4}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("factors", ["shared", "each"])
def test_only_coefficients_train_and_the_file_keeps_the_atoms(train_config, kind, factors):
    trainer = Trainer(train_config(kind, **READING, block_factors=factors, learning_rate=1e-2))
    injection = trainer.injections["unet"]
    start = injection.state_dict()
    kept = [name for name in start if name.endswith("shared_atoms")]
    assert kept and not {*kept} & dict(injection.named_parameters()).keys()
    assert trainer.num_parameters == sum(t.numel() for k, t in start.items() if k not in kept)
    trainer.take_step(), trainer.take_step()
    for name, tensor in injection.state_dict().items():
        assert torch.equal(tensor, start[name]) == (name in kept), name
    file = trainer.pack()
    assert all(torch.equal(file.tensors[f"unet.{name}"], start[name]) for name in kept)


def test_the_base_is_unchanged_until_coefficients_train(train_config):
    check_start(Trainer(train_config(**READING)))


def test_what_does_not_go_together_is_refused(base):
    config = TrainConfig(instance_data_dir="x", instance_prompt="a sks cup", **READING)
    for changes in ({"block_form": "map"}, {"atom_layers": "all"}, {"block_form": None}):
        with pytest.raises(AtomError, match="needs --block_form shared and --atom_layers text"):
            replace(config, **changes)
    with pytest.raises(AtomError, match="trained too would say something else"):
        replace(config, train_text_encoder=True)
    injection = inject(base.unet, replace(LAYERS, block_form="map", block_factors="shared"))
    with pytest.raises(AtomError, match="no layers share atoms here"):
        injection.fix_shared_atoms(torch.zeros(4, 128))
    injection.eject()
    injection = inject(base.unet, LAYERS)
    before = injection.state_dict()
    with pytest.raises(AtomError, match=r"are \(4, 64\), where \(4, 128\) fits"):
        injection.fix_shared_atoms(torch.zeros(4, 64))
    after = injection.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    injection.eject()


def test_a_tokenizer_of_hardly_any_words_is_refused():
    pipe = build_pipeline("sd")
    letters = "abcdefghijklmnopqrstuvwxyz"
    with pytest.raises(AtomError, match="need 8 of them, and the tokenizer knows 2;"):
        list_other_words(pipe, [" ".join(letters[:-2])])
