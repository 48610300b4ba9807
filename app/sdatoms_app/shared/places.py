"""Sentences for visitors: a file is named by its name alone, the folders it lies in are not theirs.

Sentences of the library and of others quote whole paths, which is right on a terminal.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

__all__ = [
    "hide_folders",
]

QUOTED = re.compile(r"'/(?:\\.|[^'\\\n])+'|\"/(?:\\.|[^\"\\\n])+\"")
BARE = re.compile(r"(?<![\w./:~-])/(?:[^\s/'\"]+/)+[^\s'\"]*")
"""Of what stands in no quotes, or lost the closing one when it was cut."""


def hide_folders(text: str) -> str:
    """The text with the last part alone of every absolute path; addresses stay whole."""
    text = QUOTED.sub(lambda found: f"{found[0][0]}{last_part(found[0][1:-1])}{found[0][-1]}", text)
    return BARE.sub(lambda found: last_part(found[0]), text)


def last_part(path: str) -> str:
    """The name; of one folder of the root itself, which is an address of ours, all."""
    return PurePosixPath(path).name if "/" in path[1:] else path
