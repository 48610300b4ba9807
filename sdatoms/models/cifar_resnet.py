"""ResNets for 32×32 pictures, under the state-dict names of the well-known CIFAR-10 weights.

Three stages of n basic blocks at 16, 32 and 64 channels make `6n + 2` layers (ResNet-20, 32, 44,
56); shortcuts between stages skip every other pixel and pad channels with zeros ("option A"), so
they hold no weights.

Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition",
https://arxiv.org/abs/1512.03385, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "CifarResNet",
]


class CifarResNet(nn.Module):
    """`(B, 3, 32, 32)` normalized pictures → `(B, classes)` logits.

    Args:
        blocks: n, basic blocks in each stage.
        classes: of the linear head.
    """

    def __init__(self, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stack_blocks(blocks, 16, 16)
        self.layer2 = stack_blocks(blocks, 16, 32)
        self.layer3 = stack_blocks(blocks, 32, 64)
        self.linear = nn.Linear(64, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.bn1(self.conv1(pictures)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut; the first one halves the picture where it widens."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.padding = (1, 0) if before == after else (2, (after - before) // 2)
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            shortcut = torch.nn.functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return (y + shortcut).relu()


def stack_blocks(blocks: int, before: int, after: int) -> nn.Sequential:
    return nn.Sequential(*(BasicBlock(after if k else before, after) for k in range(blocks)))
