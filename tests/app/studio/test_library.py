"""The listed atom files: found in the folder, uploaded, named by ids that are no paths."""

import shutil

import pytest
from sdatoms_app.studio import library
from sdatoms_app.studio.library import Library, slugify

import sdatoms
from sdatoms import AtomError


def test_library_lists_atom_files_and_checkpoints_by_id(adapters_dir):
    library = Library(adapters_dir)
    assert {entry.id for entry in library.list()} == {"dog", "ink"}
    assert [(e.id, e.step) for e in library.list_checkpoints()] == [("dog@100", 100)]
    dog = library.find("dog")
    assert dog.parameters == sdatoms.read_atoms(dog.path).num_parameters
    assert library.find_hash(dog.sha256) == dog and library.find_hash("0" * 64) is None


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
