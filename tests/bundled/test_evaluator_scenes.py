"""Scenes for the evaluator: hard negatives differ in one modifier, and the figure counts them."""

import random
from dataclasses import replace

import pytest
import torch
from bundled import evaluator_models, evaluator_scenes, evaluator_styles
from bundled.evaluator_scenes import SceneDiet, draw_lookalikes, score_captions, vary_scene
from bundled.gallery import Gallery
from bundled.modifiers import KINDS, Scene, holds_held_out_pair
from bundled.probe_training import show_on_white
from diffusers.training_utils import EMAModel
from tiny.pipelines import build_tokenizer

from sdatoms.evaluation.evaluator import StyleHead


def count_differences(a, b):
    return sum(getattr(a, kind) != getattr(b, kind) for kind in KINDS)


def test_variants_differ_in_one_modifier_that_can_be_seen(gallery):
    rng = random.Random(0)
    for _ in range(60):
        example = gallery.draw_example(rng)
        variants = vary_scene(gallery, example.concept, example.scene, 19, rng)
        scenes = [variant.scene for variant in variants]
        assert len(set(scenes)) == len(scenes) and example.scene not in scenes
        for variant in variants:
            assert count_differences(variant.scene, example.scene) == 1
            assert getattr(variant.scene, variant.kind) != getattr(example.scene, variant.kind)
            assert not holds_held_out_pair(variant.scene.modifiers)
            assert not gallery.unseen[example.concept] & set(variant.scene.modifiers)


def test_some_variants_change_some_drop_and_some_add(gallery):
    scene, rng = Scene(place="beach", worn="cap"), random.Random(0)
    variants = [v.scene for v in vary_scene(gallery, 0, scene, 400, rng)]
    assert Scene(place="beach") in variants and Scene(place="snow", worn="cap") in variants
    assert any(len(v.modifiers) == 3 for v in variants)


def test_evenly_every_kind_comes_as_often(gallery):
    scene, rng = Scene(place="beach"), random.Random(0)
    added = [
        v.kind
        for v in vary_scene(gallery, 0, scene, 40, rng, "2", evenly=True)
        if v.kind != "place"
    ]
    assert len(set(added[:7])) == 7  # of all kinds but place and background


def test_a_pair_is_one_thing_upright_and_upside_down(gallery):
    rng = random.Random(2)
    for _ in range(40):
        upright, turned = SceneDiet(gallery, None).draw_pair(rng)
        assert upright.concept == turned.concept and "turned" in gallery.open_to[turned.concept]
        assert upright.scene == replace(turned.scene, turned=None) and turned.scene.turned
        assert "upside down" in turned.caption and "upside down" not in upright.caption
        assert not holds_held_out_pair(turned.scene.modifiers)


def test_a_group_is_one_thing_under_one_name(gallery):
    rng = random.Random(1)
    for _ in range(20):
        group = SceneDiet(gallery, None, size=6).draw_group(rng)
        assert len({e.concept for e in group}) == 1 and 2 <= len(group) <= 6
        assert len({e.caption for e in group}) == len(group)
        assert all(count_differences(e.scene, group[0].scene) == 1 for e in group[1:])


def test_lookalikes_share_the_scene_or_the_thing(gallery, monkeypatch):
    shown = []
    paint = evaluator_scenes.paint_examples
    monkeypatch.setattr(
        evaluator_scenes, "paint_examples", lambda g, e: shown.extend(e) or paint(g, e)
    )
    pictures = draw_lookalikes(gallery, 5)(random.Random(0))
    assert pictures.shape == (15, 3, 64, 64)
    for first, other, varied in zip(*(shown[k::3] for k in range(3)), strict=True):
        assert first.scene == other.scene and first.concept != other.concept
        assert first.concept == varied.concept
        assert count_differences(first.scene, varied.scene) == 1


class Placed:
    """Sees the same in every picture, and in each text of twenty but the own one what it is given;
    the own one stands first."""

    def __init__(self, other):
        self.other = other

    def embed_concepts(self, pictures):
        return torch.tensor([[1.0, 0.0]]).repeat(len(pictures), 1)

    def embed_texts(self, texts):
        rows = torch.tensor([self.other]).repeat(len(texts), 1)
        rows[::20] = torch.tensor([0.6, 0.8])
        return rows


def test_the_figure_is_the_share_of_right_captions_among_twenty(gallery):
    score = lambda *given: score_captions(*given, introduced=False)
    right = score(Placed([0.0, 1.0]), gallery, 6)
    assert right["caption_of_20"] == 1
    assert all(share == 1 for share in right["caption_by_kind"].values() if share == share)
    assert score(Placed([1.0, 0.0]), gallery, 6)["caption_of_20"] == 0


def test_a_batch_shows_the_plain_thing_of_every_scene_both_ways_up(gallery):
    scenes = SceneDiet(gallery, build_tokenizer(), groups=2, size=3, pairs=2).draw(random.Random(3))
    count = len(scenes.pictures)
    assert len(scenes.words) == len(scenes.things) == len(scenes.labels["place"]) == count
    assert scenes.plain.shape == (4, 2, 3, 64, 64) and scenes.names.shape == (4, 2, 32)
    assert torch.equal(scenes.plain[:, 1], scenes.plain[:, 0].flip(2, 3))
    assert scenes.things.tolist() == sorted(scenes.things.tolist())
    upright = [show_on_white(picture).tobytes() for picture in gallery.pictures]
    shown = [x.permute(1, 2, 0).contiguous().numpy().tobytes() for x in scenes.plain[:, 0]]
    assert set(shown) <= set(upright)


def test_the_figure_is_taken_on_held_out_things_beside_known_ones(gallery, monkeypatch):
    concepts = [replace(c, held_out=c.name == "tent") for c in gallery.concepts]
    monkeypatch.setattr(Gallery, "paint", lambda self, example: shown.append(example))
    shown = []
    gallery = replace(gallery, concepts=tuple(concepts))
    score_captions(Placed([0.0, 1.0]), gallery, 20, introduced=False)
    assert {e.concept for e in shown} == {1}
    assert {e.scene.second for e in shown} - {None} <= {"0", "2"}


def test_each_scene_has_its_own_caption(rng):
    rows = torch.nn.functional.normalize(torch.randn(6, 4, generator=rng), dim=1)
    scale = torch.tensor(3.0)
    assert evaluator_models.match_captions(scale, rows, rows) < 0.2
    assert evaluator_models.match_captions(scale, rows, rows.roll(1, 0)) > 1


@pytest.fixture
def drawings(rng):
    """Two drawings of each of four concepts."""
    pictures = torch.randint(0, 256, (8, 3, 64, 64), generator=rng, dtype=torch.uint8)
    concept = torch.arange(4).repeat_interleave(2)
    return type("Shown", (), {"concept": concept, "pictures": pictures})


def take_step(part, loop):
    """One step of a training loop on `part`; returns the share of tensors that it moved."""
    before = [p.detach().clone() for p in part.parameters()]
    ema = EMAModel(part.parameters(), decay=0.9)
    (step,) = loop(torch.optim.SGD(part.parameters(), lr=1.0), ema)
    assert step.step == 1 and step.loss > 0
    moved = [not torch.equal(p, b) for p, b in zip(part.parameters(), before, strict=True)]
    return sum(moved) / len(moved)


SETTINGS = {"steps": 1, "concepts_per_batch": 2, "precision": torch.float32, "learning_rate": 50.0}


def test_a_step_on_drawings_and_scenes_moves_both_towers(gallery, drawings):
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    clip, heads = evaluator_models.build_clip(len(tokenizer)), evaluator_models.ModifierHeads()
    both = torch.nn.ModuleList([clip, heads])
    diet = SceneDiet(gallery, tokenizer, groups=2, size=3)
    write = lambda numbers, _: torch.zeros(len(numbers), 32, dtype=torch.long)
    loop = lambda optimizer, ema: evaluator_models.train_clip(
        clip, heads, optimizer, ema, drawings, write, diet.draw, **SETTINGS
    )
    assert take_step(both, loop) > 0.8  # a bias of keys has no effect


def test_a_step_on_drawings_and_lookalikes_moves_the_instance_net(gallery, drawings):
    torch.manual_seed(0)
    net = StyleHead().instance
    loop = lambda optimizer, ema: evaluator_styles.train_instance(
        net, optimizer, ema, drawings, draw_lookalikes(gallery, 1), **SETTINGS
    )
    assert take_step(net, loop) > 0.9
