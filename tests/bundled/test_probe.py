"""The probe: its labels, its file, and the sentences that it judges."""

import random
from dataclasses import replace
from pathlib import Path

import torch
from bundled.base_followed import draw_prompts, score_followed
from bundled.base_stages import Run
from bundled.modifiers import KINDS, VALUES, Scene, holds_held_out_pair
from bundled.probe_training import draw_examples, label, read_references, score_probe

from sdatoms.evaluation.probe import Probe


def test_labels_are_places_in_the_list_of_values_and_0_is_none():
    labels = label([Scene(), Scene(colour="orange", number=4)])
    assert labels["colour"].tolist() == [0, 2] and labels["number"].tolist() == [0, 3]
    assert labels["place"].tolist() == [0, 0]


def test_every_gradient_arrives():
    probe, x = Probe(VALUES), torch.rand(2, 3, 64, 64)
    sum(logits.square().sum() for logits in probe(x, x).values()).backward()
    for name, parameter in probe.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_its_diet_holds_plain_subjects_and_held_out_pairs(gallery):
    examples = draw_examples(gallery, 300, random.Random(0))
    assert any(not e.scene.modifiers for e in examples)
    share = sum(holds_held_out_pair(e.scene.modifiers) for e in examples) / len(examples)
    assert 0.05 < share < 0.2
    assert read_references(gallery).shape == (3, 3, 64, 64)


def test_sentences_ask_for_every_value_of_a_kind_and_say_so(gallery):
    prompts = draw_prompts(gallery, 12)
    assert prompts == draw_prompts(gallery, 12)
    for kind in KINDS:
        own = [p.example.scene.modifiers for p in prompts if p.group == kind]
        assert all(len(m) == 1 and m[0][0] == kind for m in own) and len(own) == 12
        assert {m[0][1] for m in own} == set(VALUES[kind])
    held = [p for p in prompts if p.group == "held-out pairs"]
    assert len(held) == 24 and all(holds_held_out_pair(p.example.scene.modifiers) for p in held)


def test_a_picture_counts_as_right_when_all_that_was_asked_is_found(gallery, monkeypatch):
    prompts = draw_prompts(gallery, 12)
    answers = {kind: [getattr(p.example.scene, kind) for p in prompts] for kind in KINDS}
    answers["colour"] = ["red"] * len(prompts)
    monkeypatch.setattr("bundled.base_followed.find_modifiers", lambda *_: answers)
    painted = [gallery.paint(p.example) for p in prompts]
    scores = score_followed(Probe(VALUES), gallery, prompts, painted)
    assert scores["place"]["painted"] == 1 and scores["place"]["true"] == 1
    asked = [p.example.scene.colour for p in prompts if p.group == "colour"]
    assert scores["colour"]["painted"] == asked.count("red") / 12


def test_scores_are_shares_a_kind(gallery):
    examples = draw_examples(gallery, 30, random.Random(0))
    scores = score_probe(Probe(VALUES), gallery, examples)
    assert set(scores) == {*KINDS, "none"} and all(0 <= s <= 1 for s in scores.values())


def test_a_run_keeps_held_out_concepts_out(gallery, monkeypatch):
    """Subjects, second things and shards come from `Run.gallery`, which has none of them."""
    concepts = [replace(c, held_out=c.name == "tent") for c in gallery.concepts]
    asked = []
    monkeypatch.setattr("bundled.base_stages.fetch_packages", lambda _: {})
    monkeypatch.setattr("bundled.base_stages.load_concepts", lambda *_: concepts)
    monkeypatch.setattr("bundled.base_stages.load_gallery", lambda _, c: asked.append(c) or gallery)
    run = Run(Path("x"), Path("y"))
    assert run.gallery is gallery and [c.name for c in asked[0]] == ["cat face", "tree"]
    assert run.hidden is gallery and [c.name for c in asked[1]] == ["tent"]
