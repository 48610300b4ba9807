r"""The bundled evaluator's CLIP: its networks, its contrastive loss and its training loop.

The loss is the supervised contrastive one on unit rows z with temperature τ: for an anchor i with
positives P(i), the mean over P(i) of `-log( exp(z_i·z_p/τ) / Σ_{k≠i} exp(z_i·z_k/τ) )`.

Positives are all pictures of the same concept, whoever drew them, and its captions. Of scenes the
only positive is a picture's own caption: others in the batch differ from it in one modifier; the
model is shown their plain things first, and by half as much weight it is not; it has to tell which
way up a thing stands by which of its plain pictures is nearer; and one linear head a kind of
modifier has to read it from either's row. The heads are not kept. The style head, in
`evaluator_styles.py`, is trained the other way round.

Reference: Khosla et al., "Supervised Contrastive Learning", 2020, https://arxiv.org/abs/2004.11362,
equation 2.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from bundled.base_loops import Step, cast, scale_lr, set_rate
from bundled.base_models import configure_text
from bundled.evaluator_data import Collection
from bundled.evaluator_scenes import Scenes
from bundled.modifiers import VALUES
from bundled.probe_training import sum_errors
from sdatoms.evaluation.introduction import correct_rows, see_from, weigh

__all__ = [
    "PICTURE_SIZE",
    "ModifierHeads",
    "blur",
    "build_clip",
    "contrast",
    "group_pictures",
    "make_view",
    "pick_pictures",
    "train_clip",
]

PICTURE_SIZE, PATCH, WIDTH, BLOCKS, ROW = 64, 8, 192, 6, 128
LESSON = 0.5
"""Weight of the heads' summed cross-entropies beside the contrastive losses."""


def build_clip(vocab_size: int) -> CLIPModel:
    text = configure_text(vocab_size)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        projection_dim=ROW,
        num_hidden_layers=BLOCKS,
        num_attention_heads=WIDTH // 64,
        hidden_act="gelu",  # one kernel where CLIP's own quick_gelu is three
        image_size=PICTURE_SIZE,
        patch_size=PATCH,
    )
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=ROW
    )
    # At 65 tokens plain matrix products are the fastest attention on a CPU.
    return CLIPModel._from_config(config, attn_implementation="eager")


class ModifierHeads(nn.Module):
    """Unit rows of pictures or captions `(n, 128)` → kind → logits, "none" first."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {kind: nn.Linear(ROW, len(own) + 1) for kind, own in VALUES.items()}
        )

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return {kind: head(rows * ROW**0.5) for kind, head in self.heads.items()}

    def measure(self, rows: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Sum over the kinds of the mean cross-entropy; `labels`: kind → classes `(n,)`."""
        return sum_errors(self(rows), labels)


def contrast(logits: Tensor, positive: Tensor, allowed: Tensor) -> Tensor:
    """Supervised contrastive loss, averaged over the anchors (rows) that have a positive.

    `logits (a, k)`; `positive` and `allowed` `(a, k)` bool: what attracts, and what the sum in the
    denominator runs over.
    """
    positive = positive & allowed
    scores = logits.masked_fill(~allowed, -torch.inf)
    scores = scores - scores.logsumexp(1, keepdim=True)
    count = positive.sum(1)
    has = count > 0
    return -(scores.masked_fill(~positive, 0).sum(1)[has] / count[has]).mean()


def pick_pictures(
    collection: Collection, by_concept: list[Tensor], count: int, generator: torch.Generator
) -> Tensor:
    """Indices of `2 · count` pictures: two vendors' of each of `count` concepts."""
    order = torch.randperm(len(by_concept), generator=generator)[:count].tolist()
    picks = []
    for k in order:
        found = by_concept[k]
        picks.append(found[torch.randperm(len(found), generator=generator)[:2]])
    return torch.cat(picks)


def make_view(x: Tensor, generator: torch.Generator) -> Tensor:
    """One augmented view of each picture `(n, 3, 64, 64)` in [0, 1].

    Turned by up to 6°, scaled by 0.9 to 1.1, moved by up to 4 px, mirrored half of the time; light,
    contrast and saturation changed by up to 7 %, since a palette tells who drew; blur, coarseness
    and noise such as an autoencoder leaves.
    """
    n = len(x)
    uniform = lambda low, high: low + (high - low) * torch.rand(n, generator=generator)
    angle, scale = uniform(-0.1, 0.1), uniform(0.91, 1.11)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack(
        [
            torch.stack([cos * mirror, -sin, uniform(-0.12, 0.12)], 1),
            torch.stack([sin * mirror, cos, uniform(-0.12, 0.12)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = 1 - F.grid_sample(1 - x, grid, align_corners=False)
    light, contrast, colour = (uniform(0.93, 1.07)[:, None, None, None] for _ in range(3))
    x = 1 - (1 - x) * contrast
    grey = x.mean(1, keepdim=True)
    x = (grey + (x - grey) * colour) * light
    soft = uniform(-1, 1).clamp(min=0)[:, None, None, None]
    x = x + (blur(x) - x) * soft
    coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = torch.where((uniform(0, 1) < 0.1)[:, None, None, None], coarse, x)
    noise = torch.randn(x.shape, generator=generator)
    x = x + noise * 0.04 * uniform(-1, 1).clamp(min=0)[:, None, None, None]
    return x.clamp(0, 1)


def blur(x: Tensor) -> Tensor:
    """A binomial 5×5 blur."""
    line = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = (line[:, None] * line).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)


def train_clip(
    model: CLIPModel,
    heads: ModifierHeads,
    optimizer: torch.optim.Optimizer,
    ema,
    collection: Collection,
    write_tokens,
    draw_scenes: Callable[[random.Random], Scenes],
    *,
    steps: int,
    start: int = 0,
    concepts_per_batch: int = 8,
    learning_rate: float = 1e-3,
    precision: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Iterator[Step]:
    """Fit image and text tower to a collection without held-out concepts.

    A batch is two vendors' pictures of each of `concepts_per_batch` concepts, and a caption a
    picture; `write_tokens(concept numbers, rng)` gives ids `(B, 32)`. Beside them it has scenes,
    `draw_scenes(rng)`, whose things the model is shown first (`sdatoms.evaluation.introduction`).
    """
    by_concept, warmup = group_pictures(collection), min(200, 1 + steps // 10)
    parameters = [*model.parameters(), *heads.parameters()]
    model.train()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rng = random.Random(seed * 1_000_003 + step)
        pick = pick_pictures(collection, by_concept, concepts_per_batch, generator)
        concept = collection.concept[pick]
        scenes = draw_scenes(rng)
        pictures = torch.cat([collection.pictures[pick], scenes.pictures])
        views = make_view(pictures.float() / 255, generator) * 2 - 1
        tokens = torch.cat([write_tokens(concept.tolist(), rng), scenes.words])
        lr = set_rate(optimizer, learning_rate * scale_lr(step, steps, warmup))
        with cast(precision):
            images = model.get_image_features(pixel_values=views).pooler_output
            texts = model.get_text_features(input_ids=tokens).pooler_output
            plain, names = embed_plain(model, scenes, generator)
        images, texts = F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)
        n = len(concept)
        known = correct_rows(images[n:], plain, names)
        seen, asked = see_from(known, names), see_from(texts[n:], names)
        loss = match_concepts(model.logit_scale, images[:n], texts[:n], concept)
        loss = loss + match_captions(model.logit_scale, seen, asked)
        loss = loss + match_captions(model.logit_scale, images[n:], texts[n:]) / 2
        lesson = heads.measure(F.normalize(known, dim=1), scenes.labels)
        lesson = lesson + heads.measure(texts[n:], scenes.labels)
        way_up = F.cross_entropy(weigh(images[n:], plain), scenes.labels["turned"])
        (loss + LESSON / 2 * lesson + LESSON * way_up).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        ema.step(parameters)
        yield Step(step + 1, float(loss.detach()), lr)


@torch.no_grad()
def embed_plain(
    model: CLIPModel, scenes: Scenes, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows of each scene's plain thing, upright and upside down, and of its captions: `(n, 2, d)`
    twice. Fixed, since what is learnt of scenes serves plain pictures too."""
    views = make_view(scenes.plain.flatten(0, 1).float() / 255, generator) * 2 - 1
    pictures = model.get_image_features(pixel_values=views).pooler_output
    names = model.get_text_features(input_ids=scenes.names.flatten(0, 1)).pooler_output
    rows = [F.normalize(found.float(), dim=1).unflatten(0, (-1, 2)) for found in (pictures, names)]
    return rows[0][scenes.things], rows[1][scenes.things]


def group_pictures(collection: Collection) -> list[Tensor]:
    """Indices of each concept's pictures."""
    return [(collection.concept == c).nonzero()[:, 0] for c in collection.concept.unique()]


def match_concepts(logit_scale: Tensor, images: Tensor, texts: Tensor, concept: Tensor) -> Tensor:
    """Pictures with pictures, pictures with captions and captions with pictures, at CLIP's learned
    temperature. `images (n, d)`, and `texts (n, d)` their captions."""
    scale = logit_scale.exp()
    same = concept[:, None] == concept
    apart = ~torch.eye(len(concept), dtype=torch.bool)
    among = contrast(scale * images @ images.T, same, apart)
    logits, everything = scale * images @ texts.T, torch.ones_like(same)
    return (among + contrast(logits, same, everything) + contrast(logits.T, same, everything)) / 2


def match_captions(logit_scale: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    """Scenes with their own captions and captions with their own scenes: `(n, d)` twice."""
    logits, own = logit_scale.exp() * images @ texts.T, torch.arange(len(images))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
