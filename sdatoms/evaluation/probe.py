"""The probe: a small net that says which modifiers a picture of a subject shows.

It sees the picture and, beside it, the plain subject: whether a thing is upside down, dyed, or
above another cannot be told without knowing the thing. The same convolutions look at the picture
and at the subject, upright and turned; what the heads read beside the picture's own features is how
alike each patch of the picture is to each of theirs, and how well the whole subject fits at each
place, in the sizes that scenes have. Each kind of modifier has a head, with "none" first. It was
trained on true scenes alone, by `scripts/train_probe.py`, and its file says which kinds and values
it knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sdatoms.errors import AtomError, first_line
from sdatoms.storage import find_assets, write_whole

__all__ = ["Probe", "find_modifiers", "load_probe", "save_probe"]

FINE, FIT, LOOK, WIDTH = 32, 8, 64, 80
SIDES = (22, 16, 14, 12, 11, 8, 6)
"""Sides of a subject in scenes, from big to tiny, in cells of 4 px."""


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Probe(nn.Module):
    """Pictures and references `(n, 3, 64, 64)` on [-1, 1] → kind → logits `(n, values + 1)`."""

    def __init__(self, values: Mapping[str, Sequence[str | int]]) -> None:
        """`values`: kind of modifier → the values it may have."""
        super().__init__()
        self.values = {kind: tuple(own) for kind, own in values.items()}
        self.glance = nn.Sequential(nn.Conv2d(3, FINE, 4, stride=4), Residual(FINE))
        self.look = nn.Sequential(
            nn.Conv2d(FINE, LOOK, 4, stride=2, padding=1),
            nn.GroupNorm(8, LOOK),
            nn.SiLU(),
            Residual(LOOK),
        )
        self.mark = nn.Conv2d(FINE, FIT, 1)
        likenesses, fits = 2 * 8 * 8, 2 * len(SIDES)
        self.read = nn.Sequential(
            nn.Conv2d(2 * LOOK + likenesses + fits, WIDTH, 3, padding=1),
            nn.GroupNorm(8, WIDTH),
            nn.SiLU(),
            Residual(WIDTH),
            Residual(WIDTH),
        )
        pooled = 5 * WIDTH + LOOK
        self.norm = nn.LayerNorm(pooled)
        self.judge = nn.Sequential(nn.Linear(pooled + fits + 1, 160), nn.SiLU())
        self.heads = nn.ModuleDict(
            {kind: nn.Linear(160, len(own) + 1) for kind, own in self.values.items()}
        )

    def forward(self, pictures: Tensor, references: Tensor) -> dict[str, Tensor]:
        fine = self.glance(torch.cat([pictures, references, references.flip(-1, -2)]))
        seen, known, over = self.look(fine).chunk(3)
        alike = [compare(seen, other) for other in (known, over)]
        drawn, upright, turned = self.mark(fine).chunk(3)
        fits = fit(drawn, upright, turned, find_outline(references))
        x = self.read(torch.cat([seen, known, *alike, F.adaptive_max_pool2d(fits, 8)], 1))
        quarters = F.adaptive_avg_pool2d(x, 2).flatten(1)
        pooled = self.norm(torch.cat([quarters, x.amax((2, 3)), known.mean((2, 3))], -1))
        best = fits.amax((2, 3)).chunk(2, -1)
        better = best[0].amax(-1, keepdim=True) - best[1].amax(-1, keepdim=True)
        judged = self.judge(torch.cat([pooled, *(4 * b for b in best), 10 * better], -1))
        return {kind: head(judged) for kind, head in self.heads.items()}


def compare(seen: Tensor, known: Tensor) -> Tensor:
    """Cosines of every patch in `seen (n, c, h, w)` with every one in `known (n, c, k, l)`, as
    `(n, k·l, h, w)`."""
    a, b = F.normalize(seen.flatten(2), dim=1), F.normalize(known.flatten(2), dim=1)
    return (b.transpose(1, 2) @ a).unflatten(2, seen.shape[2:])


def find_outline(references: Tensor) -> Tensor:
    """Where the subject stands on its white picture: share of each cell, `(n, 1, 16, 16)`."""
    return F.avg_pool2d((references.amin(1, keepdim=True) < 0.96).float(), 4)


def fit(seen: Tensor, known: Tensor, over: Tensor, outline: Tensor) -> Tensor:
    """Mean cosine of the subject's cells with those they come to lie on, for each of `SIDES`,
    upright and turned, with its centre at each place: `(n, 2 · sides, 16, 16)`.

    By the correlation theorem, in twice the picture's side: no size wraps round to where it is
    read.
    """
    side, room = seen.shape[-1], 2 * seen.shape[-1]
    seen = F.normalize(seen.float(), dim=1)
    window = torch.fft.rfft2(seen, s=(room, room)).conj()
    fits = []
    for cells, mask in ((known, outline), (over, outline.flip(-1, -2))):
        template = F.normalize(cells.float(), dim=1) * mask
        for size in SIDES:
            small = F.interpolate(template, (size, size), mode="bilinear", antialias=True)
            weight = F.interpolate(mask, (size, size), mode="bilinear", antialias=True)
            found = torch.fft.irfft2(
                (window * torch.fft.rfft2(small, s=(room, room))).sum(1), s=(room, room)
            )
            # the value at lag -p is that of a corner at p: move it to where the centre lies
            found = found.flip(-1, -2).roll((1 + size // 2,) * 2, (-1, -2))
            fits.append(found[:, :side, :side] / weight.sum((1, 2, 3))[:, None, None].clamp(min=1))
    return torch.stack(fits, 1)


@torch.no_grad()
def find_modifiers(
    probe: Probe, pictures: Tensor, references: Tensor, batch_size: int = 64
) -> dict[str, list]:
    """Kind → the value that each picture shows, None where it shows none of the kind.

    Args:
        pictures: `(n, 3, 64, 64)` on [-1, 1].
        references: the plain subject of each, on white, of the same shape.
    """
    found: dict[str, list] = {kind: [] for kind in probe.values}
    for x, y in zip(pictures.split(batch_size), references.split(batch_size), strict=True):
        for kind, logits in probe.eval()(x, y).items():
            found[kind] += [(None, *probe.values[kind])[i] for i in logits.argmax(1).tolist()]
    return found


def save_probe(probe: Probe, path: Path) -> None:
    """Write the weights in float16, and the values beside them."""
    tensors = {name: tensor.half() for name, tensor in probe.state_dict().items()}
    write_whole(path, save(tensors, metadata={"values": json.dumps(probe.values)}))


def load_probe(path: Path | None = None) -> Probe:
    """Open a probe's file; None: the bundled one.

    Raises:
        AtomError: the file is missing or is no probe's.
    """
    path = path or find_assets() / "emoji-probe" / "probe.safetensors"
    try:
        with safe_open(path, "pt") as file:
            probe = Probe(json.loads((file.metadata() or {})["values"]))
            probe.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})
    except Exception as error:  # safetensors has an error class of its own for broken files
        raise AtomError(f"the probe {str(path)!r} cannot be read: {first_line(error)}") from None
    return probe.eval()
