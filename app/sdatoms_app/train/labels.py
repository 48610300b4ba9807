"""The operator's models that caption and mask pictures, loaded when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from PIL import Image

from sdatoms import AtomError

__all__ = [
    "Labels",
]


class Labels:
    """Models by hub name or folder, kept once loaded.

    Args:
        models: `captioner` and `segmenter`, as far as the operator named them.
    """

    def __init__(self, models: Mapping[str, str]) -> None:
        self.models = models
        self.captioner: Callable[[Image.Image], str] | None = None

    def find(self, kind: str) -> str:
        """The model's name.

        Raises:
            AtomError: the operator named none.
        """
        if kind not in self.models:
            raise AtomError(
                f"this server has no model for that; start it with sdatoms ui --{kind} NAME, or "
                f"use sdatoms {'caption' if kind == 'captioner' else 'mask'} on a folder"
            )
        return self.models[kind]

    def load_captioner(self) -> Callable[[Image.Image], str]:
        """A function from a picture to its caption.

        Raises:
            AtomError: there is no model, or it cannot be loaded.
        """
        if self.captioner is None:
            name = self.find("captioner")
            from sdatoms.training.captioners import load_captioner

            self.captioner = load_captioner(name)
        return self.captioner

    def load_segmenter(self, subject: str) -> Callable[[Image.Image], Image.Image]:
        """A function from a picture to its mask.

        Args:
            subject: what to look for, in words.

        Raises:
            AtomError: there is no model, or it cannot be loaded.
        """
        name = self.find("segmenter")
        from sdatoms.training.captioners import load_segmenter

        return load_segmenter(name, subject=subject.strip()[:200] or None)
