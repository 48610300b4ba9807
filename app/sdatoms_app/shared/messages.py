"""One way from an `AtomError` to the page and to the API."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from sdatoms import AtomError

if TYPE_CHECKING:
    pass

__all__ = [
    "say",
    "speak",
    "warn",
]


def speak(endpoint: Any) -> Any:
    """The endpoint, its `AtomError` turned into the client's error message."""
    from functools import wraps

    @wraps(endpoint)
    def answer(*values: Any, **named: Any) -> Any:
        try:
            return endpoint(*values, **named)
        except AtomError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return answer


def warn(handler: Any) -> Any:
    """The handler, its `AtomError` turned into a message that leaves everything else as it is."""

    def handle(*values: Any) -> Any:
        try:
            return handler(*values)
        except AtomError as error:
            gr.Warning(escape(str(error)))  # messages may hold names from files, and are markup
            return gr.skip()

    return handle


def say(error: AtomError) -> gr.Error:
    """An error of the library as a message on the page, where messages are markup: names from files
    stay text."""
    return gr.Error(escape(str(error), quote=False), print_exception=False)
