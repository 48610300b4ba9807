"""The page on the file format: its plain reader computes what the library computes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sdatoms import load_atoms, read_atoms

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert set(re.findall(r"^import (.*)$", block, re.M)) == {"json, struct", "numpy as np"}
    scope = {}
    exec(block, scope)
    return scope


def test_the_plain_reader_gives_every_delta(reader, sample_files, make_convnet):
    for name, path in sample_files.items():
        model = make_convnet()
        adapters = load_atoms(model, path, name="it", strength=0)
        for layer in read_atoms(path).layers:
            inner = layer.removeprefix("model.")
            weight = model.get_submodule(inner).weight.detach().numpy()
            found = torch.from_numpy(reader["delta"](path, layer, weight)).float()
            expected = adapters.delta("it", inner)
            assert expected.abs().max() > 0
            torch.testing.assert_close(
                found, expected, rtol=1e-4, atol=1e-6, msg=f"{name}: {layer}"
            )


def test_the_plain_reader_reads_half_precision(reader, sample_files, tmp_path):
    file = read_atoms(sample_files["full"])
    for key in file.tensors:
        file.tensors[key] = file.tensors[key].half()
    tensors, _ = reader["read"](file.save(tmp_path / "half"))
    for key, tensor in file.tensors.items():
        assert np.array_equal(tensors[key], tensor.double().numpy()), key


def test_the_page_names_every_tensor_and_header_entry(sample_files):
    for path in sample_files.values():
        file = read_atoms(path)
        for key in file.tensors:
            assert f"`{key.rsplit('.', 1)[1]}`" in PAGE
        for entry in file.metadata:
            name = entry.removeprefix("modelspec.")
            assert f"`{name}`" in PAGE or name in ("sai_model_spec", "implementation"), entry
