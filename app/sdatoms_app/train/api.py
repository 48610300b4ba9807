"""Pictures checked for programs, as the Train tab checks them.

Types are read from the signature, so this module keeps its annotations as objects.
"""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from sdatoms_app.shared.endpoints import add_endpoint
from sdatoms_app.shared.references import find_upload
from sdatoms_app.train.page import TrainPage

__all__ = [
    "build_train_api",
]


def build_train_api(page: TrainPage, shown: Sequence[Any]) -> None:
    """Add the endpoint; call inside `gr.Blocks`.

    Args:
        shown: the upload of the page, and what `PicturesPart.check_files` fills.
    """

    def check_pictures(files: list[FileData] | None, token: str = "") -> list[Any]:
        """Check pictures and keep them in a draft; captions are .txt files of the same names."""
        return [None, *page.check_files([find_upload(file) for file in files or []], token)]

    takes = {
        "files": gr.File(file_count="multiple", render=False),
        "token": gr.Textbox("", render=False),
    }
    add_endpoint(check_pictures, takes, [*shown])
