"""The laws on a narrow pipeline of every family, in every file form, dtype and offload mode.

A few cells of that product, chosen so that every value comes up, run with the fast tests; the slow
ones take all of it. Without a GPU, modes other than "none" fetch weights from the machine's memory
to the machine's memory: which bits lie where is shown so, what a card saves is not.
"""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.atoms import perturb
from tiny.families import DTYPES, FAMILIES, FORMS, PLAIN, SIDE, Bases, draw, open_narrow
from tiny.pictures import save_pictures
from tiny.runs import assert_same_atoms, make_config, read_metrics

from sdatoms import AtomConfig, inject, load_atoms, read_atoms, save_atoms
from sdatoms.cli.main import main
from sdatoms.diffusion.family import describe_base
from sdatoms.diffusion.placement import OFFLOADS
from sdatoms.layers.atom_layers import AtomLayer
from sdatoms.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")

MODES = OFFLOADS[1:]
FAST = {
    ("1.x", "single file", "float32", "sequential"),
    ("1.x", "directory", "bfloat16", "sequential"),
    ("2.x", "directory", "float32", "group"),
    ("2.x v", "directory", "bfloat16", "model"),
    ("XL", "directory", "float16", "group"),
    ("1.x inpainting", "directory", "float32", "sequential"),
    ("2.x inpainting", "directory", "float16", "model"),
    ("XL inpainting", "directory", "bfloat16", "none"),
}
FAST_FORMS = {
    ("1.x", "directory", "float16"),
    ("2.x v", "directory", "bfloat16"),
    ("XL", "directory", "float32"),
    ("1.x", "single file", "float32"),
}
FAST_RUNS = {
    ("1.x", "directory", "float32"),
    ("2.x v", "directory", "bfloat16"),
    ("XL", "directory", "float16"),
}
FAST_APP = {
    ("XL inpainting", "directory", "float16", "group"),
    ("2.x v", "directory", "bfloat16", "sequential"),
}
GREY = {"float32": 1, "float16": 3, "bfloat16": 24}
"""Grey levels between atoms that are formed as they run and the same ones baked into weights of
that dtype, which round them."""
FARTHER = {("XL inpainting", "single file", "float16")}
"""Cells where the roundings show as more: 48 weights there fall to the other side of one."""


def list_cells(fast, *axes):
    """All cells of a product; those that are not among the fast ones are slow."""
    return [
        pytest.param(*cell, marks=() if cell in fast else pytest.mark.slow)
        for cell in product(*axes)
    ]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return Bases(tmp_path_factory.mktemp("families"))


def copy_weights(pipe):
    """Lay every weight at an address of its own."""
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = tensor.data.clone()


def is_one_of(pictures, known):
    """Whether the pictures without atoms and with them are to the bit one of the pairs known."""
    return any(all(map(np.array_equal, pictures, pair)) for pair in known)


@pytest.fixture(scope="module")
def painted(bases):
    """The pictures without atoms and with them, nothing offloaded: from weights where they lie, and
    of a single file, whose weights are mapped, from copies, on which kernels round otherwise."""
    found = {}

    def paint(*cell):
        if cell not in found:
            name, form, dtype = cell
            found[cell] = []
            for copied in (False, True)[: 1 + (form == "single file")]:
                pipe = open_narrow(bases.find(*cell), dtype)
                if copied:
                    copy_weights(pipe)
                plain = draw(pipe)
                load_atoms(pipe, bases.tune(name, form))
                found[cell].append((plain, draw(pipe)))
        return found[cell]

    return paint


@pytest.mark.parametrize(
    ("name", "form", "dtype", "offload"), list_cells(FAST, FAMILIES, FORMS, DTYPES, MODES)
)
def test_one_file_is_one_picture_and_is_cleared_to_the_bit(
    bases, painted, name, form, dtype, offload
):
    pipe = open_narrow(bases.find(name, form, dtype), dtype, offload)
    plain = draw(pipe)
    adapters = load_atoms(pipe, bases.tune(name, form), name="one")
    full = draw(pipe)
    assert not np.array_equal(plain, full)
    assert is_one_of((plain, full), painted(name, form, dtype))
    adapters.set_strengths({"one": 0.5})
    adapters.set_strengths({"one": 1.0})
    assert np.array_equal(draw(pipe), full)
    assert adapters.verify_base()
    adapters.clear()
    assert np.array_equal(draw(pipe), plain)


@pytest.mark.parametrize(("name", "form", "dtype"), list_cells(FAST_FORMS, FAMILIES, FORMS, DTYPES))
def test_atoms_start_as_the_base_and_a_saved_file_paints_what_they_did(
    bases, tmp_path, name, form, dtype
):
    path = bases.find(name, form, dtype)
    facts = describe_base(path)
    assert facts.dtype == getattr(torch, dtype)
    assert facts.inpainting == (FAMILIES[name].channels == 9)
    pipe = open_narrow(path, dtype)
    # torch multiplies in another order when a weight asks for a gradient, which atoms take from it.
    pipe.unet.requires_grad_(False)
    plain, weights = draw(pipe), {k: t.clone() for k, t in pipe.unet.state_dict().items()}
    injection = inject(pipe.unet, AtomConfig())
    assert np.array_equal(draw(pipe), plain)
    perturb(injection)
    for parameter in injection.parameters():
        parameter.requires_grad_(False)  # for the same reason
    live = draw(pipe)
    tuned = {path: layer.tuned_weight() for path, layer in injection.layers.items()}
    saved = tmp_path / "a.safetensors"
    save_atoms(saved, {"unet": injection})
    injection.eject()
    assert not any(isinstance(m, AtomLayer) for m in pipe.unet.modules())
    assert all(torch.equal(t, weights[k]) for k, t in pipe.unet.state_dict().items())
    adapters = load_atoms(pipe, saved)
    shift = np.abs(draw(pipe).astype(int) - live).max()
    assert shift <= GREY[dtype] or (name, form, dtype) in FARTHER
    baked = {path: pipe.unet.get_submodule(path).weight for path in tuned}
    for path, weight in tuned.items():  # the sums are rounded once, to the base's dtype
        rounding = torch.finfo(weight.dtype).eps
        torch.testing.assert_close(baked[path].data, weight, rtol=rounding, atol=1e-6)
    kept = {path: weight.data for path, weight in baked.items()}
    for path, weight in baked.items():
        weight.data = tuned[path]
    assert np.array_equal(draw(pipe), live)  # nothing but that last bit is other than live
    for path, weight in baked.items():
        weight.data = kept[path]
    adapters.clear()
    assert all(torch.equal(t, weights[k]) for k, t in pipe.unet.state_dict().items())


@pytest.fixture
def make_run(tmp_path):
    """A training of four steps at 64 px on two pictures."""

    def make(base, **changes):
        pictures = tmp_path / "pictures"
        if not pictures.exists():
            save_pictures(pictures, ((SIDE, SIDE),) * 2)
        given = {
            "instance_data_dir": str(pictures),
            "output_dir": str(tmp_path / "run"),
            "pretrained_model_name_or_path": base,
            "resolution": SIDE,
            "train_batch_size": 1,
            "atom_variant": "atoms",
        }
        return make_config(**given | changes)

    return make


@pytest.mark.parametrize(("name", "form", "dtype"), list_cells(FAST_RUNS, PLAIN, FORMS, DTYPES))
def test_a_training_goes_on_to_the_bit(bases, make_run, tmp_path, name, form, dtype):
    base = bases.find(name, form, dtype)
    held = "bfloat16" if dtype == "float16" else dtype  # which a CPU does not train in
    whole = make_run(base, base_dtype=held, output_dir=str(tmp_path / "whole"))
    losses = [step.loss for step in train(whole)]
    assert len(losses) == 4 and np.isfinite(losses).all()
    parts = replace(whole, output_dir=str(tmp_path / "parts"))
    steps = train(parts)
    next(steps), next(steps), next(steps)
    steps.close()
    list(train(replace(parts, resume_from_checkpoint="step-000002")))
    assert_same_atoms(tmp_path / "whole", tmp_path / "parts")
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


@pytest.mark.parametrize(("name", "form"), list_cells({("XL", "directory")}, PLAIN, FORMS))
def test_every_command_takes_it(bases, make_run, tmp_path, capsys, name, form):
    base = bases.find(name, form, "float16")
    given = ["--pretrained_model_name_or_path", base, "--dtype", "float32"]
    run, out = tmp_path / "run", tmp_path / "out"
    config = make_run(base)
    words = "--instance_prompt sks --max_train_steps 1 --validation_steps 0 --train_batch_size 1"
    train_words = ["train", *words.split(), "--resolution", str(SIDE), *given]
    main([*train_words, "--instance_data_dir", config.instance_data_dir, "--output_dir", str(run)])
    atoms = str(run / "atoms.safetensors")
    assert read_atoms(atoms).metadata["base_model"] == base
    small = f"--num_inference_steps 1 --width {SIDE} --height {SIDE} --offload sequential"
    main(["generate", "sks", "--atoms", atoms, *small.split(), *given, "--output_dir", str(out)])
    assert len(list(out.glob("*.png"))) == 1
    capsys.readouterr()
    main(["inject", base, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["component"] == "unet" and facts["parameters"] > 0
    baked = tmp_path / "baked"
    into = ["--format", "pipeline", "--output", str(baked), "--dtype", "float16"]
    main(["export", atoms, *into, "--pretrained_model_name_or_path", base])
    assert describe_base(str(baked)).label == describe_base(base).label


@pytest.mark.parametrize(("name", "form"), list_cells({("XL", "directory")}, PLAIN, FORMS))
def test_evaluation_takes_it(bases, tmp_path, capsys, name, form):
    base = bases.find(name, form, "float16")
    words = "--prompt cat --seeds 1 --num_inference_steps 1 --width 64 --batch_size 1 --json"
    words += " --height 64"
    main(
        [
            "evaluate",
            str(bases.tune(name, form)),
            *words.split(),
            "--pretrained_model_name_or_path",
            base,
        ]
    )
    rows = json.loads(capsys.readouterr().out)
    assert rows


@pytest.mark.parametrize(
    ("name", "form", "dtype", "offload"),
    list_cells(FAST_APP, FAMILIES, FORMS, DTYPES, MODES),
)
def test_the_app_paints_with_it(bases, painted, tmp_path, name, form, dtype, offload):
    from sdatoms_app.studio.library import Library
    from sdatoms_app.studio.orders import Order
    from sdatoms_app.studio.studio import Studio

    folder = tmp_path / "adapters"
    folder.mkdir()
    (folder / "one.safetensors").write_bytes(bases.tune(name, form).read_bytes())
    opening = {"dtype": dtype, "offload": offload, "device": "cpu"}
    base = bases.find(name, form, dtype)
    studio = Studio(base, Library(folder), tmp_path / "outputs", opening=opening)
    order = Order("a cat", seed=1, num_inference_steps=2, width=SIDE, height=SIDE)
    if FAMILIES[name].channels == 9:
        mask = Image.new("L", (SIDE, SIDE))
        mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
        grey = Image.new("RGB", (SIDE, SIDE), "grey")
        order = replace(order, init_picture=grey, mask=mask, mask_blur=0.0, denoising_strength=1.0)
    (entry,) = studio.library.list()
    pictures = [
        next(iter(studio.paint(replace(order, adapters=adapters))))
        for adapters in ((), ((entry.id, 1.0),), ())
    ]
    shown = [np.asarray(Image.open(kept.path).convert("RGB")) for kept in pictures]
    assert np.array_equal(shown[0], shown[2])
    assert is_one_of(shown[:2], painted(name, form, dtype))
