"""Two processes train as one does."""

from dataclasses import asdict
from socket import socket

import pytest
import torch
from tiny.limits import HANG
from tiny.runs import join_two_processes, read_tensors

from sdatoms.training.config import TrainConfig
from sdatoms.training.loop import train

CASES = {
    "plain": {"gradient_accumulation_steps": 2},
    "text and prior": {
        "train_text_encoder": True,
        "with_prior_preservation": True,
        "prior_preservation_mode": "prediction",
        "class_prompt": "cat",
        "proportion_empty_prompts": 0.5,
    },
}


def work(rank, port, values, changes, queue):
    join_two_processes(rank, port)
    config = TrainConfig(**{**values, **changes})
    steps = list(train(config))
    queue.put((rank, [step.loss for step in steps]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_gloo_processes_give_the_one_process_result(train_config, tmp_path, name):
    config = train_config(
        train_batch_size=4, output_dir=str(tmp_path / "one"), learning_rate=1e-2, **CASES[name]
    )
    losses = [step.loss for step in train(config)]
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    changes = {"train_batch_size": 2, "output_dir": str(tmp_path / "two")}
    workers = [
        context.Process(target=work, args=(rank, port, asdict(config), changes, queue))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=HANG) for _ in workers)
    for worker in workers:
        worker.join(HANG)
        assert worker.exitcode == 0
    assert found[0] == found[1] == pytest.approx(losses, rel=1e-4)
    one, two = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "two")
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
