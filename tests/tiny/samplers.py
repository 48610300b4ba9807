"""The samplers that can be painted with here."""

import pytest

from sdatoms.diffusion.samplers import SAMPLERS

PAIRS = [(name, schedule) for name, known in SAMPLERS.items() for schedule in known.schedules]


def need_packages(sampler, schedule="normal"):
    """Skip a test of a sampler whose optional package is not installed."""
    if package := SAMPLERS[sampler].package:
        pytest.importorskip(package)
    if schedule == "beta":
        pytest.importorskip("scipy")
