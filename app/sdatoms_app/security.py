"""What stands between the app and pages, files and addresses that mean it no good."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from starlette.requests import Request

from sdatoms import AtomError

__all__ = ["LoginGuard", "OriginGuard", "harden", "read_auth"]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_PIXELS = 25_000_000
UNLOCKED = re.compile(
    r"/|/(login|logout)/?|/(favicon\.ico|robots\.txt|manifest\.json)|/(gradio_api/)?theme\.css"
    r"|/(assets|static|svelte|pwa_icon)(/.*)?|/gradio_api/(login_check|startup-events)/?"
)
"""Paths of the page that asks for the password: Gradio's own files, nothing of the app's."""
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


class OriginGuard:
    """ASGI middleware: no foreign page may write to the app, no foreign name may reach it.

    A request that names an `Origin` other than the host it goes to is refused unless it only reads;
    where the app serves this machine alone, so is every host name that is not this machine's (a
    page that rebinds its name to 127.0.0.1 has one).
    """

    def __init__(self, app: Any, *, local: bool) -> None:
        self.app = app
        self.local = local

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        if scope["type"] == "http":
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
            reason = self.find_fault(scope["method"], headers)
            if reason:
                await refuse(send, reason)
                return
        await self.app(scope, receive, send)

    def find_fault(self, method: str, headers: dict[str, str]) -> str:
        """Why a request is refused, or an empty string."""
        host = headers.get("host", "")
        if self.local and host.rpartition(":")[0] not in LOOPBACK and host not in LOOPBACK:
            return "this app answers on its own machine only"
        origin = headers.get("origin")
        writes = method not in ("GET", "HEAD", "OPTIONS")
        if writes and origin is not None and urlsplit(origin).netloc != host:
            # behind a tunnel or a proxy the name the browser knows comes in another header
            if self.local or urlsplit(origin).netloc != headers.get("x-forwarded-host"):
                return "requests from other pages are refused"
        if writes and headers.get("sec-fetch-site") == "cross-site":
            return "requests from other pages are refused"
        return ""


class LoginGuard:
    """ASGI middleware: where there is a password, only the page that asks for it is open without.

    Gradio asks for it on most routes; those that cancel, stream, reset or monitor it leaves open.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        if scope["type"] == "http" and not UNLOCKED.fullmatch(scope["path"]):
            served, cookies = scope["app"], Request(scope).cookies
            names = (f"access-token{kind}-{served.cookie_id}" for kind in ("", "-unsecure"))
            known = any(cookies.get(name) in served.tokens for name in names)
            if served.auth is not None and not known:
                await refuse(send, "this app asks for a password first", status=401)
                return
        await self.app(scope, receive, send)


async def refuse(send: Send, reason: str, status: int = 403) -> None:
    body = reason.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def read_auth(entries: Sequence[str]) -> list[tuple[str, str]]:
    """Names and passwords from `NAME:PASSWORD`, or from `@FILE` with one such line each.

    Raises:
        AtomError: an entry is neither, or a password is shorter than 8 characters.
    """
    lines: list[str] = []
    for entry in entries:
        if entry.startswith("@"):
            try:
                lines += Path(entry[1:]).read_text(encoding="utf-8").split("\n")
            except OSError as error:
                raise AtomError(f"--auth {entry!r} cannot be read: {error.strerror}") from None
        else:
            lines.append(entry)
    pairs = []
    for line in filter(None, (line.strip() for line in lines)):
        name, mark, password = line.partition(":")
        if not mark or not name or len(password) < 8:
            raise AtomError(
                "--auth takes NAME:PASSWORD with at least 8 characters of password, or @FILE with "
                "one such line for each person"
            )
        pairs.append((name, password))
    return pairs


def harden(*, local: bool, offline: bool) -> None:
    """Settings of the process: pixel limits, no hub token where strangers may come, no hub at all
    when offline."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # else twice as many pass
    if not local:
        for name in SECRETS:
            os.environ.pop(name, None)
        os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    if offline:
        import huggingface_hub.constants

        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        # the hub's client may have been imported, and read the variable, before
        huggingface_hub.constants.HF_HUB_OFFLINE = True
