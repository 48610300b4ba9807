"""One way from an error to the page, to the API and into a note on the page.

Messages and notes are markup, and errors hold names from files that anybody may have made: what is
shown on the page is escaped here and nowhere else. Programs get the sentence as it is.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdatoms import AtomError
from sdatoms.errors import is_full_memory, name_full_memory
from sdatoms_app.shared.html import draw_note

__all__ = [
    "answer_errors",
    "draw_error",
    "show_errors",
]


def show_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The page's handler, its `AtomError` shown as a message; all widgets stay as they are."""
    return turn_errors(handler, lambda text: escape(text, quote=False))


def answer_errors(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, its `AtomError` the error that the client raises."""
    return turn_errors(endpoint, lambda text: text)


def turn_errors(function: Callable[..., Any], write: Callable[[str], str]) -> Callable[..., Any]:
    """The function with the same signature; an `AtomError` and what the disk refuses become one of
    Gradio's errors."""

    @wraps(function)
    def answer(*values: Any, **named: Any) -> Any:
        try:
            return function(*values, **named)
        except (AtomError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_full_memory(error):
                raise
            raise gr.Error(write(describe_error(error)), print_exception=False) from None

    return answer


def describe_error(error: Exception) -> str:
    """One sentence; of the disk's refusals the last name of a path alone, which is the server's; of
    what nobody foresaw no more than its class, the rest goes to the server's terminal."""
    if isinstance(error, AtomError):
        return str(error)
    if is_full_memory(error):
        return (
            f"the {name_full_memory(error)}'s memory is full; try a smaller picture or fewer at "
            "once; whoever starts the server can lay less on the GPU with --offload"
        )
    if not isinstance(error, OSError):
        traceback.print_exception(error)
        return f"an error of the app ({type(error).__name__}); the server's terminal says more"
    what = Path(os.fsdecode(error.filename)).name if error.filename else "the disk"
    return f"the server can neither read nor write {what!r}: {error.strerror or 'no reason given'}"


def draw_error(error: Exception) -> str:
    """The error as a note that stands where its results would."""
    return draw_note(f"{describe_error(error)}.", alarm=True)
