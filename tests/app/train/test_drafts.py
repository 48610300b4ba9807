"""Pictures before a training: checks, the trainer's own crop, captions that are never lost."""

import numpy as np
import pytest
import torch
from PIL import Image
from sdatoms_app.train import drafts
from sdatoms_app.train.drafts import MAX_DRAFTS, Draft
from sdatoms_app.train.listed import list_folders
from tiny.pictures import draw
from tiny.pipelines import save_base

import sdatoms
from sdatoms.diffusion.family import read_resolution
from sdatoms.diffusion.open import load_base
from sdatoms.pictures import to_tensor
from sdatoms.storage import find_assets
from sdatoms.training.buckets import list_buckets
from sdatoms.training.encodings import encode_pictures
from sdatoms.training.folder import check_folder
from sdatoms.training.picture_checks import check_pictures

HOSTILE = '<img src=x onerror=alert(1)>"; rm -rf $HOME.png'


def test_every_kind_of_picture(tmp_path):
    fine = draw(tmp_path / "fine.png")
    twin = tmp_path / "twin.jpg"
    Image.open(fine).save(twin, quality=92)
    tiny = draw(tmp_path / "tiny.png", (40, 30), seed=1)
    corrupt = tmp_path / "corrupt.png"
    corrupt.write_bytes(draw(tmp_path / "whole.png", seed=2).read_bytes()[:200])
    checks = check_pictures([fine, twin, tiny, corrupt], 64)
    assert [v.kind for v in checks] == ["fine", "duplicate", "tiny", "corrupt"]
    assert "fine.png" in checks[1].text and "enlarged 2.1 times" in checks[2].text
    assert checks[3].crop is None and all(v.crop.size == (64, 64) for v in checks[:3])


def test_notes_say_what_is_done_to_a_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = draw(tmp_path / "turned.jpg", (100, 70), exif=exif)
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (70, 70), (255, 0, 0, 0)).save(clear)
    first, second = check_pictures([turned, clear], 64)
    assert "turned upright" in first.text and first.size == (70, 100)
    assert "transparency on white" in second.text
    assert np.asarray(second.crop).min() == 255


def test_the_crop_is_what_the_trainer_encodes(tmp_path):
    """The latents a training caches are the autoencoder's for exactly these pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = draw(folder / "a.png", (150, 90))
    pipe = load_base(str(save_base(tmp_path / "base")), device="cpu")
    sources = check_folder(folder, "a dog").sources
    cached = encode_pictures(pipe, sources, list_buckets(None, 64, 8, 8))
    crop = check_pictures([path], read_resolution(str(tmp_path / "base")))[0].crop
    with torch.no_grad():
        mean = pipe.vae.encode(to_tensor(crop)[None]).latent_dist.mean
    torch.testing.assert_close(cached[0].mean, mean[0] * pipe.vae.config.scaling_factor)


def test_captions_survive_removing_adding_and_reloading(tmp_path):
    files = [draw(tmp_path / f"{k}.png", seed=k) for k in range(2)]
    draft = Draft(tmp_path / "drafts")
    assert draft.add(files) == []
    first, second = draft.list()
    draft.set_caption(first.id, "a dog on the beach")
    draft.remove(first.id)
    again = Draft(tmp_path / "drafts", draft.token)
    assert [p.id for p in again.list()] == [second.id]
    again.add([files[0]])
    assert [p.caption for p in again.list()] == ["", "a dog on the beach"]
    again.fill(tmp_path)
    texts = sorted(tmp_path.glob("001-*.txt"))
    assert [p.read_text() for p in texts] == ["a dog on the beach"]
    assert texts[0].with_suffix(".png").read_bytes() == files[0].read_bytes()
    assert not list(tmp_path.glob("000-*.txt"))


def test_names_never_become_paths_and_corrupt_files_are_left_out(tmp_path):
    hostile = draw(tmp_path / HOSTILE.replace("/", "_"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no")
    draft = Draft(tmp_path / "drafts")
    refused = draft.add([hostile, broken, hostile])
    assert len(refused) == 2 and "broken.png" in refused[0] and "already" in refused[1]
    held = {p.name for p in draft.folder.iterdir()}
    assert held == {"draft.json", f"{draft.list()[0].id}.png"}
    with pytest.raises(sdatoms.AtomError, match="no picture"):
        draft.set_caption("../../x", "text")


def test_sidecar_texts_become_captions(tmp_path):
    picture = draw(tmp_path / "dog.png")
    (tmp_path / "dog.txt").write_text(" a dog \n")
    draft = Draft(tmp_path / "drafts")
    draft.add([picture, tmp_path / "dog.txt"])
    assert draft.list()[0].caption == "a dog"


@pytest.mark.parametrize("token", ["", None, "../../etc", "f" * 31, "F" * 32, 7])
def test_tokens_that_are_none_start_a_new_draft(tmp_path, token):
    draft = Draft(tmp_path, token)
    assert draft.folder.parent == tmp_path and draft.token != token
    assert Draft(tmp_path, draft.token).folder == draft.folder


def test_drafts_do_not_pile_up(tmp_path):
    for _ in range(MAX_DRAFTS + 3):
        Draft(tmp_path)
    assert len(list(tmp_path.iterdir())) <= MAX_DRAFTS + 1


def test_an_empty_draft_is_refused(tmp_path):
    with pytest.raises(sdatoms.AtomError, match="no pictures"):
        Draft(tmp_path / "drafts").fill(tmp_path)


def test_only_listed_folders_are_offered(tmp_path):
    (tmp_path / "root" / "cats").mkdir(parents=True)
    (tmp_path / "root" / ".hidden").mkdir()
    (tmp_path / "root" / "empty").mkdir()
    draw(tmp_path / "root" / "cats" / "a.png")
    draw(tmp_path / "root" / ".hidden" / "a.png")
    draw(tmp_path / "a.png")
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    assert list(list_folders([tmp_path / "root"])) == ["root/cats"]
    assert "subjects/clay" in list_folders([find_assets() / "subjects"])


def test_folders_of_one_name_are_told_apart_and_an_operators_link_counts(tmp_path):
    for root in ("a", "b"):
        (tmp_path / root / "photos").mkdir(parents=True)
        draw(tmp_path / root / "photos" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "b" / "photos")
    found = list_folders([tmp_path / "a" / "photos", tmp_path / "link"])
    assert list(found) == ["photos", "photos (2)"]
    assert found["photos (2)"] == (tmp_path / "b" / "photos").resolve()


@pytest.mark.parametrize(
    ("cap", "value", "words"),
    [
        ("MAX_PICTURES", 1, "at most 1 pictures"),
        ("MAX_PICTURE_BYTES", 100, "at most 0 MB"),
        ("MAX_DRAFT_BYTES", 1, "at most 1 GiB"),
    ],
)
def test_a_draft_takes_so_many_pictures_and_no_more(tmp_path, monkeypatch, cap, value, words):
    monkeypatch.setattr(drafts, cap, value)
    paths = [draw(tmp_path / f"{k}.png", seed=k) for k in range(2)]
    refused = Draft(tmp_path / "drafts").add(paths)
    assert refused and all(words in line for line in refused)
