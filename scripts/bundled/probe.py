"""The probe: a small net that says which modifiers a picture shows, trained on true scenes alone.

It sees the picture and, beside it, the plain subject: whether a thing is upside down, dyed, or
above another cannot be told without knowing the thing. Both go through the same convolutions to 64
patches each; a transformer compares them, and each kind of modifier has a head, with "none" first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bundled.modifiers import KINDS, VALUES, Scene

__all__ = ["Probe", "find_modifiers", "label", "load_probe", "save_probe", "show_on_white"]

WIDTH, LAYERS = 96, 2


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Probe(nn.Module):
    """Pictures and references `(n, 3, 64, 64)` on [-1, 1] → kind → logits `(n, values + 1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(3, 24, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(24, 48, 4, stride=2, padding=1),
            nn.GroupNorm(8, 48),
            nn.GELU(),
            Residual(48),
            nn.Conv2d(48, WIDTH, 4, stride=2, padding=1),
            nn.GroupNorm(8, WIDTH),
            Residual(WIDTH),
        )
        self.where = nn.Parameter(0.02 * torch.randn(2 * 64, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.compare = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.heads = nn.ModuleDict(
            {kind: nn.Linear(2 * WIDTH, len(VALUES[kind]) + 1) for kind in KINDS}
        )

    def forward(self, pictures: Tensor, references: Tensor) -> dict[str, Tensor]:
        maps = self.look(torch.cat([pictures, references]))
        seen, known = maps.flatten(2).transpose(1, 2).chunk(2)
        patches = self.compare(torch.cat([seen, known], 1) + self.where)[:, :64]
        pooled = self.norm(torch.cat([patches.mean(1), patches.amax(1)], -1))
        return {kind: head(pooled) for kind, head in self.heads.items()}


def label(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Kind → class of each scene, 0 where it adds nothing of the kind."""
    labels = {kind: torch.zeros(len(scenes), dtype=torch.long) for kind in KINDS}
    for i, scene in enumerate(scenes):
        for kind, value in scene.modifiers:
            labels[kind][i] = VALUES[kind].index(value) + 1
    return labels


@torch.no_grad()
def find_modifiers(
    probe: Probe, pictures: Tensor, references: Tensor, batch_size: int = 64
) -> dict[str, list]:
    """Kind → the value that each picture shows, None where it shows none of the kind."""
    found: dict[str, list] = {kind: [] for kind in KINDS}
    for x, y in zip(pictures.split(batch_size), references.split(batch_size), strict=True):
        for kind, logits in probe.eval()(x, y).items():
            found[kind] += [(None, *VALUES[kind])[i] for i in logits.argmax(1).tolist()]
    return found


def save_probe(probe: Probe, path: Path) -> None:
    """Write the weights in float16."""
    save_file({name: tensor.half() for name, tensor in probe.state_dict().items()}, path)


def load_probe(path: Path) -> Probe:
    probe = Probe()
    probe.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return probe.eval()


def show_on_white(picture: Image.Image) -> Image.Image:
    """The reference of a subject: its own picture (RGBA) on white."""
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return canvas.convert("RGB")
