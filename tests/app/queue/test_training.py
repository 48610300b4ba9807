"""A run's files may be damaged, cut short or gone: it is shown as well as it can be, and never
hides the others."""

import json
import math
import shutil
import time

import pytest
from PIL import Image
from sdatoms_app.queue.queue import Queue
from sdatoms_app.queue.training import read_training
from sdatoms_app.runs.api import summarize
from sdatoms_app.runs.view import describe_training, list_runs

import sdatoms

JOB = {"title": "bad", "state": "started", "order": 5, "rank": 5, "pid": 2**29, "gpu": 0}
JOB |= {"worker": 2**29, "exit_code": 1, "stop_requested": True}
STATUS = {"phase": "training", "pid": 2**29, "heartbeat": 1e9, "step": 3, "total": 9, "eta_s": 5.0}
ODD = (
    *(None, True, "x", "\ud800", "", [], [1], {}, {"a": 1}, -1, 0, 1.5, 10**18, 10**400),
    *(math.nan, math.inf, -math.inf, 1e300),
)
DAMAGED = (b"", b"\xff\xfe\x00", b"[]", b"5", b"null", b"{", b'{"step": 1', b"[" * 100_000)
STATES = ("queued", "starting", "running", "done", "stopped", "failed")


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A queue with one sound run that ended, and a damaged one; no worker is started."""
    monkeypatch.setattr("sdatoms_app.queue.queue.wake", lambda root: None)
    queue = Queue(tmp_path / "runs")
    write(queue, "good", JOB | {"state": "ended", "exit_code": 0}, STATUS | {"phase": "done"})
    write(queue, "bad", JOB, STATUS)
    return queue


def write(queue, name, job, status):
    run = queue.root / name
    run.mkdir(parents=True, exist_ok=True)
    for file, value in (("job.json", job), ("status.json", status)):
        if value is None:
            (run / file).unlink(missing_ok=True)
        else:
            (run / file).write_bytes(
                value if isinstance(value, bytes) else json.dumps(value).encode()
            )


def check_listed(queue):
    """Both runs are listed, and shown on the page and to programs; returns the damaged one."""
    found = {training.id: training for training in queue.list()}
    assert set(found) == {"good", "bad"} and found["good"].state == "done"
    bad = found["bad"]
    assert bad.state in STATES and isinstance(bad.order, int)
    assert 0 <= bad.step <= 10**9 and 0 <= bad.total <= 10**9
    json.dumps(summarize(bad), allow_nan=False, ensure_ascii=False).encode()
    describe_training(bad, None).encode()
    assert len(list_runs(queue)) == 2
    assert queue.find("bad") == bad and queue.find_running() is None
    return bad


@pytest.mark.parametrize("key", [*(f"job {key}" for key in JOB), *(f"status {k}" for k in STATUS)])
def test_an_entry_of_a_wrong_kind_counts_as_missing(queue, key):
    file, _, name = key.partition(" ")
    for value in ODD:
        job = JOB | ({name: value} if file == "job" else {})
        status = STATUS | ({name: value} if file == "status" else {})
        write(queue, "bad", job, status)
        check_listed(queue)
    for job, status in ((JOB, STATUS), (JOB, None), (None, STATUS)):
        lacking = [
            table and {k: v for k, v in table.items() if k != name} for table in (job, status)
        ]
        write(queue, "bad", *lacking)
        check_listed(queue)


@pytest.mark.parametrize("job", [*DAMAGED, None, JOB])
def test_a_file_of_another_form_counts_as_missing(queue, job):
    for status in (*DAMAGED, STATUS, *([None] if job is not None else [])):
        write(queue, "bad", job, status)
        check_listed(queue)


def test_of_a_run_whose_files_say_nothing_no_more_is_said(queue):
    write(queue, "bad", {"title": "bad"}, None)
    bad = check_listed(queue)
    assert bad.reason.startswith("It ended at step 0, its files do not say how;")
    assert (bad.title, bad.state, bad.step) == ("bad", "stopped", 0)


@pytest.mark.parametrize("request_file", [b"\xff", b"5", b'{"max_train_steps": NaN}', b"{}"])
def test_a_damaged_request_leaves_the_steps_to_the_status(queue, request_file):
    (queue.root / "bad" / "request.json").write_bytes(request_file)
    assert check_listed(queue).total == 9


@pytest.mark.parametrize("value", ODD)
def test_a_damaged_run_holds_up_nobody(queue, value):
    """Others are queued beside it, and it can itself go on or be deleted."""
    fill = lambda folder: Image.new("RGB", (8, 8)).save(folder / "a.png")
    write(
        queue, "bad", {**dict.fromkeys(JOB, value), "state": "ended"}, dict.fromkeys(STATUS, value)
    )
    added = queue.add("new", {"max_train_steps": 5}, fill)
    assert added.state == "queued" and queue.list()[0].id == added.id
    (queue.root / "bad" / "request.json").write_text(json.dumps({"max_train_steps": value}))
    for ask in (queue.resume, lambda id: queue.extend(id, 4), queue.stop, queue.delete):
        try:
            ask("bad")
        except sdatoms.AtomError as error:
            assert len(str(error)) < 200
    assert "good" in {training.id for training in queue.list()}


def test_a_run_that_is_deleted_while_it_is_read_is_left_out(queue, monkeypatch):
    def vanish():
        shutil.rmtree(queue.root / "bad", ignore_errors=True)
        return 2e9

    write(queue, "bad", {"title": "bad"}, STATUS)
    monkeypatch.setattr(time, "time", vanish)  # asked for where a heartbeat was read
    assert [training.id for training in queue.list()] == ["good"]
    with pytest.raises(OSError, match="bad"):
        read_training(queue.root / "bad")


def test_of_what_a_trainer_printed_no_folder_is_shown(queue):
    (queue.root / "bad" / "output.txt").write_text("no room for '/home/me/x.safetensors'\n")
    write(queue, "bad", JOB | {"state": "ended"}, STATUS | {"phase": "failed"})
    bad = check_listed(queue)
    assert bad.reason == "It failed at step 3: no room for 'x.safetensors'"
    assert "/home/me" not in bad.error
