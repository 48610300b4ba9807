"""One pipeline, one lock: paints a picture with the base and with atoms, from the same seed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdatoms import AtomError, load_atoms
from sdatoms.pipeline import SCHEDULERS, load_base, paint
from sdatoms_app.library import Library

__all__ = ["Painted", "Studio"]

MAX_STEPS = 100
MAX_PROMPT = 2000


@dataclass(frozen=True)
class Painted:
    """The same seed without and with atoms; `adapted` is None when none were chosen."""

    base: Image.Image
    adapted: Image.Image | None
    seconds: float
    paths: tuple[Path, ...]


class Studio:
    """Holds the pipeline, opened on first use and shared by all visitors one at a time."""

    def __init__(self, base: str | None, library: Library, outputs: Path) -> None:
        self.base = base
        self.library = library
        self.outputs = outputs
        self._pipe: Any = None
        self._lock = threading.Lock()

    def open(self) -> Any:
        """The pipeline; the first call reads it from disk."""
        if self._pipe is None:
            self._pipe = load_base(self.base)
        return self._pipe

    def paint(
        self,
        prompt: str,
        *,
        negative_prompt: str,
        seed: int,
        num_inference_steps: int,
        guidance_scale: float,
        scheduler: str,
        strengths: Mapping[str, float],
        callback: Callable[[int, int], None] | None = None,
    ) -> Painted:
        """Paint base and adapted picture and keep both as PNGs that carry their recipe.

        Raises:
            AtomError: the prompt is empty or too long, a number is out of range, a file is not
            listed or does
                not fit the base. The pipeline is left as the base.
        """
        if not prompt.strip() or len(prompt) > MAX_PROMPT:
            raise AtomError(
                f"the prompt has {len(prompt.strip())} characters; it takes 1 to {MAX_PROMPT}"
            )
        if not 1 <= num_inference_steps <= MAX_STEPS:
            raise AtomError(f"steps are {num_inference_steps}; they take 1 to {MAX_STEPS}")
        if scheduler not in SCHEDULERS:
            raise AtomError(f"the scheduler is none of {', '.join(SCHEDULERS)}")
        entries = {id: self.library.find(id) for id in strengths}
        began = time.time()
        passes = 2 if entries else 1
        done = 0

        def tell(step: int, total: int) -> None:
            if callback:
                callback(done * total + step, passes * total)

        settings: dict[str, Any] = {
            "negative_prompt": negative_prompt or None,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "scheduler": scheduler,
            "callback": tell,
        }
        with self._lock:
            pipe = self.open()
            base = paint(pipe, [prompt], [seed], **settings)[0]
            done, adapted = 1, None
            if entries:
                adapters = None
                try:
                    for id, entry in entries.items():
                        adapters = load_atoms(pipe, entry.path, name=id, strength=strengths[id])
                    adapted = paint(pipe, [prompt], [seed], **settings)[0]
                finally:
                    if adapters is not None:
                        adapters.clear()
        recipe = {k: v for k, v in settings.items() if k != "callback"} | {
            "prompt": prompt,
            "seed": seed,
        }
        paths = [self._keep(base, recipe)]
        if adapted is not None:
            paths.append(self._keep(adapted, recipe | {"atoms": dict(strengths)}))
        return Painted(base, adapted, time.time() - began, tuple(paths))

    def _keep(self, picture: Image.Image, recipe: dict[str, Any]) -> Path:
        self.outputs.mkdir(parents=True, exist_ok=True)
        info = PngInfo()
        info.add_text("sdatoms", json.dumps(recipe))
        path = self.outputs / f"{time.time_ns()}.png"
        picture.save(path, pnginfo=info)
        return path
