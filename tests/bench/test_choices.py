"""What the trainer's defaults are decided by says what its rows say."""

import pytest
from tiny.scripts import run_script

from sdatoms.bench.choices import KINDS, compare_kinds, compare_rules


def make_row(seed, step, kind, fidelity, alignment, drift):
    figures = {"fidelity": fidelity, "alignment": alignment, "drift": drift}
    balance = fidelity + alignment - drift
    unseen = {**figures, "likeness": 0.5, "fidelity": fidelity + 0.1}
    samples = {**figures, "balance": balance}
    return {"seed": seed, "step": step, "kind": kind, "samples": samples, "unseen": unseen}


def test_rules_choose_by_the_samples_and_are_judged_by_what_was_not_seen():
    rows = [
        make_row(seed, step, kind, fidelity + 0.1 * seed, alignment, drift)
        for seed in (0, 1)
        for kind in KINDS
        for step, fidelity, alignment, drift in ((50, 0.3, 0.6, 0.0), (100, 0.5, 0.3, 0.3))
    ]
    lines = compare_rules(rows).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines}
    assert cells["fidelity, live"][:2] == ["100, 100", "0.650"]  # 0.5 and 0.6, and 0.1
    assert cells["balance, averages"][:2] == ["50, 50", "0.450"]
    assert cells["the last step, live"][0] == "100, 100"
    table = compare_kinds(rows, [50, 100])
    assert "truth" not in table
    assert "| 50 | 0.450 → 0.450 (+0.000 … +0.000)" in table
    known = [{**row, "unseen": {**row["unseen"], "truth": 0.4}} for row in rows]
    assert "| 50 | 0.400 → 0.400 (+0.000 … +0.000) | 0.450" in compare_kinds(known, [50, 100])


@pytest.mark.slow
def test_a_seed_is_trained_once_and_kept(tmp_path):
    words = ["--subject", "ink", "--preset", "quick", "--marks", "1", "--threads", "1"]
    words += ["--output", str(tmp_path / "choices.json")]
    for seeds in (["0"], ["0", "1"]):
        said = run_script("bench_choices", *words, "--seeds", *seeds).stdout
        # The last seed's live atoms and averages; an earlier seed is not trained again.
        assert said.count('"seed": ') == said.count(f'"seed": {seeds[-1]}') == 2
    assert len(list(tmp_path.glob("choices-seed*.png"))) == 2
