"""Laws of sparse codes: their scale, and a cache that changes no bit."""

import pytest
import torch
from tiny.atoms import VARIANTS

from sdatoms import AtomError, load_atoms
from sdatoms.atoms.codes import (
    CodeBook,
    clear_cache,
    encode_weight,
    fetch_codes,
    find_cache,
    fit_codes,
    measure_cache,
)
from sdatoms.atoms.decompose import View

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("SDATOMS_CODE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sdatoms" / "codes"


@pytest.mark.parametrize("num_atoms", [4, 9, 12])
def test_the_rms_of_atoms_is_the_relative_change(rng, num_atoms):
    """Exactly for one atom, on average for all of them together."""
    weight = torch.randn(32, 64, 3, 3, generator=rng)
    basis, _ = fit_codes(weight, View("spatial", tuple(weight.shape)), num_atoms, 0.15, 0)
    changes = []
    for atom in range(num_atoms):
        delta = torch.zeros(num_atoms, 9)
        delta[atom] = torch.randn(9, generator=rng)
        delta *= 0.01 / delta.square().mean().sqrt()
        changes.append(float((basis.values @ delta).norm() / weight.norm()))
    assert changes == pytest.approx([0.01] * num_atoms, rel=1e-3)
    changes = []
    for _ in range(50):
        delta = 0.01 * torch.randn(num_atoms, 9, generator=rng)
        changes.append(float((basis.values @ delta).norm() / weight.norm()))
    assert sum(changes) / 50 == pytest.approx(0.01, rel=0.05)


def test_atoms_that_hardly_any_filter_uses_are_not_blown_up(rng):
    atoms = torch.eye(9)
    weight = torch.randn(30, 100, 9, generator=rng)
    weight[..., 8] = 0
    weight[0, 0, 8] = 3
    view = View("spatial", (30, 100, 3, 3))
    codes = encode_weight(weight.reshape(view.shape), view, CodeBook(atoms, 0.15))
    norms = codes.norm(dim=0)
    whole = float(weight.norm()) / 9
    assert norms[:8].tolist() == pytest.approx([whole] * 8, rel=1e-4)
    assert 0 < float(norms[8]) < 0.7 * whole
    with pytest.raises(AtomError, match="every code is zero"):
        encode_weight(weight.reshape(view.shape), view, CodeBook(atoms, 99.0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_hit_is_a_miss_bit_for_bit(make_convnet, sparse_file, cache, variant, monkeypatch):
    path = sparse_file(variant=variant)
    first, second, third = make_convnet(), make_convnet(), make_convnet()
    assert measure_cache() == (0, 0)
    load_atoms(first, path)
    kept, size = measure_cache()
    files = sorted(cache.iterdir())
    assert kept == len(files) > 0
    assert size == sum(file.stat().st_size for file in files)
    stamps = [file.stat().st_mtime_ns for file in files]
    load_atoms(second, path)
    assert [file.stat().st_mtime_ns for file in sorted(cache.iterdir())] == stamps
    monkeypatch.setenv("SDATOMS_CODE_CACHE", "0")
    load_atoms(third, path)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
        assert torch.equal(value, third.state_dict()[key]), key


def test_the_cache_tells_weights_atoms_views_and_penalties_apart(cache, rng):
    weight = torch.randn(12, 8, 3, 3, generator=rng)
    view = View("spatial", (12, 8, 3, 3))
    basis, _ = fit_codes(weight, view, 9, 0.15, 0)
    book = basis.book
    assert torch.equal(fetch_codes(weight, view, book), basis.values)
    other, _ = fit_codes(weight, view, 9, 0.15, 1)
    changed = weight.clone()
    changed[0, 0, 0, 0] += 1e-3
    for number, (w, v, b) in enumerate(
        [
            (changed, view, book),
            (weight, View("spatial", (12, 8, 3, 3), 2), book),
            (weight, view, other.book),
            (weight, view, CodeBook(book.atoms, book.penalty * 1.01)),
        ],
        2,
    ):
        assert torch.equal(fetch_codes(w, v, b), encode_weight(w, v, b))
        assert measure_cache()[0] == number
    clear_cache()
    assert measure_cache() == (0, 0)


@pytest.mark.parametrize("damage", ["cut", "bits", "empty"])
def test_damaged_codes_are_found_anew(cache, rng, damage):
    weight = torch.randn(12, 8, 3, 3, generator=rng)
    view = View("spatial", (12, 8, 3, 3))
    basis, _ = fit_codes(weight, view, 9, 0.15, 0)
    fetch_codes(weight, view, basis.book)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    spoiled = {"cut": data[:-4], "bits": data[:-4] + b"\0\0\0\1", "empty": b""}[damage]
    file.write_bytes(spoiled)
    assert torch.equal(fetch_codes(weight, view, basis.book), basis.values)
    assert file.read_bytes() == data


def test_a_cache_that_cannot_be_written_is_done_without(cache, rng, caplog):
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the directory should be")
    weight = torch.randn(12, 8, 3, 3, generator=rng)
    view = View("spatial", (12, 8, 3, 3))
    basis, _ = fit_codes(weight, view, 9, 0.15, 0)
    assert torch.equal(fetch_codes(weight, view, basis.book), basis.values)
    assert "codes are not kept" in caplog.text
    assert measure_cache() == (0, 0)


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert find_cache() is None
    assert measure_cache() == (0, 0)
    monkeypatch.delenv("SDATOMS_CODE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (None, "", "relative"):
        if value is None:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert find_cache() == tmp_path / ".cache" / "sdatoms" / "codes"
