"""The page on the file format: its plain reader computes what the library computes."""

import re
from pathlib import Path

import pytest
import torch
from tiny.atoms import SETTINGS, inject_one
from tiny.modules import FLAVOURS, make_base
from torch import nn

from sdatoms import load_atoms, read_atoms, save_atoms
from sdatoms.layers.weights import find_weight

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


READER, *MORE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
WHOLE = "".join([READER, *MORE])


def run_reader(text=WHOLE):
    scope = {}
    exec(text, scope)
    return lambda *layer: sum(scope[name](*layer) for name in ("delta", "product", "shared"))


def test_the_reader_is_twenty_lines_of_plain_numpy():
    assert len([line for line in READER.splitlines() if line.strip()]) == 20
    assert re.findall(r"^import (.*)$", READER, re.M) == ["json", "numpy as np"]


def test_the_plain_reader_gives_every_delta(sample_files, make_convnet):
    for name, path in sample_files.items():
        compare(run_reader(), path, make_convnet(), name)


def test_the_plain_reader_reads_every_flavour_of_layer(tmp_path, perturb):
    for case in FLAVOURS:
        base, _ = make_base(case)
        for setting in SETTINGS:
            injection = perturb(inject_one(base, setting), 0.3)
            path = save_atoms(tmp_path / "a.safetensors", {"model": injection})
            injection.eject()
            compare(run_reader(), path, nn.Sequential(base), f"{case}, {setting}")


def test_the_plain_reader_reads_half_precision(sample_files, tmp_path, make_convnet):
    for name in ("full", "composed"):
        file = read_atoms(sample_files[name])
        for key in file.tensors:
            file.tensors[key] = file.tensors[key].half()
        path = file.save(tmp_path / name)
        compare(
            run_reader(WHOLE.replace("<f4", "<f2")),
            path,
            make_convnet(),
            name,
            rtol=1e-2,
        )


def compare(delta, path, model, name, rtol=1e-4):
    """What the reader finds is what the library bakes, layer by layer."""
    adapters = load_atoms(model, path, name="it", strength=0)
    for layer in read_atoms(path).layers:
        inner = layer.removeprefix("model.")
        weight = find_weight(model, inner).weight.numpy()
        expected = adapters.delta("it", inner)
        assert expected.abs().max() > 0
        found = torch.from_numpy(delta(path, layer, weight)).float()
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            found, expected, rtol=rtol, atol=rtol * scale, msg=f"{name}: {layer}"
        )


def test_the_page_names_every_tensor_and_header_entry(sample_files):
    for path in sample_files.values():
        file = read_atoms(path)
        for key in file.tensors:
            assert f"`{key.rsplit('.', 1)[1]}`" in PAGE
        for entry in file.metadata:
            name = entry.removeprefix("modelspec.")
            assert f"`{name}`" in PAGE or name in ("sai_model_spec", "implementation"), entry
