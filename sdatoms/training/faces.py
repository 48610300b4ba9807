"""Where a face is in a picture, by a detector that is at hand.

That is an object detection model of transformers, or the cascade that OpenCV brought before its
version 5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from sdatoms.errors import AtomError, first_line
from sdatoms.storage import reach_hub

__all__ = [
    "Point",
    "load_detector",
]

CASCADE = "haarcascade_frontalface_default.xml"
SIDE = 512
"""px of the longer side that the cascade looks for faces in."""

Point = tuple[float, float]
"""How far across and down a picture, in [0, 1]."""
Detect = Callable[[Image.Image], Point | None]


@lru_cache(maxsize=1)
def load_detector(name: str | None) -> Detect:
    """A function from a picture to the middle of its largest face; None where no face is found.

    Args:
        name: hub id or folder of a detection model; OpenCV's cascade when not given.

    Raises:
        AtomError: there is no detector.
    """
    return load_model(name) if name else load_cascade()


def load_model(name: str) -> Detect:
    from transformers import pipeline

    try:
        with reach_hub(name):
            parts: Any = pipeline(
                "object-detection",
                model=name,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
    except Exception as error:  # the hub, files and configurations fail in many ways
        raise AtomError(
            f"--face_detector {name!r} cannot be loaded: {first_line(error, 120)}; it takes the "
            "folder or hub id of an object detection model of transformers"
        ) from None
    labels = [str(label).lower() for label in parts.model.config.id2label.values()]
    wanted = next((word for word in ("face", "person") if any(word in n for n in labels)), "")

    def detect(picture: Image.Image) -> Point | None:
        boxes = [p["box"] for p in parts(picture) if wanted in str(p["label"]).lower()]
        found = [(b["xmin"], b["ymin"], b["xmax"], b["ymax"]) for b in boxes]
        return find_middle(found, picture.size)

    return detect


def load_cascade() -> Detect:
    try:
        import cv2  # pyright: ignore[reportMissingImports]

        cascade = cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE)
    except (ImportError, AttributeError):
        cascade = None
    if cascade is None or cascade.empty():
        raise AtomError(
            "--crop_style face needs a face detector, and none is at hand; name an object "
            "detection model of transformers as --face_detector, or pip install "
            '"opencv-python-headless<5"'
        )

    def detect(picture: Image.Image) -> Point | None:
        small = picture.convert("L")
        small.thumbnail((SIDE, SIDE))
        boxes = cascade.detectMultiScale(np.asarray(small), 1.1, 5)
        return find_middle([(x, y, x + w, y + h) for x, y, w, h in boxes], small.size)

    return detect


def find_middle(
    boxes: list[tuple[float, float, float, float]], size: tuple[int, int]
) -> Point | None:
    """The middle of the largest of some boxes (left, top, right, bottom)."""
    if not boxes:
        return None
    left, top, right, bottom = max(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
    return float((left + right) / 2 / size[0]), float((top + bottom) / 2 / size[1])
