"""Validation loss: the denoising error on pictures held back, at noise and timesteps that stay.

It needs no evaluator, no network and no picture painted. The plain squared error of the base's own
prediction is taken, without the run's weights, offsets and biases, so that runs with other settings
compare; it falls while what is learnt holds for pictures not seen, and rises when the pictures seen
are learnt by heart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import torch

from sdatoms.training.batches import Batch
from sdatoms.training.checkpoints import read_rng, restore_rng
from sdatoms.training.denoising import Denoising
from sdatoms.training.encodings import Encoded
from sdatoms.training.sampling import hold_output
from sdatoms.training.trainer import Trainer, choose_attention

__all__ = [
    "DRAWS",
    "ValidationLoss",
    "draw_fixed_batches",
]

DRAWS = 8
"""Noises for each picture, at timesteps spread evenly over the schedule."""


class ValidationLoss:
    """Measures one run on the pictures it holds back.

    Args:
        rows: these pictures, encoded.
        seed: of the noise.
    """

    def __init__(self, trainer: Trainer, rows: Sequence[Encoded], seed: int) -> None:
        self.trainer, self.rows, self.seed = trainer, rows, seed
        config = trainer.config
        self.denoising = Denoising(
            trainer.pipe.scheduler.config,
            unmasked_weight=config.unmasked_weight,
            normalize_masked_area_loss=config.normalize_masked_area_loss,
            rescale_betas_zero_snr=config.rescale_betas_zero_snr,
        )

    @torch.no_grad()
    def measure(self, base: bool = False) -> float:
        """The mean error of the atoms that a file would hold now, or of the untouched base.

        Atoms, optimizer and generators are afterwards what they were.
        """
        trainer, device = self.trainer, self.trainer.device
        tensors = {} if base else trainer.pack(trainer.output()).tensors
        total, count, rng = 0.0, 0, read_rng()
        try:
            with hold_output(trainer, tensors):
                for batch in self.draw():
                    latents, noise, t = (
                        tensor.to(device)
                        for tensor in (batch.latents, batch.noise, batch.timesteps)
                    )
                    noisy = self.denoising.mix(latents, noise, t)
                    with choose_attention(device), trainer.accelerator.autocast():
                        condition = trainer.data.condition(batch)
                        predicted = trainer.predict(trainer.pipe.unet, noisy, batch, condition)
                    target = self.denoising.target(latents, noise, t)
                    mask = None if batch.mask is None else batch.mask.to(device)
                    errors = self.denoising.error(predicted, target, t, mask)
                    total += float(errors.double().sum())
                    count += len(errors)
        finally:
            restore_rng(rng)
        return total / count

    def draw(self) -> Iterator[Batch]:
        """The same batches at every measurement."""
        size = self.trainer.config.train_batch_size
        return draw_fixed_batches(self.rows, self.denoising.num_timesteps, self.seed, size)

    def describe(self) -> dict[str, Any]:
        """What two measurements must have in common to be compared."""
        digest = sha256(repr([(row.name, row.prompt) for row in self.rows]).encode())
        for row in self.rows:
            digest.update(row.mean.contiguous().numpy().tobytes())
        return {"pictures": digest.hexdigest(), "seed": self.seed, "draws": DRAWS}


def draw_fixed_batches(
    rows: Sequence[Encoded], num_timesteps: int, seed: int, batch_size: int
) -> Iterator[Batch]:
    """`DRAWS` rows of every picture, those of one size together, at most `batch_size` a batch.

    A picture's noise depends on the seed, its name and the draw alone, whatever comes beside it.
    """
    sizes: dict[torch.Size, list[tuple[Encoded, int]]] = {}
    for row in rows:
        for draw in range(DRAWS):
            sizes.setdefault(row.mean.shape, []).append((row, draw))
    for pairs in sizes.values():
        for start in range(0, len(pairs), batch_size):
            part = pairs[start : start + batch_size]
            shown = [row for row, _ in part]
            noise = torch.stack([draw_noise(row, seed, draw) for row, draw in part])
            masked = any(row.mask is not None for row in shown)
            blank = torch.ones(1, *noise.shape[-2:])
            masks = [blank if row.mask is None else row.mask for row in shown]
            yield Batch(
                names=tuple(row.name for row in shown),
                prompts=tuple(row.prompt for row in shown),
                latents=torch.stack([row.mean for row in shown]),
                mask=torch.stack(masks) if masked else None,
                time_ids=torch.tensor([row.time_ids for row in shown]),
                noise=noise,
                input_noise=noise,
                timesteps=torch.tensor(
                    [(2 * draw + 1) * num_timesteps // (2 * DRAWS) for _, draw in part]
                ),
            )


def draw_noise(row: Encoded, seed: int, draw: int) -> torch.Tensor:
    key = sha256(f"validation:{seed}:{row.name}:{draw}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    return torch.randn(row.mean.shape, generator=generator)
