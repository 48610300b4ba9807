"""Files that a client of the endpoints downloads.

Endpoints' types are read from their signatures: annotations stay objects here.
"""

from pathlib import Path
from typing import TypedDict

__all__ = [
    "FileReference",
    "refer",
]


class FileReference(TypedDict):
    """A file that the client downloads."""

    path: str
    meta: dict[str, str]


def refer(path: Path) -> FileReference:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}
