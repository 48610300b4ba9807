"""Benchmarks of classifiers: chosen rates, resumption, what pre-training may see, processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.classifiers import finetune, save_resnet
from tiny.runs import join_two_processes

from sdatoms import AtomError
from sdatoms.bench.transfer import METHODS, TransferPlan, report_transfer, run_transfer
from sdatoms.classifiers.compare import compare_runs
from sdatoms.classifiers.pictures import Item, Pool, keep_test
from sdatoms.classifiers.pretrain import leave_out
from sdatoms.classifiers.sources import read_pool

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    return save_resnet(tmp_path / "resnet8.safetensors")


@pytest.fixture
def subjects(tmp_path):
    numbers = np.random.default_rng(0)
    for k, name in enumerate("ab"):
        (tmp_path / "subjects" / name).mkdir(parents=True)
        for n in range(6):
            pixels = numbers.integers(100 * k, 100 * k + 100, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "subjects" / name / f"{n}.png")
    return tmp_path / "subjects"


@pytest.fixture
def run_bench(model, subjects, tmp_path):
    """Run the transfer benchmark on the subjects, into `out`; gives all lines so far."""

    def run(*methods, **changes):
        given = {"tasks": ["subjects"], "seeds": [0], "subject_epochs": 1, "subject_draws": 1}
        plan = TransferPlan([model], tmp_path / "out", methods=methods, **{**given, **changes})
        run_transfer(plan, lambda task: read_pool(str(subjects)))
        report_transfer(plan.output_dir)
        return (tmp_path / "out" / "runs.jsonl").read_text().splitlines()

    return run


def test_the_benchmark_continues_and_later_seeds_take_the_chosen_rate(run_bench, tmp_path, capsys):
    out = tmp_path / "out"
    run_bench("linear probe")
    lines = run_bench("linear probe", "atoms", seeds=[0, 1])
    assert run_bench("linear probe", "atoms", seeds=[0, 1]) == lines
    rows = [json.loads(line) for line in lines]
    cells = [(row["method"], row["seed"]) for row in rows]
    assert cells == [("linear probe", 0), ("atoms", 0), ("linear probe", 1), ("atoms", 1)]
    for row, first in ((rows[2], rows[0]), (rows[3], rows[1])):
        assert 3 <= len(first["trials"]) <= 5 and len(row["trials"]) == 1
        assert row["learning_rate"] == first["learning_rate"]
    assert [row["parameters"] for row in rows] == [0, 7 * 81, 0, 7 * 81]
    table = (out / "resnet8.md").read_text()
    assert table.count("±") == 4 and "linear probe" in table
    assert (out / "resnet8.png").stat().st_size > 1000 and "atoms" in capsys.readouterr().out


def test_runs_of_another_length_are_kept_apart(run_bench, tmp_path):
    run_bench("linear probe")
    before = (tmp_path / "out" / "runs.jsonl").read_bytes()
    with pytest.raises(AtomError, match="over 1 epochs, not 2"):
        run_bench("linear probe", subject_epochs=2)
    assert (tmp_path / "out" / "runs.jsonl").read_bytes() == before


def test_all_methods_are_run_but_those_that_tuned_norms_make_equal():
    def listed(kind):
        plan = TransferPlan([], Path(), tasks=["subjects"], subject_draws=1, batch_norm=kind)
        return [method for _, method, _ in plan.list_cells()]

    assert listed("frozen") == list(METHODS)
    assert [m for m in listed("frozen") if m not in listed("tuned")] == [
        f"{variant} + norms" for variant in ("atoms", "overcomplete", "coefficients", "full")
    ]


def test_the_few_subjects_are_drawn_several_times_and_their_mean_counts(run_bench, tmp_path):
    run_bench("atoms")
    rows = [json.loads(line) for line in run_bench("atoms", subject_draws=3)]
    assert [row["draw"] for row in rows] == [0, 1, 2]
    assert [len(row["trials"]) for row in rows[1:]] == [1, 1]
    assert len({row["trials"][-1]["loss"] for row in rows}) == 3  # other pictures each
    mean = 100 * sum(row["test_accuracy"] for row in rows) / 3
    line = json.loads((tmp_path / "out" / "resnet8.json").read_text())[0]
    assert line["mean"] == line["subjects"] == f"{mean:.1f}"  # one seed has no deviation


@pytest.mark.slow
def test_tuned_batch_normalization_is_another_table_and_its_numbers_count(run_bench, tmp_path):
    out = tmp_path / "out"
    methods = ("atoms", "LoRA r1", "full fine-tuning")
    run_bench(*methods, batch_norm="frozen")
    rows = [json.loads(line) for line in run_bench(*methods, batch_norm="tuned")]
    frozen, tuned = (
        {row["method"]: row["parameters"] for row in rows if row["batch_norm"] == kind}
        for kind in ("frozen", "tuned")
    )
    norms = 2 * (3 * 16 + 2 * 32 + 2 * 64)
    grown = {name: tuned[name] - frozen[name] for name in tuned}
    assert grown == {"atoms": norms, "LoRA r1": norms, "full fine-tuning": 0}
    assert (out / "resnet8.md").exists() and (out / "resnet8-tuned.md").exists()


def test_finished_runs_make_a_table_and_a_plot(model, subjects, tmp_path):
    runs = []
    for method in ("atoms", "bias"):
        runs.append(tmp_path / method)
        words = ["--model", model, "--data", str(subjects), "--method", method, "--epochs", "1"]
        finetune([*words, "--output_dir", str(runs[-1])])
    out = tmp_path / "out"
    table = compare_runs(runs, out)
    assert (out / "comparison.md").read_text() == table
    assert "567" in table and (out / "comparison.png").exists()
    with pytest.raises(AtomError, match="holds no result"):
        compare_runs([out], out)


@pytest.mark.parametrize(
    ("flags", "blocks"),
    [
        (["coefficients"], (8, "channel", 0.045, None)),
        (["coefficients", "--block_atoms", "2"], (4, "joint", None, 2)),
        (["coefficients", "--block_size", "2"], (2, "joint", None, None)),
        (["coefficients", "--block_share", "0.3"], (4, "joint", 0.3, None)),
        (["full"], (4, "joint", None, None)),
    ],
)
def test_large_blocks_are_given_where_no_flag_asks_for_others(
    model, subjects, capsys, flags, blocks
):
    words = ["--model", model, "--data", str(subjects), "--epochs", "1", "--method"]
    finetune([*words, *flags])
    config = json.loads(capsys.readouterr().out.splitlines()[-1])["atoms"]
    names = ("block_size", "block_view", "block_share", "block_atoms")
    assert tuple(config[name] for name in names) == blocks


def test_pretraining_sees_no_concept_that_is_tested_later():
    picture = Image.new("RGB", (4, 4))
    pools = [
        Pool(
            "emoji",
            ("a", "b"),
            {"train": [Item(lambda: picture, n % 2, str(n)) for n in concepts]},
        )
        for concepts in (range(40), range(2, 38))
    ]
    later = keep_test(pools[1], seed=3)
    kept = leave_out(pools[0], later)
    tested = {item.group for item in later.items["test"]}
    assert len(tested) == 14
    assert {i.group for i in kept.items["train"]} == {str(n) for n in range(40)} - tested
    assert {i.group for i in kept.items["test"]} == tested


def work(rank, port, words, folder):
    join_two_processes(rank, port)
    finetune([*words, "--output_dir", folder])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_does(model, subjects, tmp_path):
    from socket import socket

    from safetensors.torch import load_file

    # Eight training pictures in threes: the last batch has two, and one process gets one of them.
    words = ["--model", model, "--data", str(subjects), "--method", "full", "--epochs", "2"]
    words += ["--train_batch_size", "3", "--num_train", "8"]
    finetune([*words, "--output_dir", str(tmp_path / "one")])
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    arguments = lambda rank: (rank, port, words, str(tmp_path / "two"))
    workers = [context.Process(target=work, args=arguments(rank)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
        assert worker.exitcode == 0
    for file in ("atoms.safetensors", "head.safetensors"):
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
