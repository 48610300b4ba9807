"""A step's memory is counted from shapes alone, and is what the same step of numbers holds."""

import pytest
import torch

from sdatoms.bench.step_memory import Ledger, count_step, fuse_attention
from sdatoms.bench.training import Case, make_step, open_unet, put_in

BUNDLED = Case("bundled", 64, 2, 2)


def count_real(method, checkpointing):
    """The peak of the second step, with numbers."""
    unet = open_unet(BUNDLED, torch.bfloat16)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    parameters, ledger = put_in(unet, method).parameters, Ledger()
    for tensor in (*unet.parameters(), *unet.buffers()):
        ledger.note(tensor)
    with ledger:
        step = make_step(unet, parameters, BUNDLED, fuse_attention)
        for _ in range(2):
            step()
    return ledger.peak


@pytest.mark.slow
def test_shapes_alone_count_what_numbers_take_and_checkpoints_take_less():
    less, more = (count_step(BUNDLED, "overcomplete", checkpointing=c) for c in (True, False))
    assert less["peak_bytes"] == pytest.approx(count_real("overcomplete", True), rel=0.02)
    assert less["weights_bytes"] < less["peak_bytes"] < more["peak_bytes"]
    assert less["card_gb"] == 8


def test_a_storage_counts_once_and_as_long_as_it_lives():
    ledger = Ledger()
    with ledger:
        x = torch.zeros(1000)
        y = x.view(10, 100)[2:]
        z = torch.zeros(500)
        assert ledger.live == 4 * 1500
        del z
        assert ledger.live == 4 * 1000
        del x
        assert ledger.live == 4 * 1000
        del y
    assert (ledger.live, ledger.peak) == (0, 4 * 1500)
