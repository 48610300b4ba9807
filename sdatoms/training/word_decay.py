r"""Decay of shared atoms towards silence, the faster the louder other words are.

Atoms `d (p,)` of the layers that read the prompt multiply a text encoder's output `x (p,)`. Trained
on a few pictures they come to read what those pictures have in common and other prompts say too: a
colour learnt for a cupcake then comes out in a clock. Decay in Euclid's metric shrinks all they
read alike; this one shrinks it by what it costs, the mean square of what an atom reads in other
words, `E = dᵀ C d` with C the mean of `x xᵀ` over them. With C's mean eigenvalue set to 1, every
optimizer step at rate η is followed by

    d ← (I + η λ C)⁻¹ d,

the proximal step of `λ E / 2`: exact, stable for every rate, and nothing where C is nothing. The
drawn atoms start from `(I + C)⁻¹ d`, together of the norm they had, or the first steps would learn
what is then forgotten.

AdamW's own decay is the same with C = I and a step of the gradient: Loshchilov, Hutter,
"Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101. That the curvature of
what must be kept sets each direction's decay: Kirkpatrick et al., "Elastic weight consolidation",
https://arxiv.org/abs/1612.00796; C is the curvature here in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.errors import AtomError

__all__ = ["WordDecay"]


class WordDecay:
    """The decay of some atoms `(r, p)`, in place.

    Args:
        others: C, `(p, p)`, in any unit.
        strength: λ, from 0.
        atoms: at least one tensor, all on one device, where the decay is worked out.

    Raises:
        AtomError: atoms are longer or shorter than what is read.

    Attributes:
        loudness: C's eigenvalues, `(p,)`, with a mean of 1.
        directions: its eigenvectors, `(p, p)`, by columns.
    """

    def __init__(self, others: Tensor, strength: float, atoms: Sequence[nn.Parameter]) -> None:
        for tensor in atoms:
            if tensor.shape[1] != len(others):
                raise AtomError(
                    f"--word_decay: shared atoms read {tensor.shape[1]} numbers, and the text "
                    f"encoder says {len(others)}"
                )
        values, directions = torch.linalg.eigh(others.double())
        values = values.clamp(min=0)
        mean = values.mean()
        self.strength, self.atoms = strength, list(atoms)
        self.loudness = (values / mean if mean > 0 else values).to(atoms[0])
        self.directions = directions.to(atoms[0])

    @torch.no_grad()
    def start(self) -> None:
        """Turn atoms as they were drawn away from other words; their common norm stays."""
        for atoms in self.atoms:
            quiet = self.shrink(atoms, 1.0)
            atoms.copy_(quiet * (atoms.norm() / quiet.norm()))

    @torch.no_grad()
    def decay(self, rate: float, atoms: Tensor) -> None:
        """What follows one optimizer step at a rate."""
        atoms.copy_(self.shrink(atoms, rate * self.strength))

    def shrink(self, atoms: Tensor, times: float) -> Tensor:
        """`(I + times · C)⁻¹ d` of each row d, as d less what goes: nothing is rounded where
        nothing goes."""
        gone = times * self.loudness / (1 + times * self.loudness)
        return atoms - (atoms @ self.directions * gone) @ self.directions.mT

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Decay after every step the optimizer takes from now on, at its rate of then."""
        held = {id(atoms) for atoms in self.atoms}

        def decay(taken: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            for group in taken.param_groups:
                rate = group["lr"] * group.get("d", 1.0)  # d: Prodigy's own estimate
                for parameter in group["params"]:
                    if id(parameter) in held:
                        self.decay(rate, parameter)

        optimizer.register_step_post_hook(decay)
