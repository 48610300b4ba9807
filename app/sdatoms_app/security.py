"""What stands between the app and pages, files and addresses that mean it no good."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from starlette.requests import Request

from sdatoms import AtomError
from sdatoms.errors import clip

__all__ = [
    "LAST_PORT",
    "LoginGuard",
    "OriginGuard",
    "check_root_path",
    "harden",
    "hide_proxies",
    "keep_loopback_direct",
    "read_auth",
]

HOST = re.compile(r"(?:\w[\w.-]*|\[[0-9a-f:.]+\])(?::(\d{1,5}))?", re.ASCII | re.IGNORECASE)
HOSTS = ("host", "x-forwarded-host")
"""Headers that name a host, which Gradio reads too; of several names the first counts."""
ADDRESSES = ("origin", "x-gradio-server")
"""Headers that hold a whole address."""
LAST_PORT = 65535
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
DIRECT = ("127.0.0.1", "localhost", "::1")
"""This machine, as lists of hosts without a proxy spell it."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
MAX_PIXELS = 100_000_000
"""Of a picture: what phones take is opened, what a few bytes claim to be is not."""
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

    A request that names an `Origin` other than the app's own is refused unless it only reads. The
    app's own are the host the request goes to, the public host a reverse proxy names, and the one
    the operator named. Where the app serves this machine alone, so is every host name that is
    neither this machine's nor the operator's (a page that rebinds its name to 127.0.0.1 has one).
    """

    def __init__(self, app: Any, *, local: bool, public: str = "") -> None:
        """`public` is what the operator says a proxy serves the app as: a URL, a path or empty."""
        self.app = app
        self.local = local
        self.public = name_host(read_host(public) or "")

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        if scope["type"] == "http":
            # of a header that comes twice the first counts, as it does for Gradio
            pairs = reversed([*scope["headers"]])
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in pairs}
            reason = self.find_fault(scope["method"], headers)
            if reason:
                await refuse(send, reason)
                return
        await self.app(scope, receive, send)

    def find_fault(self, method: str, headers: dict[str, str]) -> str:
        """Why a request is refused, or an empty string."""
        if not all(is_host(name_host(first_name(headers, name))) for name in HOSTS):
            return "the request names a host that is none"
        if any(read_host(headers.get(name, "")) is None for name in ADDRESSES):
            return "the request names an address that is none"
        host = name_host(headers.get("host", ""))
        if self.local and host != self.public and host.rpartition(":")[0] not in LOOPBACK:
            if host not in LOOPBACK:
                return (
                    "this app answers on its own machine only; for a reverse proxy start it with "
                    "--root-path and the public address, such as https://example.org"
                )
        if method in ("GET", "HEAD") or (method == "OPTIONS" and "origin" not in headers):
            return ""
        if not self.knows_page(host, headers):
            return "requests from other pages are refused"
        return ""

    def knows_page(self, host: str, headers: dict[str, str]) -> bool:
        """Whether a request comes from the app's own page, or from no page."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site == "same-origin":  # no page can write this header, only the browser can
            return True
        if site in ("cross-site", "same-site"):
            return False
        if origin is None:
            return True
        page = name_host(read_host(origin) or "")
        # Behind a tunnel or a proxy the name the browser knows comes in another header. A page
        # cannot send it along: browsers ask first, and the answer is no.
        forwarded = name_host(first_name(headers, "x-forwarded-host"))
        own = {host, forwarded, self.public} - {""}
        # Some proxies pass the host on without its port.
        bare = {name for name in own if name not in LOOPBACK and ":" not in name}
        return page in own or page.partition(":")[0] in bare


def first_name(headers: dict[str, str], header: str) -> str:
    """The name a header holds, the first where every proxy on the way added one."""
    return headers.get(header, "").partition(",")[0].strip()


def is_host(name: str) -> bool:
    """Whether it is a host with or without a port, or empty: what every parser takes."""
    found = HOST.fullmatch(name)
    return not name or (found is not None and int(found[1] or 0) <= LAST_PORT)


def read_host(address: str) -> str | None:
    """The host that an address names, with its port; empty where it names none, None where it is no
    address that can be read."""
    try:
        host = urlsplit(address).netloc
    except ValueError:
        return None
    return host if is_host(host) else None


def name_host(netloc: str) -> str:
    """A host as it is compared: lower case, without the ports that browsers leave out."""
    host = netloc.lower()
    return host.removesuffix(":80").removesuffix(":443")


def check_root_path(path: str) -> str:
    """Where a reverse proxy serves the app: empty, a path such as /atoms, or a whole address.

    Raises:
        AtomError: it is none of these.
    """
    whole = re.fullmatch(r"https?://([^/?#]+)(/[^\s?#]*)?", path, re.IGNORECASE)
    plain = re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", path)
    if path and not plain and not (whole and is_host(whole[1]) and read_host(path)):
        raise AtomError(
            f"--root-path {clip(path)!r} is neither a path such as /atoms nor an address such as "
            "https://example.org/atoms"
        )
    return path.rstrip("/")


def keep_loopback_direct() -> None:
    """Let no request to this machine go through a proxy that the environment names."""
    for name in ("no_proxy", "NO_PROXY"):
        listed = [entry.strip() for entry in os.environ.get(name, "").split(",") if entry.strip()]
        os.environ[name] = ",".join([*listed, *(h for h in DIRECT if h not in listed)])


@contextlib.contextmanager
def hide_proxies() -> Iterator[None]:
    """Do without the proxies that the environment names.

    Gradio builds clients when it is imported, and asks its own server whether it answers; neither
    leaves the machine, and httpx refuses a SOCKS proxy for both where its extra is not installed.
    """
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if name.lower() in PROXIES}
    try:
        yield
    finally:
        os.environ.update(hidden)


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
                lines += Path(entry[1:]).read_text(encoding="utf-8-sig").split("\n")
            except OSError as error:
                raise AtomError(f"--auth {entry!r} cannot be read: {error.strerror}") from None
            except ValueError:
                raise AtomError(
                    f"--auth {entry!r} cannot be read: it is no text in UTF-8"
                ) from None
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


async def refuse_address(url: str) -> Any:
    """Stands in for Gradio's download of what a visitor gives in place of a file.

    Raises:
        AtomError: always.
    """
    raise AtomError(f"the address {clip(url)!r} is not fetched; upload the file itself")


def harden(*, local: bool, offline: bool) -> None:
    """Settings of the process: pixel limits, nothing fetched for visitors, no hub token where
    strangers may come, no hub at all when offline."""
    from gradio import processing_utils

    # every download of Gradio's goes through here
    processing_utils.async_ssrf_protected_get = refuse_address
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
