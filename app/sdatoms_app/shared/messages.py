"""One way from an error to the page, to the API and into a note on the page.

Messages and notes are markup, and errors hold names from files that anybody may have made: what is
shown on the page is escaped here and nowhere else. Programs get the sentence as it is. Neither sees
the folders of the server.
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
from gradio.exceptions import ComponentProcessingError, InvalidPathError
from PIL import UnidentifiedImageError

from sdatoms import AtomError
from sdatoms.errors import is_full_memory, mark_bytes, name_full_memory
from sdatoms_app.shared.html import count, draw_note
from sdatoms_app.shared.places import hide_folders
from sdatoms_app.shared.values import check_values, clean_answer

__all__ = [
    "AnsweringBlocks",
    "answer_errors",
    "draw_error",
    "show_errors",
]


class AnsweringBlocks(gr.Blocks):
    """Blocks that answer every event with a result or a sentence, also where Gradio refuses its
    values before any function of ours sees them: by itself it says nothing then."""

    async def process_api(self, *values: Any, **named: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*values, **named)
        except Exception as error:
            raise make_message(error, escape_text) from None

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        taken = len(block_fn.inputs)
        if len(inputs) < taken:
            raise AtomError(f"{count(len(inputs), 'value')} came; this takes {taken}")


def show_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The page's handler, its error shown as a message; all widgets stay as they are."""
    return turn_errors(handler, escape_text)


def answer_errors(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, its error the one that the client raises, its values checked by its signature
    and its answer such as JSON holds."""

    @wraps(endpoint)
    def answer(*values: Any, **named: Any) -> Any:
        given = check_values(endpoint, values, named)
        return clean_answer(endpoint(*given.args, **given.kwargs))

    return turn_errors(answer, lambda text: text)


def turn_errors(function: Callable[..., Any], write: Callable[[str], str]) -> Callable[..., Any]:
    """The function with the same signature; whatever it raises becomes one of Gradio's errors."""

    @wraps(function)
    def answer(*values: Any, **named: Any) -> Any:
        try:
            return function(*values, **named)
        except Exception as error:
            raise make_message(error, write) from None

    return answer


def make_message(error: Exception, write: Callable[[str], str]) -> gr.Error:
    """Gradio's error with the sentence; one that is such already stays, and of one that Gradio
    wrapped the inner one counts."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, ComponentProcessingError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return gr.Error(write(describe_error(error)), print_exception=False)


def escape_text(text: str) -> str:
    return escape(text, quote=False)


def describe_error(error: Exception) -> str:
    """One sentence; of a path the last name alone, its folders are the server's; of what nobody
    foresaw no more than its class, the rest goes to the server's terminal."""
    if isinstance(error, AtomError):
        return mark_bytes(hide_folders(str(error)))
    if isinstance(error, InvalidPathError):
        return "a file came that was not uploaded; send it by gradio_client.handle_file"
    if isinstance(error, UnidentifiedImageError):
        return "a file came that is no picture"
    if is_full_memory(error):
        return (
            f"the {name_full_memory(error)}'s memory is full; try a smaller picture or fewer at "
            "once; whoever starts the server can lay less on the GPU with --offload"
        )
    if not isinstance(error, OSError) or error.errno is None:
        traceback.print_exception(error)
        return f"an error of the app ({type(error).__name__}); the server's terminal says more"
    name = error.filename
    what = Path(os.fsdecode(name)).name if isinstance(name, str | bytes | Path) else "the disk"
    return f"the server can neither read nor write {what!r}: {error.strerror or 'no reason given'}"


def draw_error(error: Exception) -> str:
    """The error as a note that stands where its results would."""
    return draw_note(f"{describe_error(error)}.", alarm=True)
