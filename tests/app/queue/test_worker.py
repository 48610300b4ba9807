"""Trainings in processes of their own: one after the other, longer than their server."""

import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from sdatoms_app.app import find_port
from sdatoms_app.queue.queue import Queue
from sdatoms_app.runs.files import (
    read_curves,
)
from sdatoms_app.studio.library import Library
from sdatoms_app.studio.studio import Studio
from tiny.app import connect
from tiny.limits import wait_for
from tiny.pictures import draw
from tiny.pipelines import save_base

import sdatoms
from sdatoms import AtomError

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings


def fill(folder):
    for k in range(2):
        Image.new("RGB", (64, 64), (80 * k, 40, 200)).save(folder / f"{k}.png")


def test_a_worker_that_waits_is_small():
    code = (
        "import sys, sdatoms_app.queue.worker\n"
        "assert not {'torch', 'numpy', 'PIL', 'gradio'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def stop_twice(queue, id):
    """Stop a training, and again as impatient people do; returns it once it has ended."""
    queue.stop(id)
    try:
        again = queue.stop(id)
        assert again.stopping or again.state == "stopped"
    except AtomError as error:  # it has ended by now
        assert str(error).endswith("is not running; it is stopped")
    ended = lambda: (j := queue.find(id)).state not in ("running", "starting") and j
    return wait_for(ended)


def test_two_trainings_one_after_the_other(tmp_path):
    """Queue two, stop the first as soon as its process stands, let the second end; stop the first
    again after a class picture; extend the second, delete it: real processes."""
    queue = Queue(tmp_path / "runs")
    settings = {
        "instance_prompt": "sks",
        "pretrained_model_name_or_path": str(save_base(tmp_path / "base")),
        "validation_steps": 0,
        "lr_warmup_steps": 0,
        "max_train_steps": 2,
    }
    classes = {
        "with_prior_preservation": True,
        "class_prompt": "cat",
        "num_class_images": 2000,
        "sample_batch_size": 1,
    }
    first = queue.add("long", settings | classes, fill)
    second = queue.add("short", settings, fill)
    count = lambda: len(list((first.path / "class_images").glob("*.png")))
    running = wait_for(lambda: (j := queue.find(first.id)).pid and j)
    assert running.state in ("running", "starting") and running.pid != os.getpid()
    assert os.getsid(running.pid) != os.getsid(0)
    assert (queue.find(second.id).state, queue.find(second.id).place) == ("queued", 1)
    stopped = stop_twice(queue, first.id)
    assert (stopped.state, stopped.error) == ("stopped", "")

    done = wait_for(lambda: (j := queue.find(second.id)).state == "done" and j)
    assert sdatoms.read_atoms(done.atoms).num_parameters > 0

    kept = count()
    queue.resume(first.id)
    wait_for(lambda: queue.find(first.id).state == "failed" or count() > kept)
    queue.resume(second.id, 2)
    assert queue.find(second.id).state == "queued"
    stopped = stop_twice(queue, first.id)
    assert (stopped.state, stopped.error) == ("stopped", "")
    assert kept < count() < 2000 and not list(first.path.glob("checkpoints/*"))

    wait_for(lambda: (j := queue.find(second.id)).state == "done" and j.step == 4)
    assert read_curves(second.path).steps == [1, 2, 3, 4]
    queue.delete(second.id)
    assert [job.id for job in queue.list()] == [first.id]


def test_a_trainers_refusal_is_shown(tmp_path):
    queue = Queue(tmp_path / "runs")
    settings = {"instance_prompt": "a dog", "pretrained_model_name_or_path": str(tmp_path)}
    job = queue.add("x", settings, fill)
    failed = wait_for(lambda: (j := queue.find(job.id)).state == "failed" and j)
    assert "is no diffusers pipeline" in failed.error


def test_a_training_outlives_the_server_that_started_it(serve, tiny_base, tmp_path):
    """A folder the operator listed is trained on; the server is killed with all its processes;
    another server finds the training at work and stops it."""
    (tmp_path / "photos" / "rex").mkdir(parents=True)
    draw(tmp_path / "photos" / "rex" / "a.png")
    port = find_port()
    command = [sys.executable, "-m", "sdatoms", "ui", "--port", str(port), "--offline"]
    command += ["--pretrained_model_name_or_path", str(tiny_base)]
    command += ["--adapters-dir", str(tmp_path / "atoms"), "--outputs-dir", str(tmp_path / "out")]
    command += ["--pictures-dir", str(tmp_path / "photos")]
    with (tmp_path / "server.txt").open("wb") as output:
        server = subprocess.Popen(command, start_new_session=True, stdout=output, stderr=output)
    try:
        wait_for(lambda: b"Running on" in (tmp_path / "server.txt").read_bytes())
        client = connect(f"http://127.0.0.1:{port}")
        assert "photos/rex" in client.predict(api_name="/list_folders")
        settings = {"max_train_steps": 20_000, "validation_steps": 0}
        given = ("photos/rex", "a sks dog", "Quick", settings)
        run = client.predict(*given, api_name="/train")["id"]
        queue = Queue(tmp_path / "atoms" / "runs")
        wait_for(lambda: (j := queue.find(run)).step >= 1 or j.state == "failed")
        assert not queue.find(run).error
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    before = queue.find(run).step
    wait_for(lambda: queue.find(run).step > before + 1)
    fresh = Studio(str(tiny_base), Library(tmp_path / "atoms"), tmp_path / "out")
    other = connect(serve(fresh))
    assert other.predict(run, api_name="/get_training")["state"] == "running"
    other.predict(run, api_name="/stop_training")
    wait_for(lambda: queue.find(run).state == "stopped")
    assert queue.find(run).error == "" and any((queue.root / run / "checkpoints").iterdir())
    other.close()
