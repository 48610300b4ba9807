"""Real trained weights: CIFAR-10 ResNets keep every bit of every logit under injection.

Weights and pictures lie outside the repository, in `data/cifar` of a folder `shared` beside it or
of the one that SDATOMS_SHARED names. The pictures are JPEGs of quality 75 with halved colour: on
them the networks reach 82 to 85 %, where they reach 92 to 93 % on the lossless ones.
"""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.atoms import VARIANTS

from sdatoms import AtomConfig, inject, load_atoms, save_atoms
from sdatoms.models.open import open_model

PLACES = [Path(os.environ.get("SDATOMS_SHARED", "")), *Path(__file__).resolve().parents]
FOLDER = next(
    (
        found
        for place in PLACES
        for found in (place / "data" / "cifar", place / "shared" / "data" / "cifar")
        if (found / "resnet56.safetensors").is_file()
    ),
    None,
)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(FOLDER is None, reason="no shared/data/cifar beside the repository"),
]

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def pictures():
    """Normalized test pictures `(B, 3, 32, 32)` and their classes, which sort as CIFAR-10 does."""
    with zipfile.ZipFile(FOLDER / "cifar10-subset.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("test/") and n.endswith("jpg"))
        kinds = sorted({name.split("/")[1] for name in names})
        rows = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    x = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(SPREAD).view(3, 1, 1)
    return x, torch.tensor([kinds.index(name.split("/")[1]) for name in names])


@torch.inference_mode()
def classify(model, x):
    return torch.cat([model(part) for part in x.split(250)])


def accuracy(logits, labels):
    return float((logits.argmax(1) == labels).float().mean())


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_depths_are_read_from_the_file_and_classify(depth, pictures):
    model = open_model(FOLDER / f"resnet{depth}.safetensors").model
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in model.modules())
    assert convolutions + 1 == depth
    x, labels = (t[::5] for t in pictures)
    assert accuracy(classify(model, x), labels) > 0.8


def test_resnet56_keeps_every_logit_in_every_variant(pictures):
    model = open_model(FOLDER / "resnet56.safetensors").model
    x, labels = (t[::5] for t in pictures)
    logits = classify(model, x)
    assert accuracy(logits, labels) > 0.8
    few = x[::4]
    before = classify(model, few)
    for variant in VARIANTS:
        injection = inject(model, AtomConfig(variant))
        assert len(injection.layers) == 55
        assert torch.equal(classify(model, few), before), variant
        injection.eject()
    inject(model, AtomConfig("full"))
    assert torch.equal(classify(model, x), logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loading_and_clearing_atoms_keeps_every_logit(variant, pictures, perturb, tmp_path):
    model = open_model(FOLDER / "resnet20.safetensors").model
    few, before = pictures[0][:50], classify(model, pictures[0][:50])
    injection = perturb(inject(model, AtomConfig(variant)), 0.1)
    path = save_atoms(tmp_path / "atoms.safetensors", {"model": injection})
    tuned = classify(model, few)
    injection.eject()

    adapters = load_atoms(model, path)
    torch.testing.assert_close(classify(model, few), tuned, rtol=1e-3, atol=1e-3)
    assert not torch.equal(tuned, before)
    adapters.clear()

    assert torch.equal(classify(model, few), before)
