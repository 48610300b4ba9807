"""CLIP and DINOv2 by short names: the hub's local cache first, so that nothing is asked for twice.

`clip` is a CLIP model, `dinov2` a DINOv2 model; of each, the first of a few well-known ones that
the cache holds whole, else the first of all, which the hub is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "NAMED",
    "advise_on_absence",
    "choose_models",
    "find_cached",
]

NAMED = {
    "clip": (
        "openai/clip-vit-large-patch14",
        "openai/clip-vit-base-patch16",
        "openai/clip-vit-base-patch32",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ),
    "dinov2": ("facebook/dinov2-base", "facebook/dinov2-small", "facebook/dinov2-large"),
}
"""Short name → hub ids; the hub is asked for the first where its cache holds none."""
NEEDED = ("config.json", "preprocessor_config.json", "model.safetensors")
"""Files of a model that is whole; weights in pickles are not read."""


def find_cached(ids: Sequence[str]) -> Path | None:
    """The folder of the first of these models that the hub's local cache holds whole, or None."""
    from huggingface_hub import try_to_load_from_cache

    for id in ids:
        found = [try_to_load_from_cache(id, name) for name in NEEDED]
        paths = [Path(path) for path in found if isinstance(path, str)]
        if len(paths) == len(NEEDED):
            return paths[0].parent
    return None


def choose_models(name: str | None, style: str | None) -> tuple[str | None, str | None]:
    """Where the CLIP model and what sees style lie: folders or hub ids, for the names given.

    A folder called like a short name comes before it. `dinov2` as the evaluator is a CLIP model for
    words with DINOv2 for style; `clip` takes DINOv2 too where the cache holds it, else its own
    picture embeddings see style.
    """
    if is_short(name) and style is None:
        cached = find_cached(NAMED["dinov2"])
        style = "dinov2" if name == "dinov2" or cached else "clip"
    if is_short(name):
        name = "clip"
    return find_model(name), find_model(style)


def is_short(name: str | None) -> bool:
    return name in NAMED and not Path(str(name)).exists()


def find_model(name: str | None) -> str | None:
    if name is None or not is_short(name):
        return name
    return str(find_cached(NAMED[name]) or NAMED[name][0])


def advise_on_absence(where: str) -> str:
    """What would make a model of a short name open where the hub cannot be asked."""
    if not any(where in ids for ids in NAMED.values()):
        return ""
    return (
        f"; the hub's local cache does not hold it: run `hf download {where}` where there is a "
        "network, or name a folder"
    )
