"""The training queue on disk: order, dead processes, and names that are no paths."""

import functools
import json
import os
import subprocess
import sys
import time

import pytest
from PIL import Image
from sdatoms_app.queue.queue import MAX_QUEUED, Queue
from sdatoms_app.queue.worker import (
    choose_environment,
    claim_job,
    hold_lock,
    run_jobs,
    update_job,
)

import sdatoms
from sdatoms.storage import read_table


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A queue whose workers are not started: jobs stay where the test puts them."""
    monkeypatch.setattr("sdatoms_app.queue.queue.wake", lambda root: None)
    return Queue(tmp_path / "runs")


def fill(folder):
    for k in range(2):
        Image.new("RGB", (64, 64), (80 * k, 40, 200)).save(folder / f"{k}.png")


def end_process():
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_jobs_are_claimed_in_the_order_they_came(queue):
    ids = [queue.add(f"job {k}", {}, fill).id for k in range(3)]
    assert [job.id for job in queue.list()] == ids[::-1]
    assert [queue.find(id).place for id in ids] == [0, 1, 2]
    assert [claim_job(queue.root).name for _ in ids] == ids
    assert claim_job(queue.root) is None


def test_a_job_holds_its_own_pictures_and_settings(queue):
    hostile = "../../x; rm -rf $HOME\n"
    job = queue.add(hostile, {"instance_prompt": hostile, "max_train_steps": 7}, fill)
    assert job.path.parent == queue.root and job.id.startswith("x-rm-rf-home-")
    request = json.loads((job.path / "request.json").read_text())
    assert request["instance_prompt"] == hostile and request["output_dir"] == str(job.path)
    assert sorted(p.name for p in (job.path / "instance_images").iterdir()) == ["0.png", "1.png"]
    assert (job.state, job.total) == ("queued", 7)


def test_a_refused_job_leaves_nothing(queue):
    def refuse(folder):
        fill(folder)
        raise sdatoms.AtomError("no")

    with pytest.raises(sdatoms.AtomError, match="no"):
        queue.add("x", {}, refuse)
    assert [p.name for p in queue.root.iterdir()] == []
    for k in range(MAX_QUEUED):
        queue.add(f"{k}", {}, fill)
    with pytest.raises(sdatoms.AtomError, match=f"at most {MAX_QUEUED}"):
        queue.add("one more", {}, fill)


def test_trainings_that_wait_can_be_moved_and_the_list_stays_newest_first(queue):
    a, b, c = (queue.add(name, {}, fill).id for name in "abc")

    def read_order():
        queued = [run for run in queue.list() if run.state == "queued"]
        return [run.id for run in sorted(queued, key=lambda run: run.place)]

    for id, to, order in (
        *((c, "first", [c, a, b]), (c, "up", [c, a, b]), (c, "down", [a, c, b])),
        *((b, "down", [a, c, b]), (b, "up", [a, b, c]), (b, "first", [b, a, c])),
    ):
        queue.move(id, to)
        assert read_order() == order
    assert [run.id for run in queue.list()] == [c, b, a]
    last = queue.add("d", {}, fill).id
    assert read_order() == [b, a, c, last]
    assert [claim_job(queue.root).name for _ in range(4)] == [b, a, c, last]
    for id, to in ((b, "first"), (a, "sideways"), ("../x", "up")):
        with pytest.raises(sdatoms.AtomError):
            queue.move(id, to)


def test_a_training_sees_the_gpu_chosen_for_it(queue, monkeypatch):
    monkeypatch.setattr("sdatoms_app.queue.queue.list_gpus", lambda: ["one", "two"])
    job = queue.add("x", {"max_train_steps": 9}, fill)
    assert "CUDA_DEVICE_ORDER" not in choose_environment(read_table(job.path / "job.json"))
    assert queue.choose_gpu(job.id, 1).gpu == 1
    stored = read_table(job.path / "job.json")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose_environment(stored)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    assert choose_environment(stored)["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    with pytest.raises(sdatoms.AtomError, match="there is no GPU 2"):
        queue.choose_gpu(job.id, 2)
    queue.stop(job.id)
    with pytest.raises(sdatoms.AtomError, match="does not wait"):
        queue.choose_gpu(job.id, 0)
    assert queue.resume(job.id).gpu == 1


def test_every_end_has_its_reason(queue):
    job = queue.add("x", {"max_train_steps": 9}, fill)
    assert job.reason == ""
    assert "taken out of the queue" in queue.stop(job.id).reason
    gone = end_process()
    status = {"pid": gone, "heartbeat": time.time(), "step": 4, "total": 9}

    def end(phase, code, output="", **changes):
        with hold_lock(queue.root):
            update_job(job.path, state="ended", pid=gone, exit_code=code)
        (job.path / "status.json").write_text(json.dumps(status | {"phase": phase} | changes))
        (job.path / "output.txt").write_text(output)
        return queue.find(job.id).reason

    assert end("done", 0, step=9) == "All 9 steps are done."
    assert "no measure was better" in end("done", 0)
    assert "asked to stop and saved step 4" in end("stopped", 130)
    assert "ended by signal 9" in end("training", -9)
    assert end("failed", 2, "bar\nthe disk is full\n") == "It failed at step 4: the disk is full"


def test_a_running_training_is_asked_by_a_file_and_no_other_is(queue):
    job = queue.add("x", {}, fill)
    with pytest.raises(sdatoms.AtomError, match="is not running; it is queued"):
        queue.ask(job.id, "samples")
    claim_job(queue.root)
    words = [sys.executable, "-c", "input()", "train", str(job.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        with hold_lock(queue.root):
            update_job(job.path, pid=process.pid)
        status = {"phase": "training", "pid": process.pid, "heartbeat": time.time()}
        (job.path / "status.json").write_text(json.dumps(status))
        for wish in ("samples", "checkpoint"):
            queue.ask(job.id, wish)
            assert (job.path / f"{wish}.now").is_file()
        with pytest.raises(sdatoms.AtomError):
            queue.ask(job.id, "../x")
        process.communicate(b"\n")
    with pytest.raises(sdatoms.AtomError, match="is not running"):
        queue.ask(job.id, "samples")


def test_a_full_disk_takes_no_training(queue, monkeypatch):
    monkeypatch.setattr("sdatoms_app.queue.queue.FREE_BYTES", 1 << 60)
    with pytest.raises(sdatoms.AtomError, match="of the disk are free"):
        queue.add("x", {}, fill)
    assert queue.list() == []


@pytest.mark.parametrize(
    "id", ["../runs", "/etc", "", ".lock", "con\0", "x" * 300, "Ü", "-rf", ".new-x", None]
)
def test_ids_that_are_not_listed_are_refused(queue, id):
    queue.add("x", {}, fill)
    sample = functools.partial(queue.ask, wish="samples")
    for ask in (queue.find, queue.stop, queue.resume, queue.delete, sample):
        with pytest.raises(sdatoms.AtomError, match="is listed; refresh"):
            ask(id)


def test_links_out_of_the_folder_are_no_runs(queue, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "status.json").write_text("{}")
    queue.root.mkdir()
    (queue.root / "link").symlink_to(outside)
    assert queue.list() == []
    with pytest.raises(sdatoms.AtomError):
        queue.delete("link")
    assert (outside / "status.json").exists()


def test_a_dead_process_is_shown_as_stopped_and_can_go_on(queue):
    job = queue.add("x", {"max_train_steps": 9}, fill)
    claim_job(queue.root)
    gone = end_process()
    with hold_lock(queue.root):
        update_job(job.path, pid=gone)
    status = {"phase": "training", "pid": gone, "heartbeat": time.time(), "step": 4, "total": 9}
    (job.path / "status.json").write_text(json.dumps(status))
    found = queue.find(job.id)
    assert (found.state, found.step, found.live) == ("stopped", 4, False)
    assert "gone" in found.error
    assert queue.resume(job.id).state == "queued"
    request = read_table(job.path / "request.json")
    assert request["resume_from_checkpoint"] == "latest" and request["max_train_steps"] == 9


def test_a_process_that_is_not_the_trainer_is_never_signalled(queue, monkeypatch):
    """Numbers of processes are used again: this test's own process is alive, and not the run's."""
    job = queue.add("x", {}, fill)
    claim_job(queue.root)
    with hold_lock(queue.root):
        update_job(job.path, pid=os.getpid())
    (job.path / "status.json").write_text(json.dumps({"phase": "training", "pid": os.getpid()}))
    signals = []
    monkeypatch.setattr(os, "kill", lambda *args: signals.append(args))
    assert queue.find(job.id).state == "stopped"
    with pytest.raises(sdatoms.AtomError, match="not running"):
        queue.stop(job.id)
    assert not signals


def test_leaving_the_queue_and_deleting(queue):
    first, second = (queue.add(f"{k}", {}, fill) for k in range(2))
    with pytest.raises(sdatoms.AtomError, match="stop it first"):
        queue.delete(first.id)
    assert queue.stop(first.id).state == "stopped"
    assert claim_job(queue.root).name == second.id
    queue.delete(first.id)
    assert [job.id for job in queue.list()] == [second.id]
    assert not first.path.exists()


@pytest.mark.parametrize("steps", [-1, 0, 10**9, 10**400, 0.5, 2.0, True, "5", None, float("nan")])
def test_extending_takes_some_whole_steps(queue, steps):
    job = queue.add("x", {"max_train_steps": 5}, fill)
    queue.stop(job.id)
    (job.path / "status.json").write_text(json.dumps({"phase": "done", "pid": 1}))
    with hold_lock(queue.root):
        update_job(job.path, state="ended", pid=1, exit_code=0)
    assert queue.find(job.id).state == "done"
    before = [(path, path.read_bytes()) for path in sorted(job.path.glob("*.json"))]
    with pytest.raises(sdatoms.AtomError, match="steps"):
        queue.extend(job.id, steps)
    assert before == [(path, path.read_bytes()) for path in sorted(job.path.glob("*.json"))]
    assert queue.extend(job.id, 2).total == 7


def test_a_run_that_cannot_be_begun_does_not_hold_up_the_next(queue):
    first, second = (queue.add(f"{k}", {}, fill) for k in range(2))
    (first.path / "output.txt").mkdir()  # what the trainer prints goes there
    queue.stop(second.id)
    run_jobs(queue.root)
    assert [run.state for run in queue.list()] == ["stopped", "failed"]


def test_a_damaged_gpu_leaves_the_choice_to_the_trainer(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    for gpu in (-1, -5, True, "0", 0.0, None, [0]):
        assert choose_environment({"gpu": gpu})["CUDA_VISIBLE_DEVICES"] == "4"
