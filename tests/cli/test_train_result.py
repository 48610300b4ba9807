"""What `sdatoms train` says when it is done, read as a newcomer would."""

import json

from sdatoms.cli.train_result import describe_training

REPORT = {
    "steps": 300,
    "chosen_step": 200,
    "seconds": 131.0,
    "bytes": 547_000,
    "parameters": 1234,
    "metrics": {
        "base": {"fidelity": 0.3, "drift": -1e-7, "balance": 0.9},
        "step-000200": {"fidelity": 0.5, "drift": 0.01, "balance": 0.8},
    },
}


def test_it_says_what_happened_how_good_it_is_where_and_what_next(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "samples.png").touch()
    text = describe_training(tmp_path, "a sks dog", "some/base")
    for said in (
        "Done: 300 steps, the best of them 200, in 2 minutes.",
        f"{tmp_path / 'atoms.safetensors'} (547 kB, 1,234 trained numbers)",
        str(tmp_path / "samples.png"),
        "fidelity ↑     0.500       0.300   is drawn like your pictures",
        "drift ↓        0.010       0.000",
        "sdatoms generate 'a sks dog' --atoms",
        "--pretrained_model_name_or_path some/base",
    ):
        assert said in text, said
    assert "balance" not in text


def test_without_measures_or_report_it_says_less(tmp_path):
    assert describe_training(tmp_path, "a dog") == ""
    (tmp_path / "report.json").write_text(json.dumps(REPORT | {"metrics": {}, "chosen_step": 300}))
    text = describe_training(tmp_path, "a dog")
    assert "Done: 300 steps, in" in text and "How good" not in text and "How it went" not in text
