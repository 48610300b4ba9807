"""Laws of what is asked of a training meanwhile: samples and checkpoints now."""

import signal
from pathlib import Path

import pytest
from tiny.runs import assert_same_atoms, read_metrics

from sdatoms.training.loop import train
from sdatoms.training.run_folder import RunDirectory
from sdatoms.training.stopping import WISHES, StopRequest

RARE = {"validation_steps": 4, "checkpointing_steps": 4}


def measure_nothing(pipe, pictures, prompts, instances, unrelated):
    return {"fidelity": 0.5}


@pytest.mark.parametrize("way", ["file", "signal"])
def test_what_is_asked_for_is_done_after_the_step_and_changes_no_bit(train_config, tmp_path, way):
    plain = train_config(**RARE, output_dir=str(tmp_path / "plain"), best_metric="auto")
    list(train(plain, evaluate=measure_nothing))
    config = train_config(**RARE, best_metric="auto", early_stopping_patience=1)
    run, stop, lines = RunDirectory(Path(config.output_dir)), StopRequest(), []
    numbers = [getattr(signal, name) for name in WISHES.values()]
    others = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kept = {n: signal.getsignal(n) for n in (*numbers, *others)}
    try:
        stop.listen()
        for step in train(config, evaluate=measure_nothing, stop=stop, notify=lines.append):
            if step.step == 1 and way == "file":
                for wish in WISHES:
                    (run.path / f"{wish}.now").touch()
            elif step.step == 1:
                for number in numbers:
                    signal.raise_signal(number)
            if step.step == 2:
                assert run.list_checkpoints() == [2]
                assert (run.samples / "step-000002-0.png").is_file()
            if step.step == 3:  # once, and not again
                assert run.list_checkpoints() == [2]
                assert not (run.samples / "step-000003-0.png").exists()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert_same_atoms(plain.output_dir, run.path)
    assert "painted samples of step 2 as asked" in lines and "saved step 2 as asked" in lines
    assert [row["step"] for row in read_metrics(run.path) if "fidelity" in row] == [2, 4]
    assert not list(run.path.glob("*.now"))


def test_a_wish_of_a_run_that_is_over_is_forgotten(train_config):
    config = train_config(**RARE)
    run = RunDirectory(Path(config.output_dir))
    run.create()
    (run.path / "checkpoint.now").touch()
    list(train(config))
    assert run.list_checkpoints() == [4]


def test_where_nothing_can_be_painted_the_wish_is_answered(train_config):
    config, lines = train_config(), []
    for step in train(config, notify=lines.append):
        if step.step == 1:
            (Path(config.output_dir) / "samples.now").touch()
    (line,) = [line for line in lines if "no samples are painted" in line]
    assert "--validation_steps" in line
