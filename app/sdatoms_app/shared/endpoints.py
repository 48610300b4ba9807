"""Endpoints that are documented as widgets are, for what types of a signature do not tell.

A widget reads what it is sent in its own way: it makes text of numbers, and says nothing of what it
refuses. Values come here as they were sent, and are checked by the endpoint's signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.components.api_component import Api

from sdatoms_app.shared.messages import answer_errors

__all__ = [
    "add_endpoint",
]


def add_endpoint(
    endpoint: Callable[..., Any], takes: Mapping[str, Any], gives: Any, **waiting: Any
) -> None:
    """Add an endpoint under the function's name; call inside `gr.Blocks`.

    Args:
        takes: label → a widget that is not rendered, for each parameter in order.
        gives: a widget, or several, for what is returned.
        waiting: how calls wait for each other, as `gr.Button.click` takes it.
    """
    inputs = [Api(widget.value, widget.api_info(), label) for label, widget in takes.items()]
    gr.Button(visible=False).click(
        answer_errors(endpoint),
        inputs,
        gives,
        api_name=endpoint.__name__,
        api_description=" ".join((endpoint.__doc__ or "").split()),
        **waiting,
    )
