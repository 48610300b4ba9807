"""A run's files, damaged or not: rows that cannot be read stop no training."""

import json
from pathlib import Path

import pytest
from tiny.runs import read_metrics

from sdatoms.training.loop import train
from sdatoms.training.run_folder import RunDirectory

DAMAGED = [
    b'{"step": 2, "loss": 0.\xff1}',
    b"\xff\xfe\x00\x01",
    b"[1]",
    b"5",
    b"null",
    b'"step"',
    b'{"step": null}',
    b'{"step": "2"}',
    b'{"step": true}',
    b'{"step": Infinity}',
    b'{"step": NaN}',
    b'{"step": [1]}',
    b'{"step": 1' + b"0" * 400 + b"}",
    b'{"step": 2, "lo',
    b"[" * 100_000,
]
"""Lines of `metrics.jsonl` that are no rows."""


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: repr(line[:20]))
def test_lines_that_are_no_rows_are_left_out(tmp_path, line):
    run = RunDirectory(tmp_path)
    for step in (1, 2):
        run.add_metrics({"step": step})
    path = tmp_path / "metrics.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + second + line)
    run.trim_metrics(1)
    assert path.read_bytes() == first
    path.write_bytes(line)
    run.start_afresh()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("resumes", [True, False])
def test_a_run_with_damaged_rows_trains_on(train_config, resumes):
    config = train_config(max_train_steps=2)
    list(train(config))
    path = Path(config.output_dir) / "metrics.jsonl"
    path.write_bytes(b"\n".join(DAMAGED) + b"\n" + path.read_bytes())
    wanted = "latest" if resumes else None
    list(train(train_config(max_train_steps=3, resume_from_checkpoint=wanted)))
    assert [row["step"] for row in read_metrics(config.output_dir)] == [1, 2, 3]
    assert json.loads((path.parent / "status.json").read_text())["phase"] == "done"
