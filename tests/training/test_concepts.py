"""Several concepts in one run: each with its pictures, prompt, class, repeats and share."""

import json
from collections import Counter
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny.labellers import save_detector
from tiny.pictures import save_pictures
from tiny.runs import assert_same_atoms

from sdatoms import AtomError
from sdatoms.settings import read_config_file
from sdatoms.training.batches import Draw, draw_batches
from sdatoms.training.concepts import (
    Concept,
    complete_config,
    list_classes,
    list_concepts,
    read_data_config,
    write_data_config,
)
from sdatoms.training.inputs import check_inputs
from sdatoms.training.loop import train
from sdatoms.training.trainer import Trainer


@pytest.fixture
def data(tmp_path, train_config):
    """A run of a cat of four pictures and a dog of two, by a description that changes."""

    def make(text="", dog="", **changes):
        if not (tmp_path / "cat").is_dir():
            save_pictures(tmp_path / "cat", ((20, 20),) * 4, seed=1)
            save_pictures(tmp_path / "dog", ((20, 20),) * 2, seed=2)
        (tmp_path / "data.toml").write_text(
            f'{text}\n[[concepts]]\ninstance_data_dir = "cat"\ninstance_prompt = "sks cat"\n'
            f'class_prompt = "cat"\n[[concepts]]\ninstance_data_dir = "dog"\n'
            f'instance_prompt = "sks dog"\nclass_prompt = "dog"\n{dog}\n'
        )
        given = {"instance_data_dir": "", "instance_prompt": ""}
        return train_config(**given | {"data_config": str(tmp_path / "data.toml")} | changes)

    return make


def test_pictures_of_each_concept_are_called_apart(data):
    found = check_inputs(data(dog="repeats = 2"))
    assert {(s.name, s.prompt, s.repeats) for s in found.sources} == {
        *((f"cat/{k}.png", "sks cat", 1) for k in range(4)),
        *((f"dog/{k}.png", "sks dog", 2) for k in range(2)),
    }
    assert found.taken == (
        "cat: 4 pictures, prompt 'sks cat', 50% of the training",
        "dog: 2 pictures, prompt 'sks dog', 50% of the training",
    )


def test_a_run_of_concepts_says_what_it_took_and_keeps_its_description(data):
    config, lines = data(max_train_steps=1), []
    list(train(config, notify=lines.append))
    assert [line for line in lines if line.startswith("dog: 2 pictures")]
    run = Path(config.output_dir)
    kept = read_data_config(run / "data.toml")[0]
    assert [(c.name, Path(c.instance_data_dir).is_dir()) for c in kept] == [
        *(("cat", True), ("dog", True))
    ]
    effective = read_config_file(run / "config.toml")
    assert effective["trigger"] == "sks cat, sks dog"
    assert effective["validation_prompts"] == ["sks cat", "sks dog"]


@pytest.mark.parametrize("mode", ["images", "prediction"])
def test_each_concept_keeps_its_own_class(data, mode):
    more = {"prior_preservation_mode": mode, "num_class_images": 2, "train_batch_size": 6}
    config = data(with_prior_preservation=True, max_train_steps=2, **more)
    trainer = Trainer(config)
    batches = draw_batches(trainer.data.instances, trainer.data.classes, 0, trainer.draw)
    own, kept = batches
    if mode == "prediction":
        assert [p.removeprefix("sks ") for p in own.prompts] == list(kept.prompts)
    else:
        folders = list_classes(config, list_concepts(config))
        assert [len(list(f.glob("*.png"))) for f in folders.values()] == [2, 2]
        assert set(kept.prompts) == {"cat", "dog"} == set(folders)
    trainer.take_step()
    with pytest.raises(AtomError, match="'dog' has no class_prompt"):
        Path(config.data_config).write_text(
            Path(config.data_config).read_text().replace('class_prompt = "dog"', "")
        )
        check_inputs(config)


def test_shares_are_kept_whatever_the_number_of_pictures(data):
    text = Path(data().data_config).read_text
    config = data(dog="share = 3")
    with pytest.raises(AtomError, match="'cat' has no share"):
        check_inputs(config)
    Path(config.data_config).write_text(
        text().replace('class_prompt = "cat"', 'class_prompt = "cat"\nshare = 1')
    )
    trainer = Trainer(config)
    drawn = Counter()
    for index in range(50):
        (batch,) = draw_batches(trainer.data.instances, None, index, trainer.draw)
        drawn.update(batch.names)
    assert sorted(drawn.values()) == [6, 6, 6, 7, 37, 38]
    assert check_inputs(config).taken[1].endswith("75% of the training")


RULES = (
    "shuffle_caption = true\nkeep_tokens = 1\ncaption_tag_dropout_rate = 0.3\n"
    "caption_dropout_rate = 0.1\nenable_wildcard = true\n"
)


def test_resumed_draws_of_captions_are_those_of_the_uninterrupted_run(data, tmp_path):
    config = data(RULES)
    (tmp_path / "cat" / "0.txt").write_text("a cat, {red|blue}, big\na cat, on grass, alone\n")
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    list(train(whole))
    list(train(replace(config, max_train_steps=2)))
    list(train(replace(config, resume_from_checkpoint="latest")))
    assert_same_atoms(whole.output_dir, config.output_dir)
    Path(config.data_config).write_text(
        Path(config.data_config).read_text().replace("keep_tokens = 1", "keep_tokens = 2")
    )
    again = replace(config, resume_from_checkpoint="latest", max_train_steps=6)
    with pytest.raises(AtomError, match="what is made of captions, classes or shares"):
        list(train(again))


def test_captions_differ_from_batch_to_batch_and_with_the_seed(data, tmp_path):
    config = data(RULES)
    (tmp_path / "dog" / "0.txt").write_text("a dog, x, y, z, w")
    trainer = Trainer(config)
    rows = trainer.data.instances
    read = lambda seed: [
        text
        for index in range(6)
        for text in draw_batches(rows, None, index, replace(trainer.draw, seed=seed))[0].prompts
    ]
    assert isinstance(trainer.draw, Draw)
    assert read(0) == read(0) != read(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[concepts]]\n", "takes instance_data_dir"),
        ('[[concepts]]\ninstance_data_dir = "a"\nrepeat = 2', "did you mean 'repeats'"),
        ('[[concepts]]\ninstance_data_dir = "a"\nrepeats = 0', "at least 1"),
        ('[[concepts]]\ninstance_data_dir = "a"\nshare = -1.0', "above 0"),
        ('[[concepts]]\ninstance_data_dir = "a"\ncaption_dropout_rate = 2.0', "0 to 1"),
        ("concepts = 3", "list of tables"),
        ("", r"names no \[\[concepts\]\]"),
        ("datasets = [{subsets = 3}]", "of no kind"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused_in_a_sentence(tmp_path, text, words):
    (tmp_path / "data.toml").write_text(text)
    with pytest.raises(AtomError, match=words):
        read_data_config(tmp_path / "data.toml")


def test_a_description_that_is_written_is_read_back(tmp_path):
    concepts = (
        Concept(
            name='a "cat"',
            instance_data_dir=str(tmp_path / "cat"),
            instance_prompt="sks\ncat",
            share=0.25,
            shuffle_caption=False,
            keep_tokens=0,
        ),
        Concept(name="dog", dataset_name="owner/dog", repeats=7, class_prompt="dog"),
    )
    (tmp_path / "data.toml").write_text(write_data_config(concepts))
    assert read_data_config(tmp_path / "data.toml") == (concepts, ())


SUBSET = {"image_dir": "cat", "class_tokens": "sks cat", "num_repeats": 3, "keep_tokens": 1}
FOREIGN = {
    "kohya.json": {
        "general": {"shuffle_caption": True, "caption_extension": ".txt"},
        "datasets": [{"resolution": 512, "keep_tokens": 2, "subsets": [SUBSET]}],
    },
    "toolkit.yaml": {
        "job": "extension",
        "config": {
            "process": [
                {
                    "trigger_word": "sks cat",
                    "datasets": [
                        {
                            "folder_path": "cat",
                            "caption_ext": "txt",
                            "num_repeats": 3,
                            "shuffle_tokens": True,
                            "keep_tokens": 1,
                            "resolution": [512, 768],
                        }
                    ],
                }
            ]
        },
    },
    "onetrainer.json": [
        {
            "name": "cat",
            "path": "cat",
            "enabled": True,
            "balancing": 3.0,
            "balancing_strategy": "REPEATS",
            "text": {"prompt_source": "sample", "enable_tag_shuffling": True, "keep_tags_count": 1},
            "image": {"enable_random_flip": False},
        },
        {"path": "gone", "enabled": False},
    ],
    "concepts_list.json": [
        {
            "instance_data_dir": "cat",
            "instance_prompt": "sks cat",
            "repeats": 3,
            "shuffle_caption": True,
            "keep_tokens": 1,
            "num_class_images": 9,
        }
    ],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_trainers_descriptions_are_read(tmp_path, data, name):
    data()
    write = yaml.safe_dump if name.endswith("yaml") else json.dumps
    (tmp_path / name).write_text(write(FOREIGN[name]))
    (concept,), passed = read_data_config(tmp_path / name)
    assert (concept.repeats, concept.shuffle_caption, concept.keep_tokens) == (3, True, 1)
    assert Path(concept.instance_data_dir) == tmp_path / "cat" and not passed
    config = replace(data(), data_config=str(tmp_path / name), instance_prompt="sks cat")
    (source, *_) = check_inputs(config).sources
    assert (source.prompt, source.rules.keep_tokens) == ("sks cat", 1)


def test_what_a_foreign_description_asks_for_in_vain_is_named(tmp_path, data):
    config = data()
    rows = {"datasets": [{"subsets": [SUBSET | {"token_warmup_step": 5}]}]}
    (tmp_path / "kohya.json").write_text(json.dumps(rows))
    found = check_inputs(replace(config, data_config=str(tmp_path / "kohya.json")))
    assert "not read of kohya.json: token_warmup_step" in found.notes


def test_a_data_set_without_its_library_or_its_place_is_one_sentence(train_config):
    config = train_config(instance_data_dir="", dataset_name="owner/none")
    with pytest.raises(AtomError, match=r"pip install datasets|cannot be read"):
        check_inputs(config)
    with pytest.raises(AtomError, match="leave one out"):
        check_inputs(replace(config, instance_data_dir="x"))


def test_pictures_of_a_data_set_are_read_with_their_captions(tmp_path, data, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    config = replace(data(), data_config=None, instance_prompt="sks cat")
    row = {"file_name": "0.png", "text": "a red wall"}
    (tmp_path / "cat" / "metadata.jsonl").write_text(json.dumps(row))
    config = replace(config, dataset_name=str(tmp_path / "cat"))
    assert check_inputs(config).sources[0].prompt == "a red wall"
    with pytest.raises(AtomError, match="another --image_column"):
        check_inputs(replace(config, image_column="picture"))


def test_opacity_is_a_mask_where_it_is_asked_for(train_config, tmp_path):
    folder = tmp_path / "clear"
    folder.mkdir()
    picture = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 8, 16))
    picture.save(folder / "0.png")
    Image.new("RGB", (16, 16), "blue").save(folder / "1.png")
    config = train_config(instance_data_dir=str(folder), alpha_mask=True)
    found = check_inputs(config)
    assert [s.alpha for s in found.sources] == [True, False] and "1 masked" in found.taken[0]
    first, second = Trainer(config).data.instances
    half = first.mask.shape[-1] // 2
    assert second.mask is None and first.mask[..., :half].max() == 0
    assert first.mask[..., half:].min() == 1


def test_random_cuts_are_drawn_by_the_seed_and_stay_inside(train_config, tmp_path):
    folder = save_pictures(tmp_path / "wide", ((40, 20),))
    config = train_config(instance_data_dir=str(folder), crop_style="random", crop_copies=5)
    rows = Trainer(config).data.instances
    corners = [row.time_ids[2:4] for row in rows]
    assert 1 < len(set(corners)) <= 5 and all(top == 0 <= left <= 16 for top, left in corners)
    assert corners == [row.time_ids[2:4] for row in Trainer(config).data.instances]


def test_faces_are_cut_around_where_a_detector_finds_them(train_config, tmp_path):
    folder = save_pictures(tmp_path / "wide", ((40, 20),))
    detector = save_detector(tmp_path / "detector", middle=(0.6, 0.5))
    given = {"instance_data_dir": str(folder), "crop_style": "face"}
    (row,) = Trainer(train_config(**given, face_detector=str(detector))).data.instances
    (top, left), side = row.time_ids[2:4], row.time_ids[5]
    assert top == 0 and abs(left + side / 2 - 0.6 * 2 * side) <= 1
    with pytest.raises(AtomError, match=r"--face_detector .* cannot be loaded"):
        check_inputs(train_config(**given, face_detector=str(tmp_path)))
    if find_spec("cv2") is None:
        with pytest.raises(AtomError, match="none is at hand"):
            check_inputs(train_config(**given))


def test_a_prompt_of_the_run_is_that_of_concepts_without_one(data):
    config = data()
    assert complete_config(replace(config, instance_prompt="a pet")).instance_prompt == "a pet"
    text = Path(config.data_config).read_text().replace('instance_prompt = "sks dog"', "")
    Path(config.data_config).write_text(text)
    with pytest.raises(AtomError, match="of concept 'dog' is missing"):
        check_inputs(config)
    found = check_inputs(replace(config, instance_prompt="a pet"))
    assert {s.prompt for s in found.sources} == {"sks cat", "a pet"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("instance_data_dir", "~nosuchuser/x", "home of a user who has none here"),
        ("mask_data_dir", "~nosuchuser/x", "home of a user who has none here"),
        ("class_data_dir", "~nosuchuser/x", "home of a user who has none here"),
        *(
            (name, "a\0b", "no path holds a NUL")
            for name in ("instance_data_dir", "class_data_dir")
        ),
        *((name, "a\0b", "no path holds a NUL") for name in ("mask_data_dir", "dataset_name")),
        *(
            (f.name, "\ud800", "no text")
            for f in fields(Concept)
            if f.type in ("str", "str | None")
        ),
        ("repeats", 10**11, "repeats is 100000000000; it takes at most 99999"),
        ("repeats", 10**400, "repeats is 1000.*, more than any setting takes"),
        ("share", 10**400, "share is 1000.*, which no float holds"),
        ("keep_tokens", 10**6, "it takes 0 to 1000"),
    ],
)
def test_concepts_that_no_run_can_have_are_refused_by_their_number(tmp_path, key, value, words):
    row = {"instance_data_dir": "a", "instance_prompt": "x"} | {key: value}
    row |= {"instance_data_dir": ""} if key == "dataset_name" else {}
    (tmp_path / "data.json").write_text(json.dumps([row]))
    with pytest.raises(AtomError, match=rf"concept 1 of 'data.json'(: {key})?.*{words}"):
        read_data_config(tmp_path / "data.json")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "1e999", "many", None, [1], 10**400])
@pytest.mark.parametrize("key", ["balancing", "keep_tags_count", "tag_dropout_probability"])
def test_numbers_of_other_trainers_that_are_none_are_refused(tmp_path, key, value):
    text = {"tag_dropout_enable": True, key: value}
    row = {"path": "a", "text": text, "balancing": value if key == "balancing" else 1}
    (tmp_path / "own.json").write_text(json.dumps([row]))
    with pytest.raises(AtomError, match=f"'own.json' cannot be read: .*{key} is .*finite number"):
        read_data_config(tmp_path / "own.json")
