"""No answer of the server is missed by a page, whenever its stream of answers ends."""

import re

import gradio as gr
import pytest
from sdatoms_app.app import find_port, launch_settings
from tiny.limits import HANG

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
LATE = """(() => {
  const ask = window.fetch.bind(window);
  let joined = 0, release;
  const second = new Promise(resolve => { release = resolve; });
  const holdClose = new TransformStream({async transform(text, out) {
    const cut = text.search(/data: [^\\n]*close_stream/);
    if (cut < 0) return out.enqueue(text);
    out.enqueue(text.slice(0, cut));
    await second;
    out.enqueue(text.slice(cut));
  }});
  let held = false;
  window.fetch = async (request, init) => {
    const answer = await ask(request, init), url = request.url || String(request);
    // Long after the page has read the answer, if nothing holds it.
    if (url.includes("/queue/join") && ++joined === 2) setTimeout(release, 300);
    if (!url.includes("/queue/data") || held) return answer;
    held = true;
    const late = answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(holdClose);
    return new Response(late.pipeThrough(new TextEncoderStream()), {headers: answer.headers});
  };
})()"""
"""A network on which the end of the first stream arrives after a second event was asked for."""


@pytest.fixture
def counter(studio):
    """The address of a page with a button that counts, served as ours is."""
    with gr.Blocks() as app:
        count = gr.Number(0, elem_id="count")
        gr.Button("More", elem_id="more").click(lambda k: k + 1, count, count)
    settings = launch_settings(studio)
    _, url, _ = app.launch(
        server_port=find_port(), prevent_thread_lock=True, quiet=True, **settings
    )
    yield url
    app.close()


def test_an_event_asked_for_while_the_stream_ends_is_answered(browser, counter):
    from playwright.sync_api import expect

    page = browser.new_page()
    page.set_default_timeout(1000 * HANG)
    page.add_init_script(LATE)
    page.goto(counter)
    for count in (1, 2, 3):
        page.locator("#more").click()
        expect(page.locator("#count input")).to_have_value(re.compile(rf"^{count}$"))
    page.close()
