"""How long a visitor of the app waits for the first picture, from the click until it is shown.

The app is started over the bundled base and opened in a headless Chromium on the same machine. The
form is left as it comes: one click paints.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from sdatoms.bench.start import read_seconds
from sdatoms.training.report import name_device

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["WAIT", "Server", "measure_app", "measure_launch", "open_browser", "serve_app"]

WAIT = 120_000
"""ms that anything on the page may take."""
SHOWN = """() => {
  const picture = document.querySelector('#result img');
  return picture && picture.offsetParent && picture.complete && picture.naturalWidth > 0;
}"""


class Server(NamedTuple):
    """An app that runs."""

    address: str
    pid: int


@contextmanager
def serve_app(adapters_dir: str) -> Iterator[Server]:
    """The app in a process of its own, over the bundled base."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sdatoms", "ui", "--offline", "--port", str(port)]
        command += ["--adapters-dir", adapters_dir, "--outputs-dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            next(line for line in server.stdout if "Running on" in line)
            yield Server(f"http://127.0.0.1:{port}", server.pid)
        finally:
            server.terminate()
            server.wait()


@contextmanager
def open_browser(chromium: str) -> Iterator[Browser]:
    """A headless Chromium that reaches this machine alone."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


def time_picture(browser: Browser, address: str) -> tuple[float, float]:
    """Seconds until a page just opened is ready, and from its first click to the picture."""
    from playwright.sync_api import expect

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


def measure_app(times: int, chromium: str) -> dict[str, Any]:
    """The first picture of a server just started, and those of `times` pages opened one after
    another, whose median is `median_s`."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as empty, serve_app(empty) as server:
        started = round(time.monotonic() - began, 2)
        with open_browser(chromium) as browser:
            cold = time_picture(browser, server.address)
            warm = [time_picture(browser, server.address) for _ in range(times)]
    return {
        "machine": f"{name_device()}, {os.cpu_count()} cores",
        "cores_used": len(os.sched_getaffinity(0)),
        "clicks": 1,
        "server_s": started,
        "cold": {"page_s": cold[0], "picture_s": cold[1]},
        "page_s": [page for page, _ in warm],
        "picture_s": [picture for _, picture in warm],
        "median_s": statistics.median(picture for _, picture in warm),
    }


def measure_launch(chromium: str) -> dict[str, float]:
    """From the launch of the app to its first picture, one click: until it answers, until its page
    is ready, until the picture is shown, and all three. The browser is open before, and what it
    takes is in the page's and the picture's seconds, not in the server's processor seconds."""
    with tempfile.TemporaryDirectory() as empty, open_browser(chromium) as browser:
        began = time.monotonic()
        with serve_app(empty) as server:
            started, answered = time.monotonic() - began, read_seconds(server.pid)
            page, picture = time_picture(browser, server.address)
            used = read_seconds(server.pid)
    return {
        "server_s": round(started, 2),
        "page_s": page,
        "picture_s": picture,
        "seconds": round(started + page + picture, 2),
        "server_cpu_seconds": round(answered, 2),
        "cpu_seconds": round(used, 2),
    }
