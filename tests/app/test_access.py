"""Every tab, in light and dark, under axe: contrast, names, roles, order of focus; and on a
phone."""

import re

import pytest
from tiny.app import open_tab
from tiny.limits import wait_for
from tiny.pictures import draw

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
TABS = ("Generate", "Compare", "Atoms", "Train", "Runs")
GRAVE = ("serious", "critical")
GRADIOS = {
    ("aria-prohibited-attr", "div.wrapper[aria-label='Static column']"): (
        "the mark of a Dataframe's column that is not edited carries a label and no role"
    ),
    ("aria-prohibited-attr", "div.empty[aria-label='Empty value']"): (
        "the placeholder of an empty Gallery or ImageSlider carries a label and no role"
    ),
}
"""(rule, selector) → why it is Gradio's own and not ours to mend."""
ASK = """async (own) => {
  const found = await axe.run(document, {resultTypes: ['violations']});
  return found.violations.flatMap((v) => v.nodes.map((n) => ({
    rule: v.id, impact: n.impact, html: n.html.slice(0, 240), where: n.target.join(' '),
    theirs: own.find(([rule, css]) => {
      const e = document.querySelector(n.target[0]);
      return rule === v.id && e && e.matches(css);
    }) || null,
    why: n.failureSummary,
  })));
}"""


CUT = """() => [...document.querySelectorAll('[data-testid=block-info]')]
  .filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)"""
"""Labels of fields that are not shown whole."""


SETTLED = """* {transition: none !important; animation: none !important}
.pending {opacity: 1 !important}"""
"""Nothing is half shown: Gradio fades what an event is about to replace, as long as that takes."""


@pytest.fixture(scope="module")
def trained(studio, tmp_path_factory):
    """A run of two steps with samples, so that the Runs tab has something to show, and with a line
    in its settings that is wider than the page."""
    from sdatoms_app.train.page import open_queue

    queue = open_queue(studio)
    settings = {
        "instance_prompt": "a sks dog",
        "pretrained_model_name_or_path": studio.base,
        "max_train_steps": 2,
        "validation_steps": 1,
        "validation_prompt": "a sks dog" + " on a wide beach" * 8,
        "num_validation_images": 1,
    }
    job = queue.add("a sks dog", settings, lambda folder: draw(folder / "a.png"))
    return wait_for(lambda: (j := queue.find(job.id)).state == "done" and j)


def fill(page, tab, picture):
    """Bring out all that the tab can show."""
    from playwright.sync_api import expect

    open_tab(page, tab)
    if tab == "Generate":
        page.get_by_role("button", name="Add dog").click()
        expect(page.locator("#strength-0 input[type=number]")).to_be_visible()
        page.locator("#paint").click()
        expect(page.locator("#result img").first).to_be_visible()
        expect(page.locator("#paint")).to_be_enabled()
    if tab == "Compare":
        page.locator("#compare-paint").click()
        expect(page.locator("#slider img").first).to_be_visible()
        expect(page.locator("#compare-paint")).to_be_enabled()
    if tab == "Atoms":
        page.locator("#anatomy-file input").click()
        page.get_by_role("option", name="dog", exact=False).first.click()
        expect(page.locator("#anatomy-after img")).to_be_visible()
    if tab == "Train":
        page.locator("#train-upload input[type=file]").set_input_files(picture)
        expect(page.locator("#train-gallery img").first).to_be_visible()
        page.locator("#train-with_prior_preservation input").check()
        expect(page.locator("#train-class_prompt textarea")).to_be_visible()
    if tab == "Runs":
        expect(page.locator("#run-samples img").first).to_be_visible()
        expect(page.locator("#run-loss svg")).to_be_visible()
    folded = page.locator("button.label-wrap:not(.open):visible")
    while folded.count():
        folded.first.click()


def test_axe_finds_nothing_grave_on_any_tab_in_light_or_dark(open_page, trained, tmp_path):
    """A dark page is the light one with a class on its body, by which Gradio's `?__theme=dark` and
    every rule of ours go."""
    from axe_playwright_python.sync_playwright import Axe

    page = open_page("/?__theme=light")
    page.add_style_tag(content=SETTLED)
    page.evaluate(Axe().axe_script)
    picture = draw(tmp_path / "a.png")
    faults = []
    for tab in TABS:
        fill(page, tab, picture)
        faults += [f"{tab}: the label {words!r} is cut off" for words in page.evaluate(CUT)]
        for theme in ("light", "dark"):
            page.evaluate("on => document.body.classList.toggle('dark', on)", theme == "dark")
            found = page.evaluate(ASK, [list(key) for key in GRADIOS])
            assert isinstance(found, list)
            faults += [
                f"{tab}, {theme}: {f['rule']} at {f['where']}: {f['html']} {f['why']}"
                for f in found
                if f["impact"] in GRAVE and not f["theirs"]
            ]
        page.evaluate("document.body.classList.remove('dark')")
    assert not faults, "\n".join(faults)


def test_every_tab_opens_on_something_fits_a_phone_and_stays_in_sight(open_page):
    from playwright.sync_api import expect

    page = open_page(viewport={"width": 390, "height": 844})
    signs = {
        "Generate": "#cards button.try",
        "Compare": "#compare-note .note",
        "Atoms": "#anatomy-after img",
        "Train": "#train-gallery img",
        "Runs": "#run-status",
    }
    for tab in TABS:
        open_tab(page, tab)
        if tab == "Train":
            page.get_by_role("button", name="Try it with the hamburger").click()
            expect(page.locator("#train-instance_prompt textarea")).to_have_value("a sks hamburger")
            expect(page.locator("#train-cost textarea")).to_have_value(re.compile("5 pictures"))
        expect(page.locator(signs[tab]).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    # What is refused hides nothing; Gradio lays the word Error over all that a click would change.
    open_tab(page, "Train")
    page.locator("#train-take").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("choose a folder first")
    expect(page.locator("[data-testid=status-tracker] > .error").first).to_be_attached()
    assert not page.locator("[data-testid=status-tracker] > .error:visible").count()
    expect(page.locator("#train-verdict textarea")).to_have_value(re.compile("5 fine"))
