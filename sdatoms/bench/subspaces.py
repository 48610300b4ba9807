"""Two trials of what else a filter subspace may be, as rows of the benchmark; no file holds them.

Both add to a weight, read as a matrix of whole output filters `X (o, i·h·w)`, a change of low rank
whose frozen sides are random orthonormal columns from a fixed seed, and start at zero:

- `filters`: `ΔX = U D`, with `U (o, m)` frozen and the m atoms `D (m, i·h·w)` trained, each a whole
  filter: it chooses what it reacts to, and not where it writes;
- `map`: `ΔX = s U M Vᵀ`, with `U (o, m)` and `V (i·h·w, m)` frozen, the map `M (m, m)` trained, and
  `s = ‖X‖_F / √min(o, i·h·w)`: it chooses neither.

References: equation 2 of https://arxiv.org/abs/2403.00269, with whole filters for its spatial ones;
LoRA-XS (Bałazy et al. 2024, https://arxiv.org/abs/2405.17604) for the map.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Form", "SubspaceChange"]

Form = Literal["filters", "map"]


class SubspaceChange(nn.Module):
    """A weight → the weight and its change.

    Args:
        size: m; the smaller side of the weight where that is less.
    """

    outputs: Tensor
    inputs: Tensor

    def __init__(self, weight: Tensor, form: Form, size: int) -> None:
        super().__init__()
        rows, columns = weight.detach().flatten(1).shape
        size, device = min(size, rows, columns), weight.device
        generator = torch.Generator().manual_seed(0)
        draw = lambda side: torch.linalg.qr(torch.randn(side, size, generator=generator))[0]
        outputs, self.form = draw(rows).to(device), form
        if form == "filters":
            self.trained = nn.Parameter(torch.zeros(size, columns, device=device))
        else:
            outputs = outputs * (weight.detach().norm() / min(rows, columns) ** 0.5)
            self.register_buffer("inputs", draw(columns).to(device), persistent=False)
            self.trained = nn.Parameter(torch.zeros(size, size, device=device))
        self.register_buffer("outputs", outputs, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        right = self.trained if self.form == "filters" else self.trained @ self.inputs.T
        return weight + (self.outputs @ right).view(weight.shape)
