"""Laws of the frozen base's dtype: atoms stay in float32, and train as they do on a wide base."""

import pytest
import torch
from torch import nn

from sdatoms import AtomError
from sdatoms.training.precision import Precision, choose_precision, hold_float32
from sdatoms.training.trainer import Trainer

WIDE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
SETTINGS = [
    {"atom_variant": "overcomplete"},
    {"atom_variant": "full", "gradient_checkpointing": True},
    {"atom_variant": "coefficients", "block_form": "product", "block_size": 4},
    {"atom_variant": "coefficients", "block_form": "shared"},
    {"train_text_encoder": True},
    {"load_in": "4bit", "atom_variant": "coefficients"},
    {"with_prior_preservation": True, "class_prompt": "cat", "num_class_images": 2},
    {
        "with_prior_preservation": True,
        "prior_preservation_mode": "prediction",
        "class_prompt": "cat",
    },
]


@pytest.mark.parametrize(
    ("wanted", "mixed", "device", "own", "expected"),
    [
        ("auto", "no", "cpu", HALF, Precision(WIDE, "no")),
        ("auto", "bf16", "cpu", None, Precision(WIDE, "bf16")),
        ("auto", "bf16", "cuda", HALF, Precision(BRAIN, "bf16")),
        ("auto", "fp16", "cuda", WIDE, Precision(HALF, "fp16")),
        ("auto", "no", "cuda", HALF, Precision(HALF, "fp16")),
        ("bfloat16", "no", "cpu", WIDE, Precision(BRAIN, "bf16")),
        ("float16", "bf16", "cuda", WIDE, Precision(HALF, "bf16")),
        ("float32", "no", "cuda", HALF, Precision(WIDE, "no")),
        ("auto", "fp16", "cpu", HALF, Precision(WIDE, "no")),
    ],
)
def test_sixteen_bits_are_for_gpus_and_those_who_ask(wanted, mixed, device, own, expected):
    assert choose_precision(wanted, mixed, torch.device(device), own) == expected


@pytest.mark.parametrize("mixed", ["no", "bf16"])
def test_float16_on_a_cpu_is_refused_before_anything_is_opened(train_config, mixed):
    config = train_config(dtype="float16", mixed_precision=mixed)
    with pytest.raises(AtomError, match="float16, in which nothing trains on a CPU; --base_dtype"):
        Trainer(config)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_16_bit_base_gives_atoms_the_gradients_of_a_wide_one(train_config, settings):
    if "load_in" in settings:
        pytest.importorskip("bitsandbytes")
    trainers = [
        Trainer(train_config(base_dtype=dtype, **settings)) for dtype in ("float32", "bfloat16")
    ]
    narrow = trainers[1]
    frozen = {
        type(module): module.weight.dtype
        for module in narrow.pipe.unet.modules()
        if isinstance(module, nn.Conv2d)
    }
    assert set(frozen.values()) == {BRAIN}
    assert {p.dtype for p in narrow.parameters} == {WIDE}
    gradients = []
    for trainer in trainers:
        found: list[torch.Tensor] = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, found=found: found.extend(
                p.grad.flatten() for group in optimizer.param_groups for p in group["params"]
            )
        )
        trainer.take_step()
        gradients.append(torch.cat(found))
    assert gradients[1].dtype == WIDE
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95


def test_a_module_held_in_float32_has_its_own_bits_again():
    module = nn.Sequential(nn.Conv2d(3, 4, 3).half(), nn.BatchNorm2d(4).to(BRAIN))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), hold_float32(module):
        assert {p.dtype for p in module.parameters()} == {WIDE}
        raise KeyboardInterrupt
    after = module.state_dict()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor)
