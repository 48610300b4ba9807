"""What the bundled evaluator finds among concepts that it has never seen; shares in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image

from bundled.base_export import to_pictures
from bundled.evaluator_data import VENDORS, Collection
from bundled.evaluator_models import make_view
from sdatoms.evaluation.evaluator import Evaluator

__all__ = ["score_concepts", "score_pictures", "score_vendors"]


def score_concepts(
    evaluator: Evaluator, held: Collection, everything: Collection
) -> dict[str, float]:
    """What the concept side finds among held-out concepts; shares in [0, 1]."""
    seen = evaluator.embed_concepts(show_pictures(held))
    numbers, own = held.concept.unique(return_inverse=True)
    texts = evaluator.embed_texts([everything.concepts[c].name for c in numbers])
    named = (texts @ seen.T).argmax(0) == own
    return {
        "concept_across_vendors": score_across(seen, held),
        "concept_by_name": float(named.float().mean()),
    }


def score_pictures(evaluator: Evaluator, held: Collection) -> float:
    """How often an augmented view of a picture finds it again, by the embedding's first half."""
    seen = evaluator.embed_styles(show_pictures(held))
    generator = torch.Generator().manual_seed(0)
    views = make_view(held.pictures.float() / 255, generator) * 2 - 1
    again = evaluator.embed_styles(to_pictures(views))
    half = seen.shape[1] // 2
    found = (again[:, :half] @ seen[:, :half].T).argmax(1) == torch.arange(len(seen))
    return float(found.float().mean())


def score_vendors(evaluator: Evaluator, held: Collection, everything: Collection) -> float:
    """How often a picture's vendor is found, by the embedding's second half."""
    vendor = find_vendor(evaluator, everything, evaluator.embed_styles(show_pictures(held)))
    return float((vendor == held.vendor).float().mean())


def score_across(seen: torch.Tensor, held: Collection) -> float:
    """For each picture and each other vendor: is that vendor's nearest picture of the same
    concept?"""
    hits = []
    for v in range(len(VENDORS)):
        there = held.vendor == v
        ask = (held.vendor != v) & torch.isin(held.concept, held.concept[there])
        nearest = (seen[ask] @ seen[there].T).argmax(1)
        hits.append(held.concept[there][nearest] == held.concept[ask])
    return float(torch.cat(hits).float().mean())


def find_vendor(evaluator: Evaluator, everything: Collection, seen: torch.Tensor) -> torch.Tensor:
    """The vendor whose mean drawing style, over up to 200 pictures trained on, is nearest to each
    row: by the second half of the embedding."""
    shown = everything.take(~everything.held_out)
    means = []
    for v in range(len(VENDORS)):
        own = (shown.vendor == v).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(v))[:200]]
        mask = torch.zeros(len(shown.vendor), dtype=torch.bool)
        mask[own] = True
        means.append(evaluator.embed_styles(show_pictures(shown.take(mask))).mean(0))
    means, half = torch.stack(means), seen.shape[1] // 2
    return (seen[:, half:] @ F.normalize(means[:, half:], dim=1).T).argmax(1)


def show_pictures(collection: Collection) -> list[Image.Image]:
    return to_pictures(collection.pictures.float() / 127.5 - 1)
