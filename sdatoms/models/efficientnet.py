"""EfficientNet-Lite0, under the state-dict names of the common PyTorch port of EfficientNet.

Inverted bottlenecks with depthwise convolutions, ReLU6, no squeeze-and-excite; convolutions are
padded as TensorFlow's "same" does, at stride 2 by one pixel less on the left and the top.

Reference: Tan and Le, "EfficientNet", https://arxiv.org/abs/1905.11946, table 1; the Lite variant:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "EfficientNetLite",
]

STAGES = (
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)
"""Expansion, channels, kernel side, stride of the first block, and blocks, of every stage."""
STEM, HEAD = 32, 1280


class EfficientNetLite(nn.Module):
    """`(B, 3, side, side)` normalized pictures → `(B, classes)` logits; trained at 224 px.

    Args:
        classes: of the linear head.
    """

    mean, spread = (0.498,) * 3, (0.502,) * 3
    """What its pictures are normalized by, of RGB on [0, 1]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._pad = SamePadding(3, 2)
        self._conv_stem = make_conv(3, STEM, 3, stride=2)
        self._bn0 = make_norm(STEM)
        blocks, before = [], STEM
        for expansion, after, side, stride, count in STAGES:
            for k in range(count):
                blocks.append(Bottleneck(before, after, expansion, side, 1 if k else stride))
                before = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = make_conv(before, HEAD, 1)
        self._bn1 = make_norm(HEAD)
        self._fc = nn.Linear(HEAD, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        return self._fc(self.embed(pictures))

    def embed(self, pictures: Tensor) -> Tensor:
        """What the head reads, `(B, 1280)`."""
        x = F.relu6(self._bn0(self._conv_stem(self._pad(pictures))))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


class Bottleneck(nn.Module):
    """Widen by 1×1, filter each channel, narrow by 1×1; a shortcut where nothing changes size."""

    def __init__(self, before: int, after: int, expansion: int, side: int, stride: int) -> None:
        super().__init__()
        wide = expansion * before
        self.expands, self.skips = expansion > 1, stride == 1 and before == after
        if self.expands:
            self._expand_conv = make_conv(before, wide, 1)
            self._bn0 = make_norm(wide)
        self._pad = SamePadding(side, stride)
        self._depthwise_conv = make_conv(wide, wide, side, stride=stride, groups=wide)
        self._bn1 = make_norm(wide)
        self._project_conv = make_conv(wide, after, 1)
        self._bn2 = make_norm(after)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(self._pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class SamePadding(nn.Module):
    """TensorFlow's "same" padding before a convolution without its own; one of stride 1 pads by
    itself. It is apart from the convolution so that another library may put its own there."""

    def __init__(self, side: int, step: int) -> None:
        super().__init__()
        self.side, self.step = side, step

    def forward(self, x: Tensor) -> Tensor:
        if self.step == 1:
            return x
        edges = []
        for length in (x.shape[-1], x.shape[-2]):
            short = max(0, (-(-length // self.step) - 1) * self.step + self.side - length)
            edges += [short // 2, short - short // 2]
        return F.pad(x, edges)


def make_conv(before: int, after: int, side: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = side // 2 if stride == 1 else 0
    return nn.Conv2d(before, after, side, stride, padding, groups=groups, bias=False)


def make_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
