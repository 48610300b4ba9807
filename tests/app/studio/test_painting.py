"""Work in a thread of its own: its newest word, its end, and who may cancel it."""

import threading
from dataclasses import replace

import pytest
from sdatoms_app.studio.painting import Cancelled, Desk, Job
from tiny.limits import HANG

from sdatoms import AtomError


def test_a_waiting_job_can_be_cancelled_and_an_error_is_raised_to_the_watcher(studio, order):
    desk = Desk()
    with studio.lock:
        job = desk.start("me", lambda job: list(studio.paint(order, job)))
        assert next(iter(job.watch())).message in ("waiting", "waiting for the pictures before")
        assert desk.cancel("you") is False
        assert desk.cancel("me") is True
        assert list(job.watch())[-1].done == 0 and job.cancelled
    failing = desk.start("me", lambda job: list(studio.paint(replace(order, prompt=""), job)))
    with pytest.raises(AtomError, match="the prompt is empty"):
        list(failing.watch())


def test_cancel_reaches_every_job_under_its_key_and_no_other():
    desk = Desk()

    def wait(job):
        while True:
            job.check()

    jobs = [desk.start(key, wait) for key in ("me", "me", "you")]
    assert desk.cancel("me") and not desk.cancel("me")
    for job in jobs[:2]:
        list(job.watch())
    assert [job.cancelled for job in jobs] == [True, True, False]
    assert desk.cancel("you")
    list(jobs[2].watch())
    with pytest.raises(Cancelled):
        jobs[2].check()


def test_the_newest_preview_wins_and_whoever_leaves_cancels():
    told, seen = threading.Event(), threading.Event()

    def work(job):
        for number in range(1000):
            job.tell(done=number, message="a")
        told.set()
        seen.wait(HANG)
        while True:
            job.check()

    job = Job(work).start()
    told.wait(HANG)
    watcher = job.watch()
    assert next(watcher).done == 999
    seen.set()
    watcher.close()
    assert job.cancelled
