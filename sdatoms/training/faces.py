"""Where a face is in a picture, by the detector that OpenCV brings, where OpenCV is at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from sdatoms.errors import AtomError

__all__ = [
    "check_detector",
    "find_face",
]

CASCADE = "haarcascade_frontalface_default.xml"
SIDE = 512
"""px of the longer side that faces are looked for in."""


def check_detector() -> Any:
    """The detector.

    Raises:
        AtomError: there is none.
    """
    try:
        import cv2  # pyright: ignore[reportMissingImports]

        detector = cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE)
    except (ImportError, AttributeError):
        detector = None
    if detector is None or detector.empty():
        raise AtomError(
            "--crop_style face needs a face detector, which is not at hand; pip install "
            "opencv-python-headless brings one"
        )
    return detector


def find_face(picture: Image.Image) -> tuple[float, float] | None:
    """The middle of the largest face, how far across and down in [0, 1]; None where no face is
    found.

    Raises:
        AtomError: there is no detector.
    """
    detector = check_detector()
    small = picture.convert("L")
    small.thumbnail((SIDE, SIDE))
    boxes = detector.detectMultiScale(np.asarray(small), 1.1, 5)
    if not len(boxes):
        return None
    left, top, width, height = max(boxes, key=lambda box: box[2] * box[3])
    across, down = (left + width / 2) / small.width, (top + height / 2) / small.height
    return float(across), float(down)
