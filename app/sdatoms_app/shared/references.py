"""Files that clients of the endpoints send and download.

Endpoints' types are read from their signatures: annotations stay objects here.
"""

from pathlib import Path
from typing import Any, TypedDict

__all__ = [
    "FileReference",
    "find_upload",
    "refer",
]


class FileReference(TypedDict):
    """A file that the client downloads."""

    path: str
    meta: dict[str, str]


def refer(path: Path) -> FileReference:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def find_upload(upload: Any) -> Path:
    """Where an uploaded file lies: what an endpoint annotates as Gradio's `FileData` comes as a
    table, and Gradio has seen that its path is that of an upload."""
    return Path(upload["path"])
