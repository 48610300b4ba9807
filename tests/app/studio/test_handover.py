"""One device for two: handed to a training and taken back, adapters and all, under every policy.

The device is the processor under two names, "cpu" and "cpu:0", so that moving is real and needs no
GPU.
"""

import threading
from dataclasses import replace

import numpy as np
import pytest
from sdatoms_app.studio.handover import Handover, watch
from sdatoms_app.studio.library import Library
from sdatoms_app.studio.painting import Job
from sdatoms_app.studio.studio import Studio
from tiny.app import read_pixels
from tiny.limits import HANG
from tiny.modules import copy_weights, same_weights

from sdatoms import AdapterSet
from sdatoms.diffusion.placement import OFFLOADS


class Trainings:
    """Which training is under way; changed by the test."""

    running = None

    def __call__(self):
        return self.running


@pytest.fixture
def make_studio(tiny_base, adapters_dir, tmp_path, one_thread):
    def make(policy, **opening):
        trainings = Trainings()
        handover = Handover(policy, trainings, home="cpu", refuge="cpu:0")
        library = Library(adapters_dir)
        outputs = tmp_path / policy
        studio = Studio(str(tiny_base), library, outputs, opening=opening, handover=handover)
        return studio, trainings

    return make


def draw(studio, order):
    return read_pixels(next(iter(studio.paint(order))).path)


MIX = (("dog", {"*": 0.5, "mid": 0.0}), ("ink", -0.7))


@pytest.mark.parametrize("offload", OFFLOADS[1:])
def test_nothing_is_lost_on_the_way_there_and_back(make_studio, order, offload):
    studio, trainings = make_studio("cpu", offload=offload)
    plain, mixed = draw(studio, order), draw(studio, replace(order, adapters=MIX))
    pipe = studio._pipe
    strengths = AdapterSet(pipe).strengths
    for id in ("dog-1", None, "dog-2", None):
        trainings.running = id
        assert studio.hand_over() and studio.handover.away == (id is not None)
        assert studio._pipe is pipe and AdapterSet(pipe).strengths == strengths
        assert np.array_equal(draw(studio, replace(order, adapters=MIX)), mixed)
        assert AdapterSet(pipe).verify_base()
    trainings.running = "dog-3"
    assert np.array_equal(draw(studio, order), plain) and studio.handover.away
    assert AdapterSet(pipe).names == () and AdapterSet(pipe).verify_base()


def test_a_picture_waits_for_the_training_and_can_be_cancelled(make_studio, order):
    studio, trainings = make_studio("wait")
    plain = draw(studio, order)
    trainings.running = "dog-1"
    assert studio.hand_over() and studio.handover.away
    kept, waits = [], threading.Event()

    def work(job):
        tell = job.tell

        def listen(**changes):
            tell(**changes)
            if "dog-1" in changes.get("message", ""):
                waits.set()

        job.tell = listen
        kept.extend(studio.paint(order, job))

    cancelled = Job(work).start()
    assert waits.wait(HANG) and not studio.lock.locked()
    cancelled.cancel()
    list(cancelled.watch())
    assert cancelled.cancelled and not kept
    waits.clear()
    job = Job(work).start()
    assert waits.wait(HANG) and not kept
    trainings.running = None
    list(job.watch())
    assert np.array_equal(read_pixels(kept[0].path), plain)
    assert not studio.handover.away and not studio.lock.locked()


def test_a_base_opened_meanwhile_is_opened_anew_afterwards(make_studio, order):
    studio, trainings = make_studio("cpu")
    trainings.running = "dog-1"
    plain = draw(studio, order)
    shadow = studio._pipe
    assert studio.handover.away
    trainings.running = None
    assert np.array_equal(draw(studio, order), plain)
    assert studio._pipe is not shadow and not studio.handover.away


def test_sharing_moves_nothing_and_without_a_gpu_there_is_nothing_to_move(make_studio, order):
    studio, trainings = make_studio("share")
    draw(studio, order)
    trainings.running = "dog-1"
    assert studio.hand_over() and not studio.handover.away and not studio.handover.describe()
    draw(studio, order)
    for policy in ("wait", "cpu"):
        assert not Handover(policy, trainings, home="cpu").wanted
        assert not Handover(policy, trainings, home="cuda", shared="cuda:1").wanted
        assert Handover(policy, trainings, home="cuda").wanted


def test_a_busy_pipeline_is_handed_over_when_its_picture_is_done(make_studio, order):
    studio, trainings = make_studio("wait")
    pictures = studio.paint(replace(order, batch=2))
    next(pictures)
    trainings.running = "dog-1"
    assert not studio.hand_over() and not studio.handover.away
    assert len(list(pictures)) == 1
    stopped = threading.Event()

    def hand_over():
        done = studio.hand_over()
        stopped.set()
        return done

    thread = threading.Thread(target=watch, args=(hand_over, stopped), daemon=True)
    thread.start()
    thread.join(HANG)
    assert studio.handover.away


def test_a_measurement_borrows_the_device_too(make_studio, order):
    studio, _ = make_studio("wait")
    draw(studio, order)
    weights = copy_weights(studio._pipe.unet)
    with studio.lend("the measuring of settings"):
        assert studio.handover.away
        assert studio.handover.describe().startswith("The measuring of settings has the cpu; ")
    assert studio.hand_over() and not studio.handover.away
    assert same_weights(studio._pipe.unet, weights)


def test_words_say_who_has_the_device():
    for policy, end in (("wait", "pictures wait for its end"), ("cpu", "on the processor")):
        handover = Handover(policy, lambda: "dog-1", home="cuda")
        assert handover.describe().startswith("The training dog-1 has the GPU; ")
        assert handover.describe().endswith(end)
