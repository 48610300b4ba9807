"""Threads that change adapters of modules they share: as if one had come after the other."""

import copy
import pickle
import random
import threading
from types import SimpleNamespace

import pytest
import torch

from sdatoms import AdapterSet, AtomError, load_atoms

pytestmark = pytest.mark.usefixtures("one_thread")
TURNS = 12


def run_together(*works):
    """Run every work in a thread of its own, from one moment on; returns what they raised."""
    gate, raised = threading.Barrier(len(works)), []

    def run(work):
        gate.wait()
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def copy_weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model, weights):
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("threads", [2, 6])
def test_strengths_set_from_threads_leave_a_model_that_clears(make_convnet, make_atoms, threads):
    model = make_convnet()
    before = copy_weights(model)
    adapters = load_atoms(model, make_atoms(), name="a")

    def work(start):
        for turn in range(TURNS):
            AdapterSet(model).set_strengths({"a": start + turn / 100})

    assert run_together(*(lambda k=k: work(k / threads) for k in range(threads))) == []
    assert 0 <= adapters.strengths["a"] < 1 + TURNS / 100
    assert adapters.verify_base()
    adapters.clear()
    assert_same(model, before)


@pytest.mark.parametrize("seed", range(6))
def test_any_calls_from_threads_end_as_some_order_of_them_would(make_convnet, make_atoms, seed):
    """Loads, strengths, removals, looks and clearings at once: at the end the weights are those of
    the adapters that are left, and clearing gives the base back bit for bit."""
    model, files = make_convnet(), [make_atoms(seed=k) for k in range(3)]
    before = copy_weights(model)

    def call(adapters, dice):
        name = f"a{dice.randrange(3)}"
        calls = (
            lambda: adapters.load(files[int(name[1])], name=name),
            lambda: adapters.set_strengths({name: dice.uniform(-1, 2)}),
            lambda: adapters.remove(name),
            lambda: adapters.delta(name, "stem"),
            lambda: (adapters.names, adapters.strengths, repr(adapters)),
            adapters.verify_base,
            adapters.clear,
        )
        try:
            dice.choice(calls)()
        except AtomError as error:  # another thread was first; nothing else may be raised
            assert "is already loaded" in str(error) or "no adapter is named" in str(error)

    def work(dice):
        for _ in range(TURNS):
            call(AdapterSet(model), dice)

    dices = [random.Random(10 * seed + k) for k in range(3)]
    assert run_together(*(lambda d=d: work(d) for d in dices)) == []
    left, again = AdapterSet(model), make_convnet()
    assert left.verify_base()
    for name, strength in left.strengths.items():
        load_atoms(again, files[int(name[1])], name=name, strength=strength)
    assert_same(model, copy_weights(again))
    left.clear()
    assert_same(model, before)


def test_pipelines_that_share_modules_in_any_order_never_wait_for_each_other(
    make_convnet, make_atoms
):
    first, second = make_convnet(), make_convnet(1)
    there = SimpleNamespace(components={"model": first, "other": second})
    back = SimpleNamespace(components={"other": second, "model": first})
    adapters = load_atoms(there, make_atoms(), name="a")

    def work(pipe):
        for turn in range(TURNS):
            AdapterSet(pipe).set_strengths({"a": turn / TURNS})

    assert run_together(lambda: work(there), lambda: work(back)) == []
    assert adapters.strengths == {"a": (TURNS - 1) / TURNS}


def test_a_model_that_was_changed_can_still_be_copied_and_saved(make_convnet, make_atoms):
    model = make_convnet()
    adapters = load_atoms(model, make_atoms(), name="a")
    twin = copy.deepcopy(model)
    assert_same(twin, copy_weights(model))
    assert AdapterSet(twin).names == ("a",)
    adapters.clear()
    assert len(pickle.dumps(model.state_dict())) > 0
    assert AdapterSet(twin).names == ("a",)
    AdapterSet(twin).clear()
    assert_same(twin, copy_weights(model))
