"""Strengths over the steps: a schedule of one number is that strength, and nothing stays behind."""

import numpy as np
import pytest
import torch
from tiny.modules import copy_weights, same_weights
from tiny.pipelines import build_pipeline

from sdatoms import AdapterSet, AtomConfig, AtomError, inject, load_atoms, load_base
from sdatoms.adapters import load as load_module
from sdatoms.adapters.scheduled import follow_schedules
from sdatoms.atoms.schedules import parse_schedule
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.placement import OFFLOADS
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 5


@pytest.fixture(scope="module")
def files(tiny_pipeline):
    """Atoms of UNet and text encoder, and of the UNet alone."""
    from tiny.atoms import perturb

    pipe = build_pipeline()
    text = AtomConfig(variant="coefficients", block_size=4)
    both = {
        "unet": perturb(inject(pipe.unet, AtomConfig()), 0.1),
        "text_encoder": perturb(inject(pipe.text_encoder, text), 0.1),
    }
    first = pack_atoms(both)
    for injection in both.values():
        injection.eject()
    second = pack_atoms({"unet": perturb(inject(pipe.unet, AtomConfig("full")), 0.1, 1)})
    return first, second


@pytest.fixture
def pipe():
    return build_pipeline()


def draw(pipe, *, callback=None, **schedules):
    read = {name: parse_schedule(text) for name, text in schedules.items()}
    picture = paint(
        pipe, ["cat"], [1], num_inference_steps=STEPS, strength_schedules=read, callback=callback
    )
    return np.asarray(picture[0])


def copy_all(pipe):
    return [copy_weights(pipe.unet), copy_weights(pipe.text_encoder)]


def same_all(pipe, before):
    return same_weights(pipe.unet, before[0]) and same_weights(pipe.text_encoder, before[1])


STRENGTHS = [0.8, {"down": 0.4, "up.0": 1.5}, {"*": 0.5, "*resnets*": -1.0, "text_encoder": 0.1}]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_constant_schedule_is_the_plain_strength_to_the_bit(pipe, files, strength):
    adapters = load_atoms(pipe, files[0], name="a", strength=strength)
    adapters.load(files[0], name="twin", strength=-0.3)
    adapters.load(files[1], name="b", strength=0.7)
    scheduled = draw(pipe, a="0.3", b="1")
    assert adapters.strengths == {"a": strength, "twin": -0.3, "b": 0.7}
    plain = (
        {"*": 0.3, **{k: v * 0.3 for k, v in strength.items()}}
        if isinstance(strength, dict)
        else strength * 0.3
    )
    adapters.set_strengths({"a": plain})
    assert np.array_equal(draw(pipe), scheduled)


def test_a_schedule_of_zeros_is_the_base_to_the_bit(pipe, files):
    base, before = draw(pipe), copy_all(pipe)
    adapters = load_atoms(pipe, files[0], name="a")
    assert not np.array_equal(draw(pipe), base)
    assert np.array_equal(draw(pipe, a="0"), base)
    assert np.array_equal(draw(pipe, a="0 until 0.5, then 0"), base)
    adapters.clear()
    assert same_all(pipe, before)


def test_every_step_has_its_own_strength_and_only_changes_are_baked(pipe, files, monkeypatch):
    load_atoms(pipe, files[1], name="a", strength=0.5).load(files[0], name="b")
    baked, seen = [], []
    rebake = load_module.rebake

    def count(root, state, paths):
        baked.append(len(paths))
        return rebake(root, state, paths)

    monkeypatch.setattr(load_module, "rebake", count)
    (state,) = [s for _, s in AdapterSet(pipe)._states().values() if "a" in s.adapters]
    hook = pipe.unet.register_forward_pre_hook(
        lambda *_: seen.append((state.adapters["a"].present, sum(baked)))
    )
    draw(pipe, a="0 until 0.4, then 0.5 until 0.8, then 1", b="1")
    hook.remove()
    strengths, counts = zip(*seen, strict=True)
    assert strengths == (0.0, 0.0, 0.25, 0.25, 0.5)
    layers = counts[0]
    assert layers and counts == (layers, layers, 2 * layers, 2 * layers, 3 * layers)


def test_the_prompt_is_read_at_the_peak(pipe, files):
    adapters = load_atoms(pipe, files[0], name="a", strength=0.5)
    before = copy_all(pipe)
    late = parse_schedule("0 until 0.6, then 1")
    with follow_schedules(pipe, {"a": late}):
        assert same_weights(pipe.text_encoder, before[1])
        adapters.set_strengths({"a": {"unet": 0.5, "text_encoder": 0.0}})
    adapters.set_strengths({"a": 0.5})
    assert same_all(pipe, before)


class Halt(Exception):
    pass


@pytest.mark.parametrize("stop", [Halt, KeyboardInterrupt])
@pytest.mark.parametrize("when", [1, 3, STEPS])
def test_a_stop_in_the_middle_leaves_the_strengths_as_they_were(pipe, files, stop, when):
    adapters = load_atoms(pipe, files[0], name="a", strength={"down": 0.4, "*conv1": 0.2})
    adapters.load(files[1], name="b", strength=2.0)
    before, strengths = copy_all(pipe), adapters.strengths

    def halt(done, total):
        if done == when:
            raise stop

    with pytest.raises(stop):
        draw(pipe, a="0 to 1 until 0.6, then 0", b="1 until 0.5, then 0", callback=halt)
    assert same_all(pipe, before) and adapters.strengths == strengths
    assert adapters.verify_base()


def test_a_schedule_of_no_adapter_is_refused(pipe, files):
    load_atoms(pipe, files[1], name="b")
    before = copy_all(pipe)
    with pytest.raises(AtomError, match="schedule for 'a', and no such adapter; loaded are b"):
        draw(pipe, a="1")
    assert same_all(pipe, before)


@pytest.mark.parametrize("offload", OFFLOADS[1:])
def test_schedules_are_the_same_under_every_offload(tiny_pipeline, files, offload):
    def make(mode):
        pipe = load_base(str(tiny_pipeline("sd")), device="cpu", offload=mode)
        load_atoms(pipe, files[0], name="a", strength=0.9).load(files[1], name="b")
        return pipe

    words = {"a": "0 until 0.3, then 1", "b": "1 to 0 until 0.7, then 0.5"}
    plain, pipe = make("none"), make(offload)
    expected = draw(plain, **words)
    assert np.array_equal(draw(pipe, **words), expected)
    assert np.array_equal(draw(pipe), draw(plain))
    AdapterSet(pipe).clear()
    AdapterSet(plain).clear()
    assert np.array_equal(draw(pipe), draw(plain))
    assert not np.array_equal(draw(plain), expected)


def test_diffusers_own_call_takes_the_callback(pipe, files):
    load_atoms(pipe, files[1], name="b", strength=0.7)
    expected = draw(pipe, b="0 until 0.4, then 1")
    with follow_schedules(pipe, {"b": parse_schedule("0 until 0.4, then 1")}) as follow:
        picture = pipe(
            "cat",
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(1)],
            callback_on_step_end=follow,
        ).images[0]
    assert np.array_equal(np.asarray(picture), expected)
