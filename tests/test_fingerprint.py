"""Laws of fingerprints and checksums: what they survive, and what they notice."""

import pytest
import torch

from sdatoms.fingerprint import checksum, fingerprint, matches

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fingerprints_survive_casts_and_tell_weights_apart(rng, dtype):
    weight = torch.randn(96, 40, 7, 7, generator=rng)
    print_ = fingerprint(weight)
    assert matches(print_, fingerprint(weight.to(dtype)))
    assert not matches(print_, fingerprint(weight * 1.05))
    assert not matches(print_, fingerprint(-weight))
    assert not matches(print_, fingerprint(torch.randn(weight.shape, generator=rng)))
    assert fingerprint(torch.zeros(3, 3)) == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_checksums_notice_any_bit_and_any_order(rng, dtype):
    weight = torch.randn(301, 1001, generator=rng).to(dtype)
    found = checksum(weight)
    assert checksum(weight.clone()) == found
    changed = weight.clone()
    changed[300, 1000] = torch.nextafter(changed[300, 1000].float() * 1.01, torch.tensor(9.0))
    assert checksum(changed) != found
    assert checksum(-weight) != found
    assert checksum(weight.flip(0)) != found
    assert checksum(weight.roll(1)) != found
    assert checksum(torch.zeros(8)) != checksum(-torch.zeros(8))
    strided = weight.T.contiguous().T
    assert checksum(strided) == found


def test_checksums_see_single_bits_and_places(rng):
    x = torch.randn(3, 1 << 17, generator=rng)
    before = checksum(x)
    assert checksum(x.clone()) == before
    for change in (
        lambda t: t[2, 77].mul_(1 + 1e-7),
        lambda t: t[0, :2].copy_(t[0, :2].flip(0).clone()),
        lambda t: t[:2].copy_(t[:2].flip(0).clone()),
        lambda t: t[1, 5].neg_(),
    ):
        twin = x.clone()
        change(twin)
        assert checksum(twin) != before
