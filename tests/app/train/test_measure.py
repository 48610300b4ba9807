"""What settings cost is measured once, by the trainer itself, before anybody asks."""

import pytest
from sdatoms_app.queue.worker import write_json
from sdatoms_app.train.form import read_preset
from sdatoms_app.train.measure import describe_facts, describe_minutes, make_key
from sdatoms_app.train.page import TrainPage
from tiny.limits import wait_for

pytestmark = pytest.mark.filterwarnings("default")  # gradio's own warnings


def test_minutes_are_scaled_to_a_sentence():
    facts = {"minutes": "0.4 (without samples)"}
    assert describe_minutes(facts) == "less than a minute on this machine"
    assert describe_minutes({"minutes": "12.6"}) == "about 13 min on this machine"
    assert describe_minutes({"minutes": "150.0"}) == "about 2.5 hours on this machine"
    assert describe_minutes(None) == "" == describe_facts(None)


@pytest.mark.parametrize(
    "facts", [None, 5, "x", [], {}, {"minutes": 1}, {"minutes": "x", "steps": "1"}], ids=str
)
def test_what_was_measured_and_is_damaged_counts_as_not_measured(studio, facts):
    """It would else close the tab to everybody."""
    page = TrainPage(studio, [])
    page.queue.root.mkdir(parents=True, exist_ok=True)
    settings = page.with_base(read_preset("Quick"))
    write_json(page.measured.path, {make_key(settings): facts})
    assert page.measured.find(settings) is None and page.list_presets()
    page.measured.path.unlink()


def test_a_preset_is_measured_quietly_and_once(studio, monkeypatch):
    monkeypatch.setattr(studio, "measures", True)
    page = TrainPage(studio, [])
    values: list = [None] * len(page.names)
    values[page.names.index("max_train_steps")] = 10
    cost, *_ = page.measure_quietly("", *values)
    assert "is being measured" in cost
    wait_for(lambda: not page.measuring.locked())
    cost, *_ = page.look_measured("", *values)
    assert "on this machine" in cost and "GiB of memory" in cost
    settings = page.with_base(page.read(values))
    facts = page.measured.find(settings)
    assert float(facts["minutes"].split()[0]) >= 0 and "GiB" in facts["memory"]
    assert "min" in describe_facts(facts, brief=True) and "kB" in describe_facts(facts)
    again = TrainPage(studio, []).measured
    assert again.find(settings | {"instance_prompt": "another"}) == facts
    assert again.measure(settings, studio.outputs / "gone") == facts
    longer = again.find(settings | {"max_train_steps": 10_000})
    assert longer["steps"] == "10000"
    assert float(longer["minutes"].split()[0]) >= 100 * float(facts["minutes"].split()[0])
    assert again.find(settings | {"block_size": 2}) is None
