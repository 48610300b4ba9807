"""E. A stop is heard in every phase."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from sdatoms.training.lock import LOCK
from sdatoms.training.loop import train
from sdatoms.training.run_folder import RunDirectory
from sdatoms.training.stopping import StopRequest, TrainingStopped


class WhenPhase(StopRequest):
    """Asks to stop as soon as status.json shows a phase."""

    def __init__(self, run, phase):
        self.path, self.phase, self.latched = Path(run) / "status.json", phase, False
        super().__init__()

    @property
    def asked(self):
        if not self.latched and self.path.is_file():
            self.latched = json.loads(self.path.read_text())["phase"] == self.phase
        return self.latched

    @asked.setter
    def asked(self, value):
        self.latched = value


@pytest.mark.parametrize("phase", ["loading", "class images", "encoding", "samples", "training"])
def test_a_stop_is_heard_in_every_phase(train_config, phase, monkeypatch):
    monkeypatch.setattr("sdatoms.training.run_folder.HEARTBEAT_SECONDS", 0.0)
    config = train_config(
        with_prior_preservation=True,
        class_prompt="cat",
        num_class_images=2,
        sample_batch_size=1,
        validation_steps=2,
        max_train_steps=2,
    )
    run = Path(config.output_dir)
    with pytest.raises(TrainingStopped) as stopped:
        list(train(config, stop=WhenPhase(run, phase)))
    status = json.loads((run / "status.json").read_text())
    assert status["phase"] == "stopped" and not (run / LOCK).exists()
    steps = RunDirectory(run).list_checkpoints()
    assert stopped.value.saved == bool(steps)
    assert [step.step for step in train(replace(config, resume_from_checkpoint="latest"))][-1] == 2
    assert (run / "samples" / "step-000002-0.png").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_ask_once_and_then_stop_at_once(number):
    kept = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        stop = StopRequest()
        stop.listen()
        with pytest.raises(KeyboardInterrupt):  # nothing is written yet
            signal.raise_signal(number)
        stop = StopRequest()
        stop.writing = True
        stop.listen()
        signal.raise_signal(number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        StopRequest().listen()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for n, handler in kept.items():
            signal.signal(n, handler)
