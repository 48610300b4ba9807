"""The samplers that can be painted with here."""

import pytest

from sdatoms.diffusion.samplers import SAMPLERS, SCHEDULES

PAIRS = [(name, schedule) for name, known in SAMPLERS.items() for schedule in known.schedules]


def need_packages(sampler, schedule="normal"):
    """Skip a test of a sampler whose optional package is not installed."""
    for package in (SAMPLERS[sampler].package, SCHEDULES[schedule].package):
        if package:
            pytest.importorskip(package)
