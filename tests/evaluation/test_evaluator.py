"""The evaluator: saving and opening, two models behind one interface, and the order of its scores
on drawings everybody can tell apart."""

import shutil

import pytest
import torch
from tiny.pictures import draw_noise
from transformers import CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from sdatoms import AtomError
from sdatoms.diffusion.triggers import clean_prompt
from sdatoms.evaluation.evaluator import StyleHead, load_evaluator, save_evaluator
from sdatoms.evaluation.named_models import NAMED, choose_models, find_cached
from sdatoms.evaluation.rows import read_subject_pictures, score_subject
from sdatoms.evaluation.truth import list_truths, read_truth
from sdatoms.storage import find_assets

BUNDLED = find_assets() / "emoji-clip"


@pytest.fixture(scope="module")
def pictures():
    return draw_noise(((16, 16),) * 3)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dino") / "tiny"
    Dinov2Model(
        Dinov2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=16,
            patch_size=4,
        )
    ).save_pretrained(path)
    CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(path)
    return path


def test_embeddings_are_unit_rows(evaluator_folder, pictures):
    evaluator = load_evaluator(str(evaluator_folder))
    texts = evaluator.embed_texts(["a cat", "a very long caption about a cat", ""])
    for rows, width in (
        (evaluator.embed_concepts(pictures), 8),
        (evaluator.embed_styles(pictures), 12),
        (texts, 8),
    ):
        assert rows.shape == (3, width) and rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


def test_saved_and_opened_twice_is_the_same_evaluator(evaluator_folder, pictures, tmp_path):
    first = load_evaluator(str(evaluator_folder))
    save_evaluator(tmp_path / "again", first.clip, first.style, first.tokenizer, size=16)
    again = load_evaluator(str(tmp_path / "again"))
    assert isinstance(again.style, StyleHead) and len(again.style.drawing.levels) == 2
    assert torch.equal(first.embed_concepts(pictures), again.embed_concepts(pictures))
    assert torch.equal(first.embed_styles(pictures), again.embed_styles(pictures))
    assert torch.equal(first.embed_texts(["cat"]), again.embed_texts(["cat"]))


def test_saving_leaves_the_model_in_float32(evaluator_folder, tmp_path):
    evaluator = load_evaluator(str(evaluator_folder))
    save_evaluator(tmp_path / "e", evaluator.clip, evaluator.style, evaluator.tokenizer, size=16)
    assert evaluator.clip.dtype == torch.float32


def test_the_style_head_has_two_halves_of_equal_length(evaluator_folder, pictures):
    styles = load_evaluator(str(evaluator_folder)).embed_styles(pictures)
    for half in styles.chunk(2, 1):
        torch.testing.assert_close(half.norm(dim=1), torch.full((3,), 0.5**0.5))


def test_clip_itself_opens_the_folder(evaluator_folder, pictures):
    model = CLIPModel.from_pretrained(evaluator_folder, dtype=torch.float32).eval()
    pixels = CLIPImageProcessor.from_pretrained(evaluator_folder)(
        images=pictures, return_tensors="pt"
    )
    with torch.no_grad():
        found = model.get_image_features(**pixels).pooler_output
    torch.testing.assert_close(
        torch.nn.functional.normalize(found, dim=1),
        load_evaluator(str(evaluator_folder)).embed_concepts(pictures),
    )


def test_a_dino_model_takes_the_place_of_the_head(bare, dino, pictures):
    with pytest.raises(AtomError, match="nothing sees style"):
        load_evaluator(str(bare))
    evaluator = load_evaluator(str(bare), str(dino))
    assert evaluator.embed_styles(pictures).shape == (3, 16)
    assert evaluator.embed_concepts(pictures).shape == (3, 8)
    assert str(dino) in evaluator.name


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty local cache of the hub's; gives what puts a model there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(id, folder):
        place = tmp_path / "hub" / f"models--{id.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / "abc")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("abc")
        return place / "snapshots" / "abc"

    return put


@pytest.fixture
def bare(evaluator_folder, tmp_path):
    """A CLIP model without a style head of ours."""
    folder = shutil.copytree(evaluator_folder, tmp_path / "bare")
    (folder / "style_head.safetensors").unlink()
    return folder


def test_short_names_find_models_in_the_hubs_cache(bare, dino, pictures, hub_cache):
    clip = hub_cache(NAMED["clip"][1], bare)
    alone = load_evaluator("clip")
    assert torch.equal(alone.embed_styles(pictures), alone.embed_concepts(pictures))
    small = hub_cache(NAMED["dinov2"][1], dino)
    both = load_evaluator("clip")
    named = load_evaluator(str(clip), str(dino))
    for found in (both, load_evaluator("dinov2"), load_evaluator("clip", "dinov2")):
        assert torch.equal(found.embed_styles(pictures), named.embed_styles(pictures))
        assert torch.equal(found.embed_concepts(pictures), named.embed_concepts(pictures))
        assert str(clip) in found.name and str(small) in found.name


def test_a_model_that_is_not_whole_in_the_cache_is_passed_over(bare, hub_cache):
    (hub_cache(NAMED["clip"][0], bare) / "model.safetensors").unlink()
    assert find_cached(NAMED["clip"]) is None
    assert find_cached(NAMED["clip"][1:]) is None
    whole = hub_cache(NAMED["clip"][2], bare)
    assert find_cached(NAMED["clip"]) == whole
    assert choose_models("clip", None) == (str(whole), str(whole))


def test_a_folder_comes_before_a_short_name(evaluator_folder, hub_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(evaluator_folder, tmp_path / "clip")
    assert choose_models("clip", None) == ("clip", None)
    assert load_evaluator("clip").name == "clip"


def test_a_short_name_without_a_network_says_how_to_get_the_model(hub_cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AtomError, match="run `hf download openai/clip-vit-large-patch14` where"):
        load_evaluator("clip")


def test_weights_in_a_pickle_are_not_opened(bare, dino):
    weights = bare / "model.safetensors"
    torch.save({"a": torch.zeros(1)}, bare / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(AtomError, match="cannot be opened"):
        load_evaluator(str(bare), str(dino))


def test_pictures_do_not_depend_on_their_neighbours(evaluator_folder, pictures):
    evaluator = load_evaluator(str(evaluator_folder))
    together = evaluator.embed_styles(pictures)
    alone = torch.cat([evaluator.embed_styles([picture]) for picture in pictures])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_opened_is_named(evaluator_folder, tmp_path, pictures):
    with pytest.raises(AtomError, match=r"style_head\.safetensors"):
        load_evaluator(str(tmp_path))
    (tmp_path / "style_head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AtomError, match="cannot be opened"):
        load_evaluator(str(tmp_path))
    broken = shutil.copytree(evaluator_folder, tmp_path / "broken")
    (broken / "style_head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AtomError, match="the style head"):
        load_evaluator(str(broken))
    with pytest.raises(AtomError, match="no picture"):
        load_evaluator(str(evaluator_folder)).embed_concepts([])


@pytest.mark.skipif(not BUNDLED.is_dir(), reason="assets/emoji-clip is not there")
@pytest.mark.parametrize("name", ["ink", "clay", "cat"])
def test_the_bundled_evaluator_puts_sanity_rows_in_order(name):
    """The pictures given are more alike than any other vendor's pictures are to them, and agree
    more with their own captions than with each other's."""
    evaluator = load_evaluator()
    given = read_subject_pictures(find_assets() / "subjects" / name, evaluator)
    own, shifted, *others = score_subject(given, evaluator)
    assert others and all(row.name.startswith("wrong vendor") for row in others)
    assert all(row.fidelity + 0.05 < own.fidelity for row in others)
    assert shifted.name.startswith("wrong concept") and shifted.alignment < own.alignment


def knows_scenes():
    """Whether the bundled evaluator was trained on scenes, by its card."""
    card = BUNDLED / "README.md"
    return card.is_file() and "the caption of a scene" in card.read_text()


@pytest.mark.skipif(not knows_scenes(), reason="the bundled evaluator is older than scenes")
def test_the_bundled_evaluator_tells_a_followed_prompt_from_others():
    """Of the prompts about a subject, the right one is nearest to its true picture."""
    evaluator = load_evaluator()
    right = []
    for name in list_truths():
        wishes = read_truth(name).wishes
        texts = evaluator.embed_texts([clean_prompt(wish.prompt) for wish in wishes])
        seen = evaluator.embed_concepts([wish.picture for wish in wishes])
        right.append((seen @ texts.T).argmax(1) == torch.arange(len(wishes)))
    assert torch.cat(right).float().mean() > 0.8
