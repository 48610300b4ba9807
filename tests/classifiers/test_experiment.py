"""Fine-tuning classifiers: what every method may touch, what choices may see, what files hold."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny.classifiers import finetune, save_resnet
from tiny.models import build_small
from torch import nn

from sdatoms import AtomConfig, AtomError, load_atoms
from sdatoms.classifiers import experiment
from sdatoms.classifiers.drawings import HUES, draw_plot, write_table
from sdatoms.classifiers.experiment import Experiment, make_accelerator, next_rate, run_experiment
from sdatoms.classifiers.fit import (
    TrainSettings,
    augment,
    evaluate_classifier,
    fit,
    make_optimizer,
    schedule,
)
from sdatoms.classifiers.methods import attach_method, suggest_rates
from sdatoms.classifiers.model import load_head, open_classifier, save_head
from sdatoms.classifiers.pictures import draw_task
from sdatoms.classifiers.sources import read_pool
from sdatoms.models.cifar_resnet import CifarResNet

VARIANTS = ["atoms", "overcomplete", "coefficients", "full"]
PEERS = ["linear_probe", "bias", "lora", "lora_conv", "full_finetune"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A CIFAR ResNet of eight layers with random weights, as a file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarResNet(1)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return save_resnet(tmp_path_factory.mktemp("base") / "resnet8.safetensors", model)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A tiny transformers ViT with random weights, as a folder with its processor's config."""
    folder = tmp_path_factory.mktemp("base") / "vit"
    build_small("vit-base").save_pretrained(folder)
    table = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    table["image_processor_type"] = "ViTImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(table))
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    """Folders `blue`, `green`, `red` of ten noisy pictures of the colour."""
    numbers = np.random.default_rng(0)
    for k, name in enumerate(("red", "green", "blue")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for n in range(10):
            pixels = numbers.integers(0, 128, (12, 16, 3), dtype=np.uint8)
            pixels[..., k] += 100
            Image.fromarray(pixels).save(folder / f"{n}.png")
    return tmp_path / "pictures"


@pytest.fixture
def task(pictures):
    return draw_task(read_pool(str(pictures)), 8)


@pytest.fixture
def prepare(resnet):
    """A fresh classifier of three classes with a method attached."""

    def make(method, config=None, model=resnet, resolution=8, **options):
        classifier = open_classifier(model, 3, resolution=resolution)
        return attach_method(classifier, method, config, **options)

    return make


@pytest.fixture
def settings():
    return TrainSettings(epochs=2, train_batch_size=8, warmup=0)


@pytest.fixture
def accelerator():
    return make_accelerator("no")


@pytest.fixture
def show(task):
    """Logits of the test pictures."""

    @torch.no_grad()
    def run(classifier, pictures=task.test.pictures):
        out = classifier.model.eval()(classifier.normalize(pictures))
        return out if isinstance(out, torch.Tensor) else out.logits

    return run


@pytest.mark.parametrize("method", [*VARIANTS, *PEERS])
def test_a_method_starts_at_the_base_and_moves_its_own_numbers_alone(
    method, prepare, pictures, settings, accelerator, show, vit
):
    # ResNets of 3×3 convolutions have no layer for LoRA without convolutions.
    opened = {"model": vit, "resolution": None} if method == "lora" else {}
    plain = prepare("linear_probe", **opened).classifier
    task = draw_task(read_pool(str(pictures)), plain.size)
    tuned = prepare(method, **opened)
    own = {id(p) for p in [*tuned.parameters, *tuned.head.values()]}
    assert torch.equal(show(tuned.classifier, task.test.pictures), show(plain, task.test.pictures))
    live = tuned.classifier.model.state_dict(keep_vars=True)
    held = {name: tensor.detach().clone() for name, tensor in live.items()}
    assert {id(p) for p in tuned.classifier.model.parameters() if p.requires_grad} == own

    fit(tuned, task.train, 1e-2, settings, accelerator)

    for name, tensor in live.items():
        assert torch.equal(tensor, held[name]) != (id(tensor) in own), name


def test_parameters_are_counted_without_the_head(prepare):
    tuned = prepare("atoms")
    assert tuned.num_parameters == 7 * 81
    assert tuned.num_head_parameters == 64 * 3 + 3
    assert prepare("linear_probe").num_parameters == 0
    shifts = 16 * 3 + 32 * 2 + 64 * 2
    assert prepare("bias").num_parameters == shifts
    assert prepare("atoms", train_norms=True).num_parameters == 7 * 81 + 2 * shifts


def test_the_head_takes_no_atoms_whatever_is_targeted(prepare, vit):
    every = AtomConfig(target_modules=("*",))
    assert not any("classifier" in p for p in prepare("full", model=vit).injection.layers)
    assert "linear" not in prepare("coefficients", every).injection.layers


def test_statistics_of_batch_normalization_stay_unless_asked(prepare, task, settings, accelerator):
    for moves in (False, True):
        tuned = prepare("atoms", statistics=moves)
        norm = tuned.classifier.model.layer1[0].bn1
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()
        fit(tuned, task.train, 1e-2, settings, accelerator)
        assert torch.equal(norm.running_mean, mean) != moves
        assert torch.equal(norm.running_var, variance) != moves


@pytest.mark.parametrize("momentum", [0.001, 0.1, 0.3])
def test_averages_reach_what_the_run_normalizes_by_however_slow_they_are(
    resnet, task, settings, accelerator, momentum
):
    opened = open_classifier(resnet, 3, resolution=8)
    norms = [m for m in opened.model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = momentum
    tuned, first, means = attach_method(opened, "atoms", statistics=True), norms[0], []
    first.register_forward_hook(lambda _, given, out: means.append(given[0].mean((0, 2, 3))))
    before = first.running_mean.clone()
    fit(tuned, task.train, 1e-6, replace(settings, epochs=8), accelerator)
    batches = torch.stack(means).mean(0)
    left = (first.running_mean - batches).norm() / (before - batches).norm()
    assert left < 0.15
    assert (first.momentum == momentum) == (momentum > 1 - math.exp(-5 / len(means)))


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("method", ["overcomplete", "full_finetune"])
def test_an_interrupted_run_continues_to_the_bit(
    method, prepare, task, settings, tmp_path, monkeypatch
):
    plan = Experiment((1e-3, 3e-2), replace(settings, epochs=3), folder=tmp_path / "whole")
    options = {"statistics": True, "train_norms": True}
    whole = run_experiment(prepare(method, **options), task, plan)
    broken = replace(plan, folder=tmp_path / "broken")
    saved, save_state = [], experiment.save_state

    def stop(*args):
        save_state(*args)
        saved.append(args)
        if len(saved) in (2, 4):
            raise Interrupt

    monkeypatch.setattr(experiment, "save_state", stop)
    for _ in range(2):
        with pytest.raises(Interrupt):
            run_experiment(prepare(method, **options), task, broken)
    again = run_experiment(prepare(method, **options), task, broken)

    name = "atoms" if method == "overcomplete" else method
    for file in (f"{name}.safetensors", "head.safetensors"):
        a, b = load_file(tmp_path / "whole" / file), load_file(tmp_path / "broken" / file)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), file
    assert again["test_loss"] == whole["test_loss"]
    assert not (tmp_path / "broken" / "state.safetensors").exists()


def test_choices_do_not_see_the_test_split(prepare, task, settings, tmp_path, monkeypatch):
    seen = []

    def watch(classifier, split, device):
        seen.append(split)
        return evaluate_classifier(classifier, split, device)

    monkeypatch.setattr(experiment, "evaluate_classifier", watch)
    other = replace(task, test=replace(task.test, labels=(task.test.labels + 1) % 3))
    results = []
    for name, given in (("a", task), ("b", other)):
        seen.clear()
        plan = Experiment((1e-3, 1e-2), settings, folder=tmp_path / name)
        results.append(run_experiment(prepare("atoms"), given, plan))
        assert [split is given.test for split in seen] == [False, False, True]
    assert results[0]["test_accuracy"] != results[1]["test_accuracy"]
    assert results[0]["trials"] != [] and results[0]["learning_rate"] == results[1]["learning_rate"]
    for file in ("atoms.safetensors", "head.safetensors"):
        a, b = load_file(tmp_path / "a" / file), load_file(tmp_path / "b" / file)
        assert all(torch.equal(a[key], b[key]) for key in a)
    # A run that has ended does not look again.
    seen.clear()
    plan = Experiment((1e-3, 1e-2), settings, folder=tmp_path / "a")
    assert run_experiment(prepare("atoms"), task, plan) == results[0]
    assert not seen
    with pytest.raises(AtomError, match="other settings"):
        run_experiment(prepare("atoms"), task, replace(plan, rates=(1e-1,)))


def test_the_best_rate_on_validation_is_kept_or_trained_on_both_splits(
    prepare, task, settings, show
):
    plan = Experiment((1e-5, 3e-2), replace(settings, epochs=6))
    tuned = prepare("atoms")
    result = run_experiment(tuned, task, plan)
    best = max(result["trials"], key=lambda t: (t["accuracy"], -t["loss"]))
    assert result["learning_rate"] == best["rate"]
    again = evaluate_classifier(tuned.classifier, task.validation)
    assert again.accuracy == best["accuracy"] and again.loss == best["loss"]
    kept = show(tuned.classifier)
    run_experiment(tuned, task, replace(plan, train_on_validation=True))
    assert not torch.equal(show(tuned.classifier), kept)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_files_give_a_fresh_classifier_the_same_logits(
    variant, kind, request, prepare, pictures, settings, show, tmp_path
):
    model = request.getfixturevalue(kind)
    opened = {"model": model, "resolution": 32}
    config = AtomConfig(target_modules=("*attention*",)) if kind == "vit" else None
    tuned = prepare(variant, config, train_norms=True, statistics=kind == "resnet", **opened)
    task = draw_task(read_pool(str(pictures)), 32)
    plan = Experiment((3e-2,), settings, folder=tmp_path / "run")
    run_experiment(tuned, task, plan)
    wanted = show(tuned.classifier, task.test.pictures)
    fresh = open_classifier(model, 7)
    plain = show(fresh, task.test.pictures)

    classes = load_head(fresh.model, tmp_path / "run" / "head.safetensors")
    adapters = load_atoms(fresh.model, tmp_path / "run" / "atoms.safetensors")

    assert classes == ("blue", "green", "red")
    assert fresh.normalize(task.test.pictures).equal(tuned.classifier.normalize(task.test.pictures))
    torch.testing.assert_close(show(fresh, task.test.pictures), wanted, rtol=1e-4, atol=1e-5)
    adapters.clear()
    assert plain.shape != wanted.shape
    assert not torch.allclose(show(fresh, task.test.pictures), wanted, rtol=1e-2, atol=1e-3)
    with safe_open(tmp_path / "run" / "atoms.safetensors", "pt") as file:
        assert all(key.startswith("model.") for key in file.keys())


def test_a_head_that_does_not_fit_changes_nothing(prepare, vit, resnet, tmp_path, show):
    tuned = prepare("atoms")
    path = save_head(tmp_path / "head.safetensors", tuned.classifier, "abc")
    other = open_classifier(vit, 3)
    before = {k: t.clone() for k, t in other.model.state_dict().items()}
    for wrong, said in ((path, "has not"), (resnet, "no head file"), (vit, "no safetensors file")):
        with pytest.raises(AtomError, match=said):
            load_head(other.model, wrong)
    assert all(torch.equal(t, before[k]) for k, t in other.model.state_dict().items())


def test_learning_lowers_the_loss_and_the_files_are_as_small_as_said(
    prepare, task, settings, tmp_path
):
    plan = Experiment((1e-2,), replace(settings, epochs=8), folder=tmp_path)
    tuned = prepare("overcomplete")
    before = evaluate_classifier(tuned.classifier, task.test)
    result = run_experiment(tuned, task, plan)
    assert result["test_loss"] < before.loss
    assert np.sum(result["confusion"]) == len(task.test) == result["pictures"]["test"]
    assert result["test_accuracy"] == np.trace(result["confusion"]) / len(task.test)
    sizes = {p.name: p.stat().st_size for p in tmp_path.glob("*.safetensors")}
    assert sizes["head.safetensors"] == result["head_bytes"]
    # The header's date and hash are of fixed length.
    assert sizes["atoms.safetensors"] == result["bytes"]
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 50


def test_a_best_rate_at_an_edge_widens_the_search():
    plan = Experiment((3e-3, 1e-2), None, widen=2)
    trial = lambda rate, accuracy: {"rate": rate, "accuracy": accuracy, "loss": 1.0}
    ask = lambda *trials: next_rate(plan, [trial(*t) for t in trials])
    assert ask() == 3e-3 and ask((3e-3, 0.5)) == 1e-2
    assert ask((3e-3, 0.5), (1e-2, 0.6)) == 3e-2
    assert ask((3e-3, 0.7), (1e-2, 0.6)) == 1e-3
    assert ask((3e-3, 0.5), (1e-2, 0.6), (3e-2, 0.55)) is None
    assert ask((3e-3, 0.5), (1e-2, 0.6), (3e-2, 0.7)) == 1e-1
    assert ask((3e-3, 0.5), (1e-2, 0.6), (3e-2, 0.7), (1e-1, 0.8)) is None
    alone = Experiment((1e-2,), None, widen=2)
    assert next_rate(alone, [trial(1e-2, 0.5)]) is None


def test_suggested_rates_rise_with_tuned_statistics_and_go_into_the_optimizer(prepare, settings):
    still = suggest_rates("overcomplete", False)
    assert still == (3e-3, 1e-2, 3e-2)
    assert suggest_rates("overcomplete", True) == (1e-2, 3e-2, 1e-1)
    assert suggest_rates("full_finetune", True) == (1e-3, 3e-3, 1e-2)
    tuned = prepare("overcomplete", train_norms=True, statistics=True)

    def rates(ratios):
        optimizer = make_optimizer(tuned, 3e-2, settings, ratios)
        return [group["full_rate"] for group in optimizer.param_groups]

    assert list(tuned.groups) == ["spatial", "norm"]
    assert rates({}) == pytest.approx([3e-2, 3e-3, settings.head_learning_rate])
    assert rates({"norm": 1.0})[1] == rates({})[0]


@pytest.mark.parametrize(("flags", "rate"), [([], 1e-2), (["--train_batch_norm"], 3e-2)])
def test_the_command_picks_a_rate_that_suits_the_method(resnet, pictures, flags, rate, capsys):
    words = ["--model", resnet, "--data", str(pictures), "--method", "atoms", "--epochs", "1"]
    finetune([*words, *flags])
    assert json.loads(capsys.readouterr().out)["learning_rate"] == rate


def test_the_schedule_rises_and_falls():
    rates = [schedule(step, 40, 0.25) for step in range(40)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert max(rates) == 1 and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_shifts_stay_in_reach_and_mirrors_only_where_allowed():
    line = torch.arange(16, dtype=torch.uint8).expand(64, 3, 16, 16)
    numbers = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
    seen = augment(line, numbers, 0.125, False)
    offsets = seen[:, 0, 0, 8].int() - 8
    assert set(offsets.tolist()) == {-2, -1, 0, 1, 2}
    assert (seen[..., 1:] >= seen[..., :-1]).all()
    mirrored = augment(line, numbers, 0.125, True)
    turned = mirrored[:, 0, 0, 0] > mirrored[:, 0, 0, -1]
    assert torch.equal(turned, numbers[:, 2] < 0.5)
    assert torch.equal(mirrored[turned].flip(-1), seen[turned])
    assert torch.equal(augment(line, numbers, 0.0, False), line)


def test_tables_and_plots_hold_every_row():
    rows = [{"method": "atoms", "accuracy": 61.25, "parameters": 1539}, {"method": "probe"}]
    text = write_table(rows, ("method", "accuracy", "parameters"))
    assert [line.count("|") for line in text.splitlines()] == [4] * 4
    assert "61.2" in text and "1,539" in text and text.splitlines()[3].count("-") == 2
    points = [("probe", 0, 40.0, 1.0), ("atoms", 1539, 61.2, 0.5), ("full", 270_000, 64.0, 0.0)]
    plot = draw_plot(points, "title")
    colours = {colour for _, colour in plot.getcolors(1 << 20)}
    assert set(HUES[:3]) <= colours
