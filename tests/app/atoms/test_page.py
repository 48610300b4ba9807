"""The Atoms tab over every kind of file: looked into, muted, mixed, exported."""

from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
import torch
from sdatoms_app.atoms import exports
from sdatoms_app.atoms.page import EVERYWHERE, HERE, AtomsPage

import sdatoms
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.files.anatomy import list_views, mute_atom
from sdatoms.files.compose import compose
from sdatoms.files.writer import FileFacts, pack_atoms

pytestmark = pytest.mark.filterwarnings("default")  # gradio's own warnings
KINDS = {
    "atoms": {"variant": "atoms"},
    "overcomplete": {"variant": "overcomplete"},
    "coefficients": {"variant": "coefficients", "block_size": 2},
    "full": {"variant": "full", "block_size": 2},
    "sparse": {"variant": "atoms", "decomposition": "sparse", "num_atoms": 6},
    "word": {"variant": "atoms"},
}


@pytest.fixture(scope="module")
def page(studio, tiny_base):
    """The tab's handlers, over a library with a file of every kind; `word` brings a new word and
    atoms of the text encoder too."""
    pipe = load_base(str(tiny_base))
    for seed, (kind, config) in enumerate(KINDS.items()):
        components = ["unet", "text_encoder"] if kind == "word" else ["unet"]
        settings = sdatoms.AtomConfig(**config)
        injections = {}
        for component in components:
            chosen = settings
            if component == "text_encoder":
                chosen = sdatoms.AtomConfig(variant="coefficients", block_size=2)
            injections[component] = sdatoms.inject(getattr(pipe, component), chosen)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for injection in injections.values():
                for parameter in injection.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        more = {}
        if kind == "word":
            rows = torch.randn(2, 12, generator=generator)
            more = {"word": "<new>", "embeddings": {"text_encoder": rows}}
        file = pack_atoms(injections, FileFacts(f"sks {kind}", str(tiny_base)), **more)
        file.save(studio.library.folder / "kinds" / f"my-{kind}.safetensors")
        for injection in injections.values():
            injection.eject()
    return AtomsPage(studio)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_opened_layer_by_layer(page, kind):
    id = f"kinds/my-{kind}"
    heat, budget, layers, atoms, *view = page.open_file(id)
    file = page.read(id)
    assert heat.count("<button") == len({view[:2] for view in list_views(file)})
    size = page.library.find(id).path.stat().st_size
    assert f"<td>the file</td><td>{size:,}</td><td>100.0 %</td>" in budget
    assert len(atoms.choices) > 1 and len(view) == 6
    for _, layer in layers.choices:
        channel, before, *_, told = page.show_layer(id, layer, -1)
        assert before.value is not None and "atoms of" in told
        if channel.visible:
            own = page.show_layer(id, layer, 0)
            assert own[1].value is not None


def test_a_word_that_is_loaded_already_is_no_obstacle(page, studio, order):
    list(studio.paint(replace(order, adapters=(("kinds/my-word", 1.0),))))
    heat, *_ = page.open_file("kinds/my-word")  # the pipeline carries the word now
    assert heat.count("<button") > 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_muted_atom_changes_the_picture(page, tiny_base, kind):
    id = f"kinds/my-{kind}"
    layer = page.open_file(id)[2].value
    shown = page.paint_muted(id, layer, "cat", ["0", "1"], EVERYWHERE, 3, 2, lambda *_, **__: None)
    pictures = [np.array(picture) for picture, _ in shown]
    assert [label for _, label in shown] == [
        "base",
        "with the file",
        "without atom 0",
        "without atom 1",
    ]
    base = paint(load_base(str(tiny_base)), ["cat"], [3], num_inference_steps=2)[0]
    assert np.array_equal(pictures[0], np.array(base))
    assert len({p.tobytes() for p in pictures}) == 4
    here = page.paint_muted(id, layer, "cat", ["0"], HERE, 3, 2, lambda *_, **__: None)
    assert not np.array_equal(np.array(here[-1][0]), pictures[2])


def test_mixing_is_exact_and_what_cannot_be_mixed_is_said(page):
    ids = ["kinds/my-atoms", "kinds/my-full"]
    told, *_ = page.save_mix(ids, "both", 0.5, 1.0)
    stem = told.partition(":")[0]
    mixed = sdatoms.read_atoms(page.library.folder / "mixes" / f"{stem}.safetensors")
    assert mixed.sha256 == compose([page.read(id) for id in ids], [0.5, 1.0]).sha256
    for other, words in (("word", "whose embedding no sum"), ("sparse", "sparse")):
        with pytest.raises(Exception, match=words):
            page.save_mix(["kinds/my-atoms", f"kinds/my-{other}"], "x", 1.0, 1.0)


def test_sparse_files_of_the_same_atoms_are_mixed_exactly(page):
    """Another training on the same base starts from the same sparse atoms."""
    first = page.read("kinds/my-sparse")
    mute_atom(first, 0).save(page.library.folder / "kinds" / "my-other.safetensors")
    ids = ["kinds/my-sparse", "kinds/my-other"]
    told, *_ = page.save_mix(ids, "sparse both", 0.5, -1.0)
    mixed = page.read(f"mixes/{told.partition(':')[0]}")
    assert mixed.sha256 == compose([page.read(id) for id in ids], [0.5, -1.0]).sha256
    assert page.open_file("kinds/my-other")[0].count("<button") > 3


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_compared_with_every_other(page, kind):
    table, *_ = page.show_likeness([f"kinds/my-{kind}", "kinds/my-atoms"])
    assert "+1.000" in table


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_exported_or_refused_in_a_sentence(page, kind):
    for form in ("Full difference (LyCORIS)", "Baked pipeline"):
        told, _ = page.export(f"kinds/my-{kind}", form, 4)
        assert "exact" in told
        assert ("word has no place" in told) == (kind == "word" and "Full" in form)
    for form in ("LoRA (diffusers)", "LoRA (kohya)"):
        told, download = page.export(f"kinds/my-{kind}", form, 4)
        assert "of the change lost" in told and download.value
        assert ("word has no place" in told) == (kind == "word")


def test_what_cannot_be_done_is_said_in_one_sentence(page, studio, monkeypatch):
    id, still = "kinds/my-atoms", lambda *_, **__: None
    layer = page.open_file(id)[2].value
    for call, words in (
        (lambda: page.open_file(None), "choose an atom file first"),
        (lambda: page.open_file("<img src=x>"), "'&lt;img src=x&gt;' is listed; refresh"),
        (lambda: page.show_layer(id, "unet.nothing.spatial", None), "nothing"),
        (lambda: page.show_layer(id, None, None), "no "),
        (lambda: page.paint_muted(id, layer, "", ["0"], HERE, 3, 2, still), "the prompt takes"),
        (lambda: page.paint_muted(id, layer, "cat", ["0"], HERE, None, 2, still), "seed is empty"),
        (
            lambda: page.paint_muted(id, layer, "cat", ["0"], HERE, 3, 51, still),
            "goes from 1 to 50",
        ),
        (lambda: page.paint_muted(id, layer, "cat", ["99"], HERE, 3, 2, still), "no atom 99"),
        (lambda: page.save_mix([id], "x", 1.0), "at least two"),
        (lambda: page.save_mix([id, "kinds/my-full"], "x", 1.0, None), "is empty; give a number"),
        (lambda: page.export(id, "Pickle", 4), "is unknown; known are"),
        (lambda: page.export(id, "LoRA (kohya)", None), "the rank is empty"),
    ):
        with pytest.raises(Exception, match=words) as caught:
            call()
        assert isinstance(caught.value, gr.Error) and "\n" not in caught.value.message
    monkeypatch.setattr(exports, "FREE_BYTES", 1 << 60)
    with pytest.raises(gr.Error, match="of the disk are free"):
        page.export(id, "LoRA (kohya)", 4)
    assert sdatoms.AdapterSet(studio.open()).names == ()
