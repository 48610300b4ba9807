"""The stage in which the probe is made, in the base's run directory."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from bundled.base_export import load_ema
from bundled.base_stages import Run, settle_precision
from bundled.base_training import drive
from bundled.modifiers import VALUES
from bundled.probe_training import draw_examples, score_probe, train_probe
from sdatoms.evaluation.probe import Probe, load_probe, save_probe

__all__ = ["fit_probe", "score_held_out"]


def fit_probe(run: Run, output: Path) -> Probe:
    """Train `probe.pt` of the run directory to its end and write the averages to `output`."""
    path, probe = run.run_dir / "probe.pt", Probe(VALUES)
    print(f"{sum(p.numel() for p in probe.parameters()):,} parameters", flush=True)
    ema = EMAModel(probe.parameters(), decay=0.998, use_ema_warmup=True, inv_gamma=10, power=0.75)
    optimizer = torch.optim.AdamW(
        probe.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True
    )
    x = torch.rand(32, 3, 64, 64)
    facts = settle_precision(
        path, probe, lambda: sum(v.float().square().mean() for v in probe(x, x).values())
    )
    loop = lambda start: train_probe(
        probe,
        optimizer,
        ema,
        run.gallery,
        steps=run.steps or 4000,
        start=start,
        learning_rate=run.rate or 1.5e-3,
        precision=getattr(torch, facts["precision"]),
        seed=run.seed,
    )

    def show() -> dict:
        found = score_held_out(run, probe, random.Random(1), 600)
        probe.train()
        return found

    drive(path, {"probe": probe}, optimizer, ema, loop, show, 500, facts=facts)
    save_probe(load_ema(probe, path), output)
    return load_probe(output)


def score_held_out(
    run: Run, probe: Probe, rng: random.Random, count: int = 2000
) -> dict[str, float]:
    """How often the probe is right on true scenes of concepts that it has not seen."""
    return score_probe(probe, run.hidden, draw_examples(run.hidden, count, rng))
