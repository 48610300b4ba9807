"""The probe: a small net that says which modifiers a picture of a subject shows.

It sees the picture and, beside it, the plain subject: whether a thing is upside down, dyed, or
above another cannot be told without knowing the thing. The same convolutions look at the picture
and at the subject, whole and at half its size, upright and turned; how alike each patch of the
picture is to each of theirs is what the heads read beside the picture's own features. Each kind of
modifier has a head, with "none" first. It was trained on true scenes alone, by
`scripts/train_probe.py`, and its file says which kinds and values it knows.
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

LOOK, WIDTH = 64, 80


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
        self.look = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4),
            Residual(32),
            nn.Conv2d(32, LOOK, 4, stride=2, padding=1),
            nn.GroupNorm(8, LOOK),
            nn.SiLU(),
            Residual(LOOK),
        )
        likenesses = 2 * (8 * 8 + 4 * 4)
        self.read = nn.Sequential(
            nn.Conv2d(2 * LOOK + likenesses, WIDTH, 3, padding=1),
            nn.GroupNorm(8, WIDTH),
            nn.SiLU(),
            Residual(WIDTH),
            Residual(WIDTH),
        )
        pooled = 5 * WIDTH + LOOK
        self.norm = nn.LayerNorm(pooled)
        self.heads = nn.ModuleDict(
            {kind: nn.Linear(pooled, len(own) + 1) for kind, own in self.values.items()}
        )

    def forward(self, pictures: Tensor, references: Tensor) -> dict[str, Tensor]:
        turned = references.flip(-1, -2)
        seen, known, over = self.look(torch.cat([pictures, references, turned])).chunk(3)
        half = F.avg_pool2d(torch.cat([references, turned]), 2)
        small = self.look(half).chunk(2)
        alike = [compare(seen, other) for other in (known, over, *small)]
        x = self.read(torch.cat([seen, known, *alike], 1))
        quarters = F.adaptive_avg_pool2d(x, 2).flatten(1)
        pooled = torch.cat([quarters, x.amax((2, 3)), known.mean((2, 3))], -1)
        pooled = self.norm(pooled)
        return {kind: head(pooled) for kind, head in self.heads.items()}


def compare(seen: Tensor, known: Tensor) -> Tensor:
    """Cosines of every patch in `seen (n, c, h, w)` with every one in `known (n, c, k, l)`, as
    `(n, k·l, h, w)`."""
    a, b = F.normalize(seen.flatten(2), dim=1), F.normalize(known.flatten(2), dim=1)
    return (b.transpose(1, 2) @ a).unflatten(2, seen.shape[2:])


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
