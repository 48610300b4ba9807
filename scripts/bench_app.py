"""How long a visitor of the app waits for the first picture, from the click until it is shown.

    python scripts/bench_app.py --output app.json

The app is started over the bundled base and opened in a headless Chromium on the same machine. The
form is left as it comes: one click paints. The first picture of a server just started is counted
apart; `median_s` is of pages opened one after another.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, expect
from sdatoms_app.train.measure import name_machine
from shoot_app import WAIT, open_browser, serve_app

from sdatoms.storage import write_whole

SHOWN = """() => {
  const picture = document.querySelector('#result img');
  return picture && picture.offsetParent && picture.complete && picture.naturalWidth > 0;
}"""


def time_picture(browser: Browser, address: str) -> tuple[float, float]:
    """Seconds until a page just opened is ready, and from its first click to the picture."""
    page = browser.new_page()
    began = time.monotonic()
    page.goto(address)
    expect(page.locator("#note")).to_contain_text("is ready", timeout=WAIT)
    ready = time.monotonic()
    page.locator("#paint").click()
    page.wait_for_function(SHOWN, timeout=WAIT)
    shown = time.monotonic()
    page.close()
    return round(ready - began, 2), round(shown - ready, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3, help="pages after the first")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only printed")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as empty, serve_app(empty) as address:
        started = round(time.monotonic() - began, 2)
        with open_browser(args.chromium) as browser:
            cold = time_picture(browser, address)
            warm = [time_picture(browser, address) for _ in range(args.times)]
    facts = {
        "machine": name_machine(),
        "cores_used": len(os.sched_getaffinity(0)),
        "clicks": 1,
        "server_s": started,
        "cold": {"page_s": cold[0], "picture_s": cold[1]},
        "page_s": [page for page, _ in warm],
        "picture_s": [picture for _, picture in warm],
        "median_s": statistics.median(picture for _, picture in warm),
    }
    text = json.dumps(facts, indent=2)
    print(text)
    if args.output:
        write_whole(args.output, (text + "\n").encode())


if __name__ == "__main__":
    main()
