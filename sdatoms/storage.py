"""Files on disk, written whole or not at all; texts of any encoding; bundled files, and hubs'."""

from __future__ import annotations

import codecs
import errno
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from sdatoms.errors import AtomError, check_text

__all__ = [
    "ABOUT",
    "check_place",
    "decode_text",
    "find_assets",
    "is_out_of_reach",
    "list_subjects",
    "locate",
    "reach_hub",
    "read_subject",
    "read_table",
    "write_whole",
]


ABOUT = "subject.json"
"""What a subject's folder says of it."""
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LOCK = threading.Lock()
OPENING = {"online": 0, "offline": 0, "switched": False}
"""How many threads open something with and without a hub, and whether its client was told so: it
has one switch for all."""


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write to a temporary file beside `path`, flush, rename: `path` is complete or untouched.

    Raises:
        OSError: it cannot be written, or is a folder, a device, a pipe or a socket, which a file
            would take the place of.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "is a folder" if path.is_dir() else "is a device, pipe or socket and no file"
        raise OSError(errno.EINVAL, kind, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")  # of 255 bytes at most
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the user's umask
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return path


def check_place(name: str | None, what: str) -> None:
    """Refuse what cannot be opened, before a hub is asked for it.

    Raises:
        AtomError: the name is no text; or it is a path, as hub ids (`owner/name`) never are, that
            leads nowhere.
    """
    name = check_text(str(name or ""), f"the path of the {what}")
    path = Path(name)
    is_path = (
        len(path.parts) > 2
        or name.startswith(("/", ".", "~"))
        or "\\" in name
        or path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
    )
    if is_path and not os.path.exists(name):
        raise AtomError(f"the {what} {name!r} cannot be opened: there is no such folder or file")


def is_out_of_reach(name: str) -> bool:
    """Whether `name` is no path here, and the hub that would be asked for it must not be asked or
    has no address: this machine is offline. A proxy finds addresses itself and is believed."""
    if os.path.exists(name):
        return False
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    hub = urlsplit(constants.ENDPOINT)
    if getproxies().keys() & {hub.scheme, "all"}:
        return False
    for _ in range(2):  # a single answer may be lost
        try:
            socket.getaddrinfo(hub.hostname, hub.port or hub.scheme)
        except (OSError, ValueError):
            continue
        return False
    return True


@contextmanager
def reach_hub(name: str) -> Iterator[None]:
    """Open `name` in a `with` block: where it is out of reach, the hub's client looks at once in
    its cache alone, for which it else tries for half a minute, with a line at every try. Where
    another thread has reached the hub, it is left to try."""
    if os.path.exists(name):
        yield
        return
    from huggingface_hub import constants

    away = is_out_of_reach(name)
    with LOCK:
        way = "offline" if away and not OPENING["online"] else "online"
        OPENING[way] += 1
        if way == "offline" and not constants.HF_HUB_OFFLINE:
            OPENING["switched"] = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        with LOCK:
            OPENING[way] -= 1
            if OPENING["switched"] and not OPENING["offline"]:
                OPENING["switched"] = constants.HF_HUB_OFFLINE = False


def locate(path: str | os.PathLike[str]) -> Path:
    """The absolute path without links; links in a circle are left as they are, and lead nowhere."""
    return Path(os.path.realpath(path))


def find_assets() -> Path:
    """The directory of bundled files: beside the package in a checkout, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    return next(
        (p for p in (here / "assets", here.parent / "assets") if p.is_dir()), here.parent / "assets"
    )


def list_subjects() -> list[str]:
    """Names of the bundled instance sets."""
    return sorted(p.parent.name for p in (find_assets() / "subjects").glob(f"*/{ABOUT}"))


def read_subject(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a bundled instance set, and what its `subject.json` says.

    Raises:
        AtomError: there is none of that name.
    """
    folder = find_assets() / "subjects" / name
    if name not in list_subjects():
        raise AtomError(
            f"there is no bundled subject {name!r}; there are {', '.join(list_subjects())}"
        )
    return folder, json.loads((folder / ABOUT).read_text(encoding="utf-8"))


def read_table(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON table in UTF-8.

    Args:
        default: stands for a table that is missing or damaged; None where it has to be there.

    Raises:
        AtomError: there is none that can be read, and no default.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        table = None
    if isinstance(table, dict):
        return table
    if default is None:
        raise AtomError(f"{str(path)!r} holds no JSON table")
    return default


def decode_text(data: bytes) -> tuple[str, str]:
    """Text in UTF-8, UTF-16, UTF-32 or else Windows-1252, and the name of the encoding."""
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace"), encoding
    if b"\0" in data and len(data) % 2 == 0:  # UTF-16 without its mark: text has no NUL
        encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
        return data.decode(encoding, errors="replace"), encoding
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:  # five bytes mean nothing there
        return data.decode("latin-1"), "ISO-8859-1"
