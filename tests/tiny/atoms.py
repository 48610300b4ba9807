"""Atoms in tiny models: settings, tuned injections, atom files of every form, damaged files."""

import json

import pytest
import torch
from torch import nn

from sdatoms import AtomConfig, AtomError, compose, inject, load_atoms, read_atoms
from sdatoms.adapters.state import find_state
from sdatoms.files.writer import pack_atoms
from tiny.modules import copy_weights

VARIANTS = ["atoms", "overcomplete", "coefficients", "full"]
SETTINGS = {
    **{variant: {"variant": variant} for variant in VARIANTS},
    "atoms, m < rank": {"variant": "atoms", "num_atoms": 2, "block_atoms": 3},
    "full, 12 atoms": {"variant": "full", "num_atoms": 12, "block_atoms": 3},
    "channel view": {"variant": "full", "block_view": "channel"},
    "product": {"variant": "coefficients", "block_form": "product"},
    "product each, full": {
        "variant": "full",
        "block_form": "product",
        "block_factors": "each",
        "block_size": 4,
    },
    "shared": {"variant": "coefficients", "block_form": "shared", "block_size": None},
    "shared each, full": {
        "variant": "full",
        "block_form": "shared",
        "block_factors": "each",
        "block_size": None,
        "block_atoms": 2,
    },
    "a share of blocks": {"variant": "full", "block_share": 0.1, "block_view": "channel"},
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SAMPLES = {
    "atoms": AtomConfig("atoms", num_atoms=4),
    "overcomplete": AtomConfig("overcomplete", num_inner_atoms=2),
    "coefficients": AtomConfig("coefficients", block_size=2),
    "channel": AtomConfig("coefficients", block_size=4, block_view="channel"),
    "full": AtomConfig("full", num_inner_atoms=1),
    "product": AtomConfig("coefficients", block_form="product", block_size=4),
    "product each": AtomConfig(
        "full", block_form="product", block_factors="each", block_size=2, num_inner_atoms=1
    ),
    "shared": AtomConfig("coefficients", block_form="shared", block_atoms=2),
    "shared each": AtomConfig(
        "full", block_form="shared", block_factors="each", block_atoms=2, num_inner_atoms=1
    ),
    "linear": AtomConfig("atoms", target_modules=("head", "pointwise"), block_size=2),
}
"""What `build_samples` tunes a `ConvNet` with."""


def inject_one(base, setting, **more):
    """`base` in a model of its own, with explicit numbers, so that no budget leaves it out.

    Where they are complete, plain spatial atoms may still be cut to a quarter of the layer.
    """
    numbers = {"num_inner_atoms": 2, "block_size": 2, "target_modules": ("0*",)}
    return inject(nn.Sequential(base), AtomConfig(**numbers | SETTINGS[setting] | more))


@torch.no_grad()
def perturb(injection, size=0.05, seed=0):
    """Move every atom away from where it starts; returns the injection."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in injection.parameters():
        parameter += size * torch.randn(parameter.shape, generator=generator)
    return injection


def refuse_damaged(file, damage, path):
    """`damage(tensors, layouts)` makes a file that is refused in one sentence naming the layer."""
    layers = file.layers
    damage(file.tensors, layers)
    file.metadata["layers"] = json.dumps(layers)
    with pytest.raises(AtomError) as error:
        read_atoms(file.save(path))
    assert len(str(error.value).splitlines()) == 1 and "model." in str(error.value)


def check_reload(model, config, file, run, trained):
    """A model with the file, loaded or trained on from, gives what was trained."""
    adapters = load_atoms(model, file, name="a")
    for found, expected in zip(run(), trained, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    adapters.clear()
    again = inject(model, config)
    again.load_state_dict({k.removeprefix("model."): t for k, t in file.tensors.items()})
    for found, expected in zip(run(), trained, strict=True):
        assert torch.equal(found, expected)


def build_samples(make_convnet):
    """Name → atom file, in every form that one of a `ConvNet` can take; its component is
    `model`."""
    files = {
        name: pack_atoms({"model": perturb(inject(make_convnet(), config), 0.05, seed)})
        for seed, (name, config) in enumerate(SAMPLES.items())
    }
    files["composed"] = compose(list(files.values()), [0.5, -1, 2, 1, 0.3, 1, -0.7, 0.6, 0.4, 0.8])
    files["composed of two"] = compose([files["overcomplete"], files["full"]], [1, 0.5])
    files["composed again"] = compose([files["composed"], files["atoms"]], [1, 3])
    return files


def read_raw(path):
    """A safetensors file's header and what follows it, without safetensors."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_raw(path, header, data=b"", claim=None):
    """Write a header and what follows it as they are, true or not.

    Args:
        claim: what the first eight bytes give for the header's length; None: the truth.
    """
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if claim is None else claim).to_bytes(8, "little") + text + data)


def find_rows(injection):
    """Module path → row of the report."""
    return {row.path: row for row in injection.report()}


def measure_deltas(file, unet):
    """Module path → delta at unit strength; the UNet stays as it was."""
    adapters = load_atoms(unet, file, name="x")
    found = {path: adapters.delta("x", path) for path in file.maps("unet")}
    adapters.clear()
    return found


def refuse_file(target, path, sentence, **options):
    """Loading fails in one line and leaves the module as it was."""
    before = copy_weights(target)
    with pytest.raises(AtomError, match=sentence) as error:
        load_atoms(target, path, **options)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()
    for key, tensor in target.state_dict().items():
        assert tensor.is_meta or torch.equal(tensor, before[key]), key
    assert not find_state(target)


def check_start(trainer):
    """Nothing has changed before the first step: with its atoms and without, the same to the
    bit."""
    unet, given = trainer.pipe.unet, (torch.randn(1, 4, 8, 8), torch.tensor([5]))
    context = torch.randn(1, 8, unet.config.cross_attention_dim)
    with torch.no_grad():
        changed = unet(*given, context).sample
        trainer.injections["unet"].eject()
        assert torch.equal(changed, unet(*given, context).sample)
