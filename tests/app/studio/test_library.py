"""The listed atom files: found in the folder, uploaded, named by ids that are no paths."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from sdatoms_app.generate.cards import draw_cards
from sdatoms_app.generate.form import make_order, restore_recipe
from sdatoms_app.studio import library
from sdatoms_app.studio.library import Library, slugify
from tiny.app import read_pixels
from tiny.loras import save_lora
from tiny.pictures import draw
from tiny.pipelines import build_pipeline

import sdatoms
from sdatoms import AdapterSet, AtomError
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.picture_file import read_recipe


def test_library_lists_atom_files_and_checkpoints_by_id(adapters_dir):
    library = Library(adapters_dir)
    assert {entry.id for entry in library.list()} == {"dog", "ink"}
    assert [(e.id, e.step) for e in library.list_checkpoints()] == [("dog@100", 100)]
    dog = library.find("dog")
    assert dog.parameters == sdatoms.read_atoms(dog.path).num_parameters
    assert library.find_hash(dog.sha256) == dog and library.find_hash("0" * 64) is None


def test_examples_stand_behind_the_own_files_and_are_never_written_to(adapters_dir, tmp_path):
    examples = tmp_path / "examples"
    examples.mkdir()
    file = sdatoms.read_atoms(adapters_dir / "ink.safetensors")
    hint = {"modelspec.usage_hint": "a cat in ink"}
    replace(file, metadata=file.metadata | hint).save(examples / "pen.safetensors")
    draw(examples / "pen.webp", (32, 16))
    library = Library(tmp_path / "library", None, examples)
    (example,) = library.list()
    assert (example.id, example.prompt, example.example) == ("examples/pen", "a cat in ink", True)
    assert [half.size for half in example.read_pair()] == [(16, 16), (16, 16)]
    added = library.add(adapters_dir / "dog" / "atoms.safetensors")
    assert added.path.is_relative_to(library.folder) and not added.example
    assert library.list() == [added, example] and added.read_pair() == []
    own = library.folder / "examples" / "pen.safetensors"
    shutil.copytree(examples, own.parent)
    assert [entry.example for entry in library.list() if entry.id == "examples/pen"] == [False]


@pytest.mark.parametrize("id", ["../dog", "/etc/passwd", "dog/checkpoints/step-000100", "old", ""])
def test_ids_that_are_not_listed_are_refused(adapters_dir, id):
    with pytest.raises(AtomError, match="is listed; refresh"):
        Library(adapters_dir).find(id)


def test_uploads_are_checked_and_get_a_safe_name(adapters_dir, tmp_path):
    library = Library(tmp_path / "library")
    hostile = tmp_path / "..hidden; rm -rf $HOME.SafeTensors.pt"
    shutil.copy(adapters_dir / "ink.safetensors", hostile)
    entry = library.add(hostile)
    assert entry.path.parent == tmp_path / "library" / "uploads"
    assert entry.path.name.startswith("hidden-rm-rf-home-safetensors-")
    assert [e.id for e in library.list()] == [entry.id]
    with pytest.raises(AtomError, match="no safetensors file"):
        library.add(adapters_dir / "old.safetensors")
    assert len(library.list()) == 1


def test_links_out_of_the_folder_are_not_listed(adapters_dir, tmp_path):
    library = Library(tmp_path / "library")
    library.folder.mkdir()
    (library.folder / "link.safetensors").symlink_to(adapters_dir / "ink.safetensors")
    assert library.list() == []


def test_atom_files_that_are_too_large_are_not_read(adapters_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "MAX_UPLOAD_BYTES", 1000)
    with pytest.raises(AtomError, match="MB are taken"):
        Library(tmp_path).add(adapters_dir / "ink.safetensors")


@pytest.mark.parametrize("words", ["", "…", "../..", "CON", "a" * 300])
def test_names_are_plain(words):
    assert slugify(words).replace("-", "").isalnum() and len(slugify(words)) <= 40


@pytest.fixture
def models(studio, tiny_base, tmp_path):
    """A folder of models with two LoRAs for the base and one for none; the studio lists it."""
    base = load_base(str(tiny_base))
    for names in ("kohya", "diffusers"):
        trigger = {"modelspec.trigger_phrase": f"sks <b>{names}</b>", "ss_sd_model_name": "some"}
        save_lora(tmp_path / "Lora" / f"{names}.safetensors", base, names, trigger, alpha=2)
    save_lora(tmp_path / "xl.safetensors", build_pipeline("sdxl", width=8), rank=5)
    (tmp_path / "evil.safetensors").write_bytes(b"\x80\x04K\x01.")
    studio.library.models = tmp_path
    yield tmp_path
    studio.library.models = None


def test_loras_are_listed_behind_atoms_and_found_by_hash(studio, models):
    found = studio.library.list_adapters()
    atoms, loras = found[: len(studio.library.list())], found[len(studio.library.list()) :]
    assert {e.kind for e in atoms} == {"atoms"} and {e.kind for e in loras} == {"LoRA"}
    ids = {"models/Lora/kohya", "models/Lora/diffusers", "models/xl"}
    assert {entry.id for entry in loras} == ids
    kohya = studio.library.find("models/Lora/kohya")
    assert kohya.rank == "3" and kohya.trigger == "sks <b>kohya</b>" and kohya.base_model == "some"
    assert {"down.0", "mid", "up.1", "text_encoder"} <= set(dict(kohya.blocks))
    assert dict(kohya.blocks) == dict(studio.library.find("models/Lora/diffusers").blocks)
    assert studio.library.find_hash(kohya.sha256) == kohya
    assert studio.library.find_hash(atoms[0].sha256) == atoms[0]
    html = draw_cards([(entry, studio.judge(entry)) for entry in loras], [])
    assert "LoRA of rank 3" in html and "&lt;b&gt;kohya&lt;/b&gt;" in html and "<b>" not in html


def test_loras_and_atoms_are_mixed_and_leave_the_base(studio, models, paint, order):
    base = read_pixels(paint()[0].path)
    assert studio.judge(studio.library.find("models/Lora/kohya")).verdict == "fits"
    assert studio.judge(studio.library.find("models/xl")).verdict == "does not fit"
    mix = (("models/Lora/kohya", {"*": 0.5, "mid": 0.0}), ("dog", 0.7))
    wanted = replace(
        order, adapters=mix, strength_schedules={"models/Lora/kohya": "1 until 0.5, then 0"}
    )
    kept = paint(wanted)[0]
    one = paint(replace(order, adapters=mix[1:]))[0]
    assert len({read_pixels(k.path).tobytes() for k in (kept, one)} | {base.tobytes()}) == 3
    settings, remarks = restore_recipe(read_recipe(kept.path), studio)
    again = paint(make_order(settings))[0]
    assert remarks == [] and again.recipe == kept.recipe
    assert np.array_equal(read_pixels(again.path), read_pixels(kept.path))
    with pytest.raises(AtomError, match="LoRA"):
        paint(replace(order, adapters=(("models/xl", 1.0),)))
    assert np.array_equal(read_pixels(paint()[0].path), base)
    assert AdapterSet(studio.open()).verify_base()


def test_a_dropped_lora_is_checked_and_listed(studio, models, tmp_path):
    entry = studio.library.add(models / "Lora" / "kohya.safetensors")
    assert entry.kind == "LoRA" and entry.id.startswith("uploads/kohya-")
    assert Library(studio.library.folder).find(entry.id).rank == "3"
    with pytest.raises(AtomError, match="no safetensors file"):
        studio.library.add(models / "evil.safetensors")
