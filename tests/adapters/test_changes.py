"""What a file would change is computed beside the user's model, which nobody writes to."""

import pytest
import torch
from tiny.atoms import VARIANTS, measure_deltas
from torch import nn

import sdatoms
from sdatoms import AtomConfig, AtomError, inject, load_atoms, read_atoms
from sdatoms.adapters.changes import measure_changes
from sdatoms.adapters.export import convert_to_diff, convert_to_lora, measure_diff, measure_lora
from sdatoms.adapters.load import AdapterSet
from sdatoms.adapters.state import find_state
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")

LOOKS = {
    "measure_changes": measure_changes,
    "convert_to_diff": convert_to_diff,
    "measure_diff": measure_diff,
    "convert_to_lora": lambda file, model: convert_to_lora(file, model, 2),
    "measure_lora": lambda file, model: measure_lora(file, model, 2),
}
CONFIGS = {
    "linear": {"variant": "full"},
    "sparse": {"variant": "full", "decomposition": "sparse"},
}


def photograph(model):
    """All that could be written to in a model: tables, hooks, bits, and the counts of writes."""
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [(name, id(module), sorted(vars(module))) for name, module in model.named_modules()],
        [
            (name, {key: id(hook) for key, hook in table.items()})
            for module in model.modules()
            for name, table in vars(module).items()
            if name.endswith("_hooks")
        ],
        [(id(t), t._version, t.data_ptr(), t.dtype, t.requires_grad) for t in tensors],
        [t.detach().clone() for t in tensors],
        AdapterSet(model).names,
        AdapterSet(model).strengths,
        [
            (path, id(layer), layer.current)
            for path, layer in getattr(find_state(model), "layers", {}).items()
            if hasattr(layer, "current")
        ],
    )


def assert_same(before, after):
    for one, other in zip(before, after, strict=True):
        if isinstance(one, list) and one and isinstance(one[0], torch.Tensor):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        else:
            assert one == other


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("look", LOOKS)
def test_looking_touches_nothing(make_unet, make_file, look, config, loaded):
    file, unet = read_atoms(make_file(**CONFIGS[config])), make_unet()
    expected = LOOKS[look](file, make_unet())
    if loaded:
        load_atoms(unet, make_file("style", seed=4, variant="atoms"), strength=0.7)
        load_atoms(unet, file, name="same", strength=-2.0)
    before = photograph(unet)
    found = LOOKS[look](file, unet)
    assert_same(before, photograph(unet))
    if look.startswith("convert"):
        assert found.errors == expected.errors
        assert all(torch.equal(found.tensors[k], t) for k, t in expected.tensors.items())
    else:
        assert found == expected


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("look", LOOKS)
def test_looking_at_quantized_layers_touches_nothing(perturb, look, loaded):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(bnb.nn.Linear4bit(128, 64, quant_type="nf4")).to("cpu")

    # Other tools have names for the components of pipelines only.
    config = AtomConfig("coefficients", block_size=4)
    file = pack_atoms({"unet": perturb(inject(make(), config), 0.1)})
    model = make()
    expected = measure_changes(file, make())
    if loaded:
        load_atoms(model, file, name="same", strength=0.5)
    before = photograph(model)
    LOOKS[look](file, model)
    assert_same(before, photograph(model))
    assert measure_changes(file, model) == expected


def test_a_look_is_the_delta_of_what_is_loaded(make_unet, make_file):
    file, unet = read_atoms(make_file(variant="full")), make_unet()
    rows = {row.path: row.change for row in measure_changes(file, unet)}
    diffs = convert_to_diff(file, unet).tensors
    adapters = load_atoms(unet, file, name="dog", strength=0.0)
    for path, change in rows.items():
        delta = adapters.delta("dog", path)
        assert torch.equal(delta, diffs[f"lora_unet_{path.replace('.', '_')}.diff"])
        norm = unet.get_submodule(path).weight.detach().norm()
        assert change == pytest.approx(float(delta.norm() / norm), rel=1e-5)


def test_a_file_that_does_not_fit_is_refused_before_any_delta(make_unet, make_convnet, perturb):
    file = pack_atoms({"unet": perturb(inject(make_convnet(), AtomConfig("atoms")), 0.1)})
    unet = make_unet()
    before = photograph(unet)
    for look in LOOKS.values():
        with pytest.raises(AtomError, match="has no layer"):
            look(file, unet)
    assert_same(before, photograph(unet))


@pytest.mark.parametrize("variant", VARIANTS)
def test_changes_are_those_of_the_deltas(make_unet, make_file, variant):
    file, unet = sdatoms.read_atoms(make_file(variant=variant)), make_unet()
    rows = measure_changes(file, unet)
    found = measure_deltas(file, unet)
    assert {row.path for row in rows} == set(found)
    for row in rows:
        expected = found[row.path].norm() / unet.get_submodule(row.path).weight.detach().norm()
        assert row.change == pytest.approx(float(expected), rel=1e-4)
        assert row.block in ("down", "mid", "up")
    assert sum(row.parameters for row in rows) == file.num_parameters


def test_changes_do_not_see_adapters_that_are_baked_in(make_unet, make_file):
    file, unet = sdatoms.read_atoms(make_file(variant="atoms")), make_unet()
    before = measure_changes(file, unet)
    sdatoms.load_atoms(unet, file, name="x", strength=3.0)
    assert measure_changes(file, unet) == before
