"""A training from upload to picture, in a headless Chromium."""

import json
import re

import pytest
from tiny.app import open_tab
from tiny.limits import wait_for

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
STEPS = 20_000
"""More than any machine takes while a test looks on."""


def unfold_settings(page):
    for name in ("Advanced", "Steps and learning rate", "Samples and checkpoints"):
        page.get_by_role("button", name=name).click()


def start_training(page, queue, **settings):
    """Fill settings in, start, and return the run's id."""
    from playwright.sync_api import expect

    for name, value in settings.items():
        page.locator(f"#train-{name} input").fill(str(value))
    page.locator("#train-start").click()
    told = page.locator("#train-result input, #train-result textarea")
    expect(told).to_have_value(re.compile("is queued"))
    return queue.list()[0].id


@pytest.mark.slow
def test_a_training_goes_on_over_a_reload_is_stopped_resumed_and_used(open_page, queue, pictures):
    """Upload, caption, reload, start, reload while it trains, stop, resume, stop, paint with it."""
    from playwright.sync_api import expect

    page = open_page()
    open_tab(page, "Train")
    verdict = page.locator("#train-verdict textarea")
    page.locator("#train-upload input[type=file]").set_input_files(pictures)
    expect(verdict).to_have_value(re.compile("2 fine, 1 tiny"))
    assert page.locator("#train-gallery b").count() == 0  # names are text, never markup
    page.locator("#train-instance_prompt textarea").fill("a sks dog")
    page.locator("#train-caption textarea").fill("a sks dog on the beach")
    drafts = queue.root / ".drafts"
    for words in ("beach", 'sks dog"'):
        wait_for(lambda words=words: any(words in p.read_text() for p in drafts.glob("*/*.json")))
    page.reload()
    open_tab(page, "Train")
    expect(page.locator("#train-caption textarea")).to_have_value("a sks dog on the beach")
    expect(page.locator("#train-instance_prompt textarea")).to_have_value("a sks dog")
    unfold_settings(page)
    run = start_training(page, queue, max_train_steps=STEPS, validation_steps=0)
    open_tab(page, "Runs")
    status = page.locator("#run-status")
    expect(status).to_contain_text(re.compile(rf"step [1-9]\d* of {STEPS}"))
    page.reload()
    before = queue.find(run).step
    open_tab(page, "Runs")
    expect(status).to_contain_text("a sks dog")
    expect(page.locator("#run-loss svg")).to_be_visible()
    wait_for(lambda: queue.find(run).step > before)
    page.locator("#run-stop").click()
    expect(status).to_contain_text("■ stopped")
    stopped = queue.find(run)
    assert stopped.error == "" and stopped.step > before
    texts = list((stopped.path / "instance_images").glob("*.txt"))
    assert [p.read_text() for p in texts] == ["a sks dog on the beach"]
    page.locator("#run-resume").click()
    wait_for(lambda: queue.find(run).step > stopped.step)
    expect(status).to_contain_text("▶ training")
    page.locator("#run-stop").click()
    expect(status).to_contain_text("■ stopped")
    last = queue.find(run).step
    rows = (stopped.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, last + 1))  # each step once
    page.locator("#run-send").click()
    expect(page.locator("#atoms")).to_contain_text(f"runs/{run}@{last}")
    expect(page.locator("#prompt textarea")).to_have_value("a sks dog")
    page.locator("#paint").click()
    expect(page.locator("#note")).to_contain_text(f"runs/{run}@{last} at 1")
    open_tab(page, "Runs")
    page.locator("#run-again").click()
    expect(page.locator("#train-instance_prompt textarea")).to_be_visible()
    unfold_settings(page)  # folded again since the page was loaded
    expect(page.locator("#train-max_train_steps input")).to_have_value(str(STEPS))
