"""ConvNeXt-B, ViT-B/16 and ResNet-50 at real size: a step of every variant, counts on paper."""

import gc
import math

import pytest

from sdatoms import AtomConfig
from sdatoms.bench.classifiers import count_on_paper, measure
from sdatoms.layers.inject import LayerReport


@pytest.mark.parametrize(
    ("variant", "shape", "groups", "count"),
    [
        ("atoms", (64, 32, 3, 3), 1, 81),
        ("overcomplete", (64, 32, 3, 3), 1, 32 * 9 * 3 + 9 * 3 * 9),
        ("overcomplete", (64, 8, 3, 3), 4, 32 * 9 * 3 + 9 * 3 * 9),
        ("coefficients", (64, 32, 3, 3), 1, 128 * 144),  # 16·8 blocks of 4·4·9 numbers
        ("coefficients", (64, 32), 1, 256),
        ("full", (64, 32, 3, 3), 1, 1107 + 128 * 144),
        ("full", (64, 32), 1, 256),
    ],
)
def test_counts_on_paper_are_the_published_formulas(variant, shape, groups, count):
    row = LayerReport("a", shape, "", 0, 0, 0.0, "")
    assert count_on_paper(row, groups, AtomConfig(variant)) == count


@pytest.fixture
def free_memory():
    """Models of real size do not wait for the collector."""
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.usefixtures("free_memory")
@pytest.mark.parametrize("variant", ["atoms", "overcomplete", "coefficients", "full"])
@pytest.mark.parametrize("name", ["convnext-base", "vit-base", "resnet-50"])
def test_a_step_at_real_size_reaches_every_number(name, variant):
    facts = measure(name, variant, 1)
    assert math.isfinite(facts["loss"]) and facts["without_gradient"] == 0
    assert 0 < facts["parameters"] <= facts["on_paper"]
    assert facts["parameters"] == sum(row["parameters"] for row in facts["report"])
    assert facts["parameters"] < facts["weights"] / 4
    # Where neither rank nor budget cut anything, theory and practice are the same number.
    if not facts["notes"]:
        assert facts["parameters"] == facts["on_paper"]
