"""A run's files, read while they are being written."""

import json
import math

import pytest
from sdatoms_app.queue.training import read_training
from sdatoms_app.runs.files import (
    describe_seconds,
    list_samples,
    open_samples,
    pack_run,
    read_curves,
    read_memory,
    smooth,
)
from sdatoms_app.runs.view import draw_curves, read_config


def test_curves_pass_over_what_is_no_row(tmp_path):
    rows = [
        {"step": k, "loss": 1 / k, "lr": 0.1, "seconds": 2.0, "clip": k} for k in range(1, 1001)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    broken = '\n{"step": 1001, "loss": NaN}\n[1]\n{"step": "x"}\n{"step": 1002, "lo'
    (tmp_path / "metrics.jsonl").write_text(text + broken)
    curves = read_curves(tmp_path)
    assert curves.steps[-1] == 1000 and len(curves.steps) <= 400
    assert curves.loss[-1] == 1 / 1000 and curves.seconds_per_step == 2.0
    assert set(curves.others) == {"clip"} and curves.others["clip"][-1] == (1000, 1000.0)
    assert read_curves(tmp_path / "nowhere").steps == []


@pytest.mark.parametrize("value", ["x", [1], {}, None, True, 10**400, math.nan, -math.inf])
def test_files_of_a_run_that_are_damaged_are_shown_without_what_is(tmp_path, value):
    rows = [{"step": 1, "loss": 0.5, "lr": value, "seconds": value, "clip": value}]
    rows += [{"step": value, "loss": 1.0}, {"step": 2, "loss": value}]
    text = "\n".join([*map(json.dumps, rows), "[" * 100_000])
    (tmp_path / "metrics.jsonl").write_text(text)
    curves = read_curves(tmp_path)
    assert (curves.steps, curves.loss, curves.lr) == ([1], [0.5], [0.0]) and not curves.others
    draw_curves(curves, log_scale=True)
    report = {"peak_memory_bytes": value, "peak_gpu_bytes": 2**30}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "config.toml").write_bytes(b'title = "\xff"\n')
    training = read_training(tmp_path)
    assert read_memory(training) == "1.00 GiB" and "title" in read_config(training)


def test_smoothing_keeps_constants_and_does_not_lag():
    assert smooth([2.0] * 9, 0.9) == pytest.approx([2.0] * 9)
    bump = [0.0] * 20 + [1.0] + [0.0] * 20
    smoothed = smooth(bump, 0.8)
    assert smoothed.index(max(smoothed)) == 20
    assert smooth(bump, 0.0) == bump


def test_samples_come_base_first_then_by_step(tmp_path):
    names = ["step-000200-0.png", "base-1.png", "step-000050-0.png", "base-0.png", "notes.txt"]
    (tmp_path / "samples").mkdir()
    for name in names:
        (tmp_path / "samples" / name).write_bytes(b"")
    (tmp_path / "samples" / "step-000300-0.png").symlink_to("/etc/passwd")
    found = [(path.name, label) for path, label in list_samples(tmp_path)]
    assert found == [
        ("base-0.png", "base"),
        ("base-1.png", "base"),
        ("step-000050-0.png", "step 50"),
        ("step-000200-0.png", "step 200"),
    ]
    assert open_samples(tmp_path) == []  # none of them is whole yet
    assert len(pack_run(tmp_path)) > 0


def test_seconds_in_words():
    assert [describe_seconds(s) for s in (5, 65, 3725)] == ["5 s", "1 min 5 s", "1 h 2 min"]
