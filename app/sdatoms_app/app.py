"""Build the app and serve it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

os.environ.setdefault(
    "GRADIO_ANALYTICS_ENABLED", "False"
)  # before gradio is imported: no request leaves

import gradio as gr
from gradio import themes

from sdatoms import AtomError
from sdatoms_app.atoms_tab import build_atoms_tab
from sdatoms_app.generate_tab import build_generate_tab
from sdatoms_app.library import MAX_UPLOAD_BYTES, Library
from sdatoms_app.runs_tab import build_runs_tab
from sdatoms_app.studio import Studio
from sdatoms_app.train_tab import build_train_tab

__all__ = ["build_app", "find_port", "serve"]

# small pictures fill their frame
STYLE = ".picture img {width: 100%; height: 100%; object-fit: contain; image-rendering: auto}"

THEME = themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_app(studio: Studio) -> gr.Blocks:
    """The whole app over one studio."""
    with gr.Blocks(title="sdatoms", analytics_enabled=False) as app:
        gr.Markdown("# sdatoms\nPaint with filter atoms: the same seed without and with them.")
        with gr.Tab("Generate"):
            build_generate_tab(studio)
        with gr.Tab("Train"):
            form = build_train_tab(studio)
        with gr.Tab("Runs"):
            build_runs_tab(studio, form)
        with gr.Tab("Atoms"):
            build_atoms_tab(studio)
    app.queue(max_size=32)
    return app


def find_port() -> int:
    """A port that is free now on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(*, base: str | None, adapters_dir: Path, outputs_dir: Path, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        AtomError: the port is taken.
    """
    studio = Studio(base, Library(adapters_dir), outputs_dir)
    studio.open()
    try:
        build_app(studio).launch(
            server_name=host,
            server_port=port or find_port(),
            theme=THEME,
            css=STYLE,
            max_file_size=MAX_UPLOAD_BYTES,
            footer_links=["api"],
            show_error=True,
        )
    except OSError as error:
        raise AtomError(f"the app cannot listen on {host}:{port}: {error}") from None
