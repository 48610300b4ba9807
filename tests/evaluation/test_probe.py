"""The probe: its file, what it looks at, and the values that it knows."""

import pytest
import torch
from safetensors.torch import save_file

from sdatoms import AtomError
from sdatoms.evaluation.probe import Probe, find_modifiers, load_probe, save_probe

VALUES = {"place": ("beach", "snow"), "number": (2, 3, 4)}


@pytest.fixture
def probe():
    torch.manual_seed(0)
    return Probe(VALUES).eval()


def test_it_comes_back_from_its_file_with_its_values(probe, tmp_path):
    x = torch.rand(2, 3, 64, 64)
    save_probe(probe, tmp_path / "probe.safetensors")
    again = load_probe(tmp_path / "probe.safetensors")
    assert again.values == VALUES
    for kind, logits in probe(x, x).items():
        assert logits.shape == (2, len(VALUES[kind]) + 1)
        torch.testing.assert_close(again(x, x)[kind], logits, rtol=0.02, atol=0.02)


def test_it_names_a_value_or_none_of_every_kind(probe):
    x = torch.rand(3, 3, 64, 64)
    found = find_modifiers(probe, x, x, batch_size=2)
    assert found.keys() == VALUES.keys()
    assert all(len(own) == 3 and set(own) <= {None, *VALUES[kind]} for kind, own in found.items())


def test_it_looks_at_its_reference(probe):
    x = torch.rand(1, 3, 64, 64)
    assert not torch.equal(probe(x, x)["place"], probe(x, 1 - x)["place"])


def test_another_file_is_refused(tmp_path):
    for name, write in (
        ("missing", lambda path: None),
        ("text", lambda path: path.write_text("no tensors")),
        ("other", lambda path: save_file({"weight": torch.zeros(1)}, path)),
    ):
        write(tmp_path / name)
        with pytest.raises(AtomError, match=f"{name}' cannot be read"):
            load_probe(tmp_path / name)


def test_the_bundled_one_is_small_and_knows_nine_kinds():
    probe = load_probe()
    assert len(probe.values) == 9 and sum(p.numel() for p in probe.parameters()) < 500_000
