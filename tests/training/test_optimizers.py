"""Optimizers and schedules by name; what is wrong is one sentence."""

import contextlib
import sys
from dataclasses import replace

import pytest
import torch
from diffusers.optimization import SchedulerType

import sdatoms
from sdatoms import AtomConfig, AtomError, inject
from sdatoms.training.checkpoints import pack_state
from sdatoms.training.loop import train
from sdatoms.training.optimizers import check_state, make_optimizer, make_schedule
from sdatoms.training.parts import make_run_optimizer
from sdatoms.training.trainer import Trainer


@pytest.fixture
def build(make_unet, train_config):
    def make(log=lambda text: None, **flags):
        config = train_config(**flags)
        injection = inject(make_unet(), AtomConfig(variant=config.atom_variant))
        return make_run_optimizer({"unet": injection}, [], config, processes=1, log=log), config

    return make


def test_flags_reach_adam(build):
    optimizer, _ = build(adam_beta1=0.8, adam_beta2=0.9, adam_weight_decay=0.1, learning_rate=0.5)
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.8, 0.9), 0.1, 0.5)


def test_any_class_can_be_named_with_its_arguments(build):
    words = ("momentum=0.9", "nesterov=True")
    optimizer, _ = build(optimizer="torch.optim.SGD", optimizer_args=words)
    assert type(optimizer) is torch.optim.SGD
    assert (optimizer.param_groups[0]["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"optimizer": "lion"}, "--optimizer lion is unknown; it takes adamw"),
        ({"optimizer": "no_such_package.Lion"}, "needs the package 'no_such_package'"),
        ({"optimizer": "torch.optim.Lion"}, "torch.optim.Lion is no torch optimizer"),
        ({"optimizer": "torch.nn.Linear"}, "torch.nn.Linear is no torch optimizer"),
        ({"optimizer_args": ("speed=1",)}, "AdamW does not take these settings: .*speed"),
        ({"optimizer_args": ("speed",)}, "--optimizer_args has 'speed'"),
    ],
)
def test_wrong_optimizers_are_refused(build, flags, words):
    with pytest.raises(AtomError, match=words):
        build(**flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"optimizer": "torch.optim.LBFGS"},
            "LBFGS cannot take a step .*closure.*; training calls",
        ),
        ({"optimizer": "torch.optim.SparseAdam"}, "SparseAdam cannot take a step .*dense"),
        ({"optimizer": "torch.optim.Optimizer"}, "Optimizer does not take these settings"),
        ({"optimizer": f"{__name__}.Forgetful"}, "Forgetful cannot take .* cannot hold a object"),
        ({"optimizer": f"{__name__}.Moody"}, "Moody cannot take a step .*: not today"),
        ({"optimizer_args": ("betas=0.9",)}, "AdamW does not take these settings"),
        ({"optimizer_args": ("betas={[]: 1}",)}, "AdamW does not take these settings"),
        ({"optimizer_args": ("betas=" + "[" * 9000,)}, "AdamW does not take these settings"),
        ({"learning_rate": 1e300}, "AdamW cannot take a step with these settings: .*overflow"),
        ({"optimizer": "..torch.SGD"}, "'..torch' cannot be imported"),
        ({"optimizer": "torch.optim."}, "is no torch optimizer"),
        ({"optimizer": "broken_on_import.SGD"}, "'broken_on_import' cannot be imported: no luck"),
        ({"lr_scheduler": "polynomial", "learning_rate": 1e-9}, "polynomial cannot go: lr_end"),
        *(
            ({"lr_scheduler": "piecewise_constant", "lr_step_rules": rules}, "by --lr_step_rules")
            for rules in ("x", "1:a", "1:100", "", "1:2:3,4")
        ),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(
    train_config, tmp_path, monkeypatch, flags, words
):
    (tmp_path / "broken_on_import.py").write_text("raise RuntimeError('no luck')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Forgetful.__module__])
    config = train_config(**flags)
    held = sorted(tmp_path.rglob("*"))
    with pytest.raises(AtomError, match=words) as error:
        list(train(config))
    assert "\n" not in str(error.value)
    found = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
    assert found == held


class Forgetful(torch.optim.SGD):
    """Its state holds what no checkpoint keeps."""

    def step(self, closure=None):
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["memory"] = object()


class Moody(torch.optim.SGD):
    """Its step fails with an error of its own."""

    def step(self, closure=None):
        raise LookupError("not today")


def test_the_trial_changes_neither_the_atoms_nor_the_random_numbers():
    atoms = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2,), (2, 3), (1,))]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    optimizer = make_optimizer([{"params": atoms}], 0.1, name=f"{Drifting.__module__}.Drifting")
    assert torch.equal(torch.rand(3), expected)
    assert all((p == 1).all() and p.grad is None for p in atoms) and not optimizer.state
    optimizer.step()
    assert all((p != 1).any() for p in atoms)


class Drifting(torch.optim.SGD):
    """It draws random numbers as it steps."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data += torch.randn_like(parameter)


STATES = (
    *({"a": [1, 2.0, None, "x", True]}, {1: torch.ones(2)}, (1, (2, [3]))),
    *({1, 2}, {"a": {"b": 1j}}, [b"x"], {(1, 1j): 2}, torch.float32),
)


@pytest.mark.parametrize("state", STATES, ids=repr)
def test_the_trial_refuses_what_checkpoints_do_not_keep_and_nothing_else(state):
    kept = contextlib.nullcontext()
    try:
        pack_state(state)
    except TypeError:
        kept = pytest.raises(TypeError, match="cannot hold")
    with kept:
        check_state(state)


def test_eight_bit_adam_says_how_much_it_covers():
    lines = []
    large, small = (torch.nn.Parameter(torch.ones(size)) for size in (5000, 4095))
    groups = [{"params": [large, small], "lr": 1e-3, "name": "unet.block"}]
    optimizer = make_optimizer(groups, 1e-3, eight_bit=True, log=lines.append)
    assert "5000 of 9095 numbers in 8 bits" in lines[0]
    large.grad, small.grad = torch.ones(5000), torch.ones(4095)
    optimizer.step()
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    assert optimizer.state[small]["state1"].dtype == torch.float32
    assert float(large.detach().max()) < 1 and float(small.detach().max()) < 1


def test_prodigy_gets_its_settings_and_finds_a_rate(build, train_config):
    pytest.importorskip("prodigyopt", reason="prodigyopt is not installed")
    optimizer, _ = build(optimizer="prodigy", prodigy_beta3=0.9, prodigy_decouple=False)
    (group,) = optimizer.param_groups
    assert group["lr"] == 1.0
    assert (group["beta3"], group["decouple"], group["safeguard_warmup"]) == (0.9, False, True)
    word = {"train_text_encoder_ti": True, "instance_prompt": "a <new> cat"}
    trainer = Trainer(train_config(optimizer="prodigy", lr_scheduler="constant", **word))
    first = trainer.optimizer.param_groups[0]["d"]
    for _ in range(10):
        trainer.step = 0  # the same batch every time, which says where to go
        trainer.take_step()
    assert trainer.optimizer.param_groups[0]["d"] > 2 * first
    assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 1


def test_prodigy_without_its_package_is_one_sentence(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(AtomError, match="--optimizer prodigy needs the package 'prodigyopt'"):
        build(optimizer="prodigy")


def test_the_rate_is_scaled_by_pictures_a_step(build):
    flags = {"scale_lr": True, "learning_rate": 1e-3}
    optimizer, _ = build(train_batch_size=2, gradient_accumulation_steps=3, **flags)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(6e-3)


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_every_schedule_of_diffusers_can_be_named(build, name):
    rules = "1:2,0.5" if name == "piecewise_constant" else None
    optimizer, _ = build()
    peak, rates = optimizer.param_groups[0]["lr"], []
    schedule = make_schedule(
        optimizer, name, step_rules=rules, num_warmup_steps=2, num_training_steps=6
    )
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"] / peak)
        optimizer.step()
        schedule.step()
    warm = [1, 1] if name in ("constant", "piecewise_constant") else [0, 0.5]
    assert rates[:2] == pytest.approx(warm) and rates[2] == pytest.approx(0.5 if rules else 1.0)
    assert all(0 <= rate <= 1 for rate in rates)


def test_wrong_schedules_are_refused(build):
    optimizer, _ = build()
    steps = {"num_warmup_steps": 0, "num_training_steps": 6}
    with pytest.raises(AtomError, match="--lr_scheduler is 'sawtooth'; it takes linear"):
        make_schedule(optimizer, "sawtooth", **steps)
    with pytest.raises(AtomError, match="--lr_step_rules, such as"):
        make_schedule(optimizer, "piecewise_constant", **steps)


def test_all_rates_at_zero_are_refused(train_config):
    with pytest.raises(sdatoms.AtomError, match="every learning rate is 0"):
        Trainer(train_config(spatial_learning_rate=0.0))


def test_separate_rates_reach_their_tensors(train_config):
    config = train_config(
        atom_variant="full",
        learning_rate=1e-2,
        spatial_learning_rate=1e-3,
        train_text_encoder=True,
        text_encoder_lr=1e-4,
    )
    trainer = Trainer(config)
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"unet.spatial": 1e-3, "unet.block": 1e-2, "text_encoder.block": 1e-4}
    held = {p: g["name"] for g in trainer.optimizer.param_groups for p in g["params"]}
    for component, injection in trainer.injections.items():
        for name, parameter in injection.named_parameters():
            assert held[parameter] == f"{component}.{name.split('.')[-2]}"
    frozen = Trainer(replace(config, block_learning_rate=0.0))
    assert frozen.num_parameters < trainer.num_parameters
    before = {key: tensor.clone() for key, tensor in frozen.live().items()}
    frozen.take_step()
    for key, tensor in frozen.live().items():
        if ".block." in key and key.startswith("unet"):
            assert torch.equal(tensor, before[key])
