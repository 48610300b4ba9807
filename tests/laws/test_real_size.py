"""The known models at their real sizes: one step of training each, and the counts on paper."""

import gc

import pytest
import torch
from tiny.models import take_step
from torch import nn

from sdatoms import AtomConfig, inject, save_atoms
from sdatoms.models.families import MODELS
from sdatoms.models.open import build_model

pytestmark = pytest.mark.slow

VARIANTS = {
    "sd15-unet": ["atoms", "overcomplete", "coefficients", "full"],
    "sd21-unet": ["overcomplete"],
    "sdxl-unet": ["overcomplete"],
    "vit-base": ["full"],
    "resnet-50": ["atoms", "overcomplete", "coefficients", "full"],
    "convnext-base": ["full"],
    "swin-tiny": ["full"],
}
"""Variants that take their step at real size; others have only block atoms."""


@pytest.fixture(autouse=True)
def free_memory():
    yield
    gc.collect()


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, variant) for name in MODELS for variant in VARIANTS.get(name, ["coefficients"])],
)
def test_one_step_at_real_size(name, variant, perturb, rng):
    model = build_model(name, torch.bfloat16)
    injection = perturb(inject(model, AtomConfig(variant)), 1e-3)
    without = take_step(model, injection, rng)
    assert all(path.endswith("1.attn.add_q_proj.block.atoms") for path in without)


@pytest.mark.parametrize("variant", ["atoms", "full"])
@pytest.mark.parametrize(
    "name",
    [
        "timm/convnext_base",
        "timm/vit_base_patch16_224",
        "timm/resnet50",
        "timm/swin_tiny_patch4_window7_224",
        "torchvision/convnext_base",
        "torchvision/vit_b_16",
        "torchvision/resnet50",
        "torchvision/swin_t",
    ],
)
def test_one_step_at_real_size_in_other_libraries(name, variant, perturb, rng):
    pytest.importorskip(name.split("/")[0])
    model = build_model(name)
    injection = perturb(inject(model, AtomConfig(variant)), 1e-3)
    assert not any("head" in path or path.startswith(("fc", "cl")) for path in injection.layers)
    optimizer = torch.optim.AdamW(injection.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in injection.parameters()]

    loss = model(torch.randn(1, 3, 224, 224, generator=rng)).square().mean()
    loss.backward()
    optimizer.step()

    assert torch.isfinite(loss)
    for (path, parameter), old in zip(injection.named_parameters(), before, strict=True):
        assert parameter.grad.any() and not torch.equal(parameter, old), path
    left_out = {row.note for row in injection.report() if not row.view}
    reads = "left out: ShiftedWindowAttention reads its weight without calling the layer"
    assert left_out == ({reads} if (name, variant) == ("torchvision/swin_t", "full") else set())


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (AtomConfig("atoms"), 4_212),
        (AtomConfig("overcomplete", num_inner_atoms=3), 1_516_104),
        (AtomConfig("coefficients", block_size=4), 1_059_840),
    ],
)
def test_counts_on_the_whole_unet_of_stable_diffusion_1(config, numbers, tmp_path):
    unet = build_model("sd15-unet", torch.bfloat16)
    convs = {p: m for p, m in unet.named_modules() if isinstance(m, nn.Conv2d)}
    spatial = [path for path, conv in convs.items() if conv.kernel_size == (3, 3)]
    assert (len(convs), len(spatial)) == (98, 52)

    injection = inject(unet, config)

    rows = {row.path: row for row in injection.report()}
    assert sum(rows[path].parameters for path in spatial) == numbers
    if config.variant == "atoms":
        path = save_atoms(tmp_path / "dog.safetensors", {"unet": injection}, trigger="sks dog")
        assert path.stat().st_size <= 64_000
