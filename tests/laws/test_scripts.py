"""Scripts as a user runs them: flags in, figures out."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.classifiers import save_resnet
from tiny.scripts import SCRIPTS, call_script, run_script


@pytest.fixture
def pictures(tmp_path):
    """Folders `a`, `b` of six noisy pictures."""
    numbers = np.random.default_rng(0)
    for k, name in enumerate("ab"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for n in range(6):
            pixels = numbers.integers(100 * k, 100 * k + 100, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{n}.png")
    return tmp_path / "pictures"


def test_wrong_input_is_one_line(tmp_path, monkeypatch, capsys):
    script = SCRIPTS / "compare_classifiers.py"
    with pytest.raises(SystemExit) as stop:
        call_script(monkeypatch, script, tmp_path, "--output_dir", tmp_path / "out")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no result.json" in line


@pytest.mark.slow
def test_a_classifier_is_tuned_and_compared(pictures, tmp_path):
    torch.manual_seed(0)
    model, run = save_resnet(tmp_path / "resnet8.safetensors"), tmp_path / "run"
    words = ["--model", model, "--data", pictures, "--method", "atoms", "--epochs", "1"]
    done = run_script("finetune_classifier", *words, "--output_dir", run)
    assert json.loads(done.stdout.splitlines()[-1])["parameters"] == 567
    done = run_script("compare_classifiers", run, "--output_dir", tmp_path / "out")
    assert done.stdout == (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.slow
def test_a_figure_of_a_process_of_its_own_is_printed(tmp_path):
    words = ["--cases", "bundled", "--methods", "atoms", "--steps", "1", "--threads", "1"]
    done = run_script("bench_training", *words, "--output", tmp_path / "facts.json")
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert json.loads(done.stdout) == facts
    row = facts["cases"]["bundled"]["atoms"]
    assert row["parameters"] == 2268 and row["bytes"] < 30_000 and row["peak_bytes"] > 1e8


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_every_script_says_what_it_does(name):
    assert "usage:" in run_script(name, "--help").stdout
