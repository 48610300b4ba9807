"""Trainings over HTTP: queued, stopped, resumed, extended, deleted, and refused."""

import pytest
from gradio_client import handle_file
from sdatoms_app.queue.worker import write_json
from sdatoms_app.train.form import read_preset
from sdatoms_app.train.measure import make_key
from sdatoms_app.train.page import TrainPage
from tiny.limits import wait_for

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings


def test_trainings_over_http(client, studio, pictures):
    """Uploads are trained on, the run is extended and deleted; a cost once measured is known."""

    def wait(run, *states):
        def look():
            now = client.predict(run, api_name="/get_training")
            return now if now["state"] in states else None

        return wait_for(look)

    settings = {"max_train_steps": 1, "validation_steps": 0}
    files = [handle_file(path) for path in pictures[:2]]
    run = client.predict(files, "a sks dog", "Quick", settings, api_name="/train_pictures")["id"]
    done = wait(run, "done", "failed")
    assert done["atoms"] and (done["step"], done["total"]) == (1, 1)
    assert client.predict(run, 1000, api_name="/extend_training")["total"] == 1001
    client.predict(run, api_name="/stop_training")
    wait(run, "stopped")
    assert client.predict(run, api_name="/resume_training")["state"] in ("queued", "starting")
    client.predict(run, api_name="/stop_training")
    wait(run, "stopped")
    assert client.predict(run, api_name="/delete_training") is True
    assert client.predict(api_name="/list_trainings") == []
    page = TrainPage(studio, [])
    facts = {"steps": "1", "minutes": "1.0", "memory": "1 GiB"}
    key = make_key(page.with_base(read_preset("Quick", settings)))
    write_json(page.measured.path, {key: facts})
    assert client.predict("Quick", settings, api_name="/measure_training") == facts


def test_pictures_that_cannot_be_used_are_refused_over_http(client, pictures):
    with pytest.raises(Exception, match="cannot be read"):
        files = [handle_file(p) for p in pictures]
        client.predict(files, "a dog", "Quick", {}, api_name="/train_pictures")
    with pytest.raises(Exception, match="no pictures"):
        client.predict([], "a dog", "Quick", {}, api_name="/train_pictures")
    with pytest.raises(Exception, match="no preset"):
        client.predict("../x", {}, api_name="/measure_training")


@pytest.mark.parametrize(
    ("folder", "preset", "settings", "words"),
    [
        ("../../etc", "Quick", {}, "no folder"),
        ("subjects/clay", "../x", {}, "no preset"),
        ("subjects/clay", "Quick", {"output_dir": "/etc"}, "no setting"),
        ("subjects/clay", "Quick", {"max_train_steps": 10**9}, "at most"),
    ],
)
def test_trainings_that_cannot_be_are_refused(client, folder, preset, settings, words):
    with pytest.raises(Exception, match=words):
        client.predict(folder, "a dog", preset, settings, api_name="/train")
    assert client.predict(api_name="/list_trainings") == []


@pytest.mark.parametrize("run", ["../x", "/etc/passwd", "", "x" * 300, "con\0"])
def test_runs_that_are_not_listed_are_refused(client, run):
    for endpoint in ("get_training", "stop_training", "resume_training", "delete_training"):
        with pytest.raises(Exception, match="is listed; refresh"):
            client.predict(run, api_name=f"/{endpoint}")
    with pytest.raises(Exception, match="is listed; refresh"):
        client.predict(run, 5, api_name="/extend_training")
