"""Curves and pictures reach the trackers that are asked for."""

import pytest
from accelerate.tracking import GeneralTracker

import sdatoms
from sdatoms.training.loop import train


def test_trackers_see_numbers_and_the_end(train_config):
    seen = []

    class Notebook(GeneralTracker):
        name = "notebook"
        requires_logging_directory = False

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            seen.append(("config", values["max_train_steps"]))

        def log(self, values, step=None, **_):
            seen.append((step, sorted(values)))

        def finish(self):
            seen.append("end")

    list(train(train_config(max_train_steps=2), trackers=[Notebook()]))
    names = ["instance_loss", "loss", "lr", "seconds", "total"]
    assert seen == [("config", 2), (1, names), (2, names), "end"]


def test_missing_and_unknown_trackers_are_refused(train_config):
    with pytest.raises(sdatoms.AtomError, match="--report_to is 'paper'; it takes all, "):
        next(train(train_config(report_to="paper")))
    with pytest.raises(sdatoms.AtomError, match="--report_to aim needs its package"):
        next(train(train_config(report_to="aim")))


@pytest.mark.filterwarnings("default")
def test_tensorboard_holds_curves_and_samples(train_config, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = train_config(report_to="tensorboard", validation_steps=4)
    losses = [step.loss for step in train(config)]
    (folder,) = (tmp_path / "run" / "logs").rglob("events.*.0")
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert {name.split("/")[0] for name in events.Tags()["images"]} == {"base", "step-000004"}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_keeps_an_offline_run(train_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    list(train(train_config(report_to="wandb", validation_steps=4)))
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert next(run.glob("*.wandb")).stat().st_size > 1000
    assert len(list((run / "files" / "media" / "images").glob("samples_*.png"))) == 2
