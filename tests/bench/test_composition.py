"""A subject and a style mixed: each file at its strength, what is kept, what fits no pair."""

import json

import pytest
import torch
from tiny.evaluator import save_tiny_evaluator
from tiny.pipelines import save_base

from sdatoms import AtomError
from sdatoms.bench.composition import (
    compare_ways,
    make_pair,
    make_part_cell,
    make_way_cell,
    train_part,
)
from sdatoms.bench.composition_report import write_composition
from sdatoms.bench.judge import Painting
from sdatoms.bench.methods import METHODS
from sdatoms.bench.mixing import Mix, mix_adapters
from sdatoms.bench.personalization import Bench, Plan
from sdatoms.diffusion.open import load_base
from sdatoms.pictures import find_pictures, read_sidecar

pytestmark = pytest.mark.usefixtures("one_thread")
ATOMS, LORA = "product b16", "LoRA r1 attention"
MIXES = {
    name: Mix(METHODS[own], METHODS[other])
    for name, own, other in (
        ("atoms", ATOMS, ATOMS),
        ("LoRA", LORA, LORA),
        ("two forms", "shared r2 each, text", ATOMS),
    )
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("composition")
    plan = Plan(
        root / "bench",
        methods=(ATOMS, LORA),
        base=str(save_base(root / "base")),
        evaluator=str(save_tiny_evaluator(root / "evaluator")),
        seeds=(0,),
        steps=(3,),
        batch_size=1,
        painting=Painting((0,), prompts=2, unrelated=1, num_inference_steps=1),
    )
    return Bench(plan)


@pytest.fixture(scope="module")
def pair(bench):
    return make_pair(bench, "koala", "clay")


def test_each_half_answers_to_its_own_word(pair):
    captions = [read_sidecar(path) for path in find_pictures(pair.both.folder)[0]]
    assert all(("sks" in text) != ("zwx" in text) for text in captions)
    assert {"sks" in text for text in captions} == {True, False}
    assert all(
        prompt.endswith(" in zwx style") and "sks" in prompt for prompt in pair.asked.prompts
    )
    assert len(pair.asked.prompts) == len(pair.asked.wishes)


@pytest.mark.parametrize("name", MIXES)
def test_a_mixture_changes_weights_by_the_sum_of_its_parts(bench, pair, name):
    mix, parts = MIXES[name], []
    for method, task in ((mix.subject, pair.subject), (mix.style, pair.style)):
        cell = make_part_cell(bench, make_way_cell(bench, pair, "mixed", mix, 0), method, task)
        assert cell.method is method and cell.task == task.name
        parts.append(train_part(bench, cell, task))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def predict(*weights):
        pipe = load_base(bench.plan.base)
        if weights:
            mix_adapters(pipe, mix, parts, weights)
        context = torch.ones(1, 3, pipe.unet.config.cross_attention_dim)
        with torch.no_grad():
            return pipe.unet.double()(x.double(), 5, context.double()).sample

    base, nothing = predict(), predict(0.0, 0.0)
    torch.testing.assert_close(nothing, base)
    both, one, other = predict(1.0, 1.0), predict(1.0, 0.0), predict(0.0, 1.0)
    assert not torch.equal(one, base) and not torch.equal(other, base)
    # Three steps of a rate that warms up are so small that effects add up.
    apart = both - one - other + base
    assert apart.norm() < 0.1 * min((one - base).norm(), (other - base).norm())


def test_rows_are_kept_and_drawn(bench):
    ways, mixes = ("mixed", "in one training"), list(MIXES.values())
    names = [mix.name for mix in mixes]
    assert len(set(names)) == 3
    rows = compare_ways(bench, mixes, ["koala"], ["clay"], ways)
    assert [(row["way"], row["method"]) for row in rows] == [
        ("base", ""),
        *(("mixed", name) for name in names),
        *(("in one training", name) for name in (ATOMS, LORA)),
    ]
    assert rows[0]["drift"] == 0 and all(row["bytes"] > 0 for row in rows[1:])
    cells = sorted((bench.plan.output_dir / "cells").glob("*.json"))
    stamps = [path.stat().st_mtime_ns for path in cells]
    assert compare_ways(bench, mixes, ["koala"], ["clay"], ways) == rows
    assert [path.stat().st_mtime_ns for path in cells] == stamps
    assert ATOMS in write_composition(bench, mixes, rows, ["koala"], ["clay"])
    json.loads((bench.plan.output_dir / "composition.json").read_text(), parse_constant=pytest.fail)
    assert (bench.plan.output_dir / "composition-koala-clay.png").is_file()


def test_what_fits_no_pair_is_refused(bench, pair):
    with pytest.raises(AtomError, match="'octopus' and 'clay' make no pair"):
        make_pair(bench, "octopus", "clay")
    biases, atoms = METHODS["BitFit"], METHODS[ATOMS]
    for mix in (Mix(biases, biases), Mix(atoms, METHODS[LORA])):
        with pytest.raises(AtomError, match=f"files of {mix.name!r} cannot be mixed"):
            compare_ways(bench, [mix], ["koala"], ["clay"])  # before anything is trained
