"""What a training step costs: every variant, LoRA r = 4 on the same layers, and full fine-tuning.

    python scripts/bench_training.py --output training.json
    python scripts/bench_training.py --presets --output sdatoms/training/presets.json

Each method runs in a process of its own: peak memory is that process's, and `seconds_per_step` the
median after the first step, of one UNet with random latents and text in AdamW. Cases are the
bundled base and Stable Diffusion 1.5's UNet (random weights) at 256 px, on a CPU in float32; where
there is a GPU, the latter at 512 px in bfloat16 autocast too. Ratios are to the LoRA on the layers
that the variant tunes. `--presets` trains each preset on a bundled subject, from the command to
its atom file. `core_seconds` are processor time: with one thread, and on a machine not shared, the
time by the clock.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save as save_tensors
from torch import nn

import sdatoms
from sdatoms.cli.train import find_measure
from sdatoms.diffusion.pipeline import load_base
from sdatoms.files.writer import pack_atoms
from sdatoms.models.open import build_model
from sdatoms.storage import read_subject, write_whole
from sdatoms.training.config import TrainConfig
from sdatoms.training.loop import train
from sdatoms.training.presets import PRESETS, expand_preset
from sdatoms.training.trainer import choose_attention

SPATIAL, ALL = "LoRA r4 on the layers of atoms", "LoRA r4 on the layers of full"
FULL = "full fine-tuning"
RIVALS = {"atoms": SPATIAL, "overcomplete": SPATIAL, "coefficients": ALL, "full": ALL}
"""Variant → the LoRA that tunes the same layers."""
METHODS = (*RIVALS, SPATIAL, ALL, FULL)
TIMES = ("seconds_per_step", "core_seconds_per_step")
"""By the clock, and of all processors together, which a shared machine does not blur."""
SUBJECTS = {"style": "ink", "pet": "cat"}
"""Preset → bundled subject; the others take the octopus."""


@dataclass(frozen=True)
class Case:
    """One model at one size."""

    model: str
    px: int
    batch: int
    steps: int
    device: str = "cpu"


CASES = {
    "bundled": Case("bundled", 64, 4, 8),
    "sd15": Case("sd15-unet", 256, 1, 3),
    "sd15-gpu": Case("sd15-unet", 512, 1, 12, "cuda"),
    "sd15-gpu-4": Case("sd15-unet", 512, 4, 12, "cuda"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = [
        name for name, case in CASES.items() if case.device == "cpu" or torch.cuda.is_available()
    ]
    parser.add_argument("--cases", nargs="+", default=here, choices=list(CASES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        help="of every method and case; of a preset, whose cost is then scaled to its own steps",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--presets", nargs="*", default=None, choices=list(PRESETS))
    parser.add_argument("--evaluator", default=None, help="measures the presets' samples")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only printed")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # case, method, steps
    parser.add_argument("--one-preset", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one_preset:
        print(json.dumps(bench_preset(args.one_preset, args.steps, args.evaluator)))
        return
    if args.one:
        case, method, steps = args.one
        print(json.dumps(bench(CASES[case], method, int(steps))))
        return
    facts: dict[str, Any] = {
        "threads": args.threads,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else read_cpu(),
    }
    if args.presets is not None:
        facts["presets"] = read_rows(facts, args.output)
        for name in args.presets or PRESETS:
            facts["presets"][name] = run_preset(name, args)
            write(facts, args.output)
    else:
        facts["cases"] = {}
        for name in args.cases:
            facts["cases"][name] = rows = {}
            for method in args.methods:
                rows[method] = run_method(name, method, args)
                add_ratios(rows)
                write(facts, args.output)
    print(json.dumps(facts, indent=2))


def write(facts: dict[str, Any], output: Path | None) -> None:
    """What is known so far; a run that is cut short keeps it."""
    if output:
        write_whole(output, (json.dumps(facts, indent=2) + "\n").encode())


def read_rows(facts: dict[str, Any], output: Path | None) -> dict[str, Any]:
    """Presets measured before on the same machine, so that one may be measured again alone."""
    known = json.loads(output.read_text()) if output and output.is_file() else {}
    same = all(known.get(key) == value for key, value in facts.items())
    return known.get("presets", {}) if same else {}


def read_cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else "CPU"


def run_method(case: str, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """`bench` in a process of its own."""
    steps = args.steps or CASES[case].steps
    command = [sys.executable, __file__, "--threads", str(args.threads)]
    done = subprocess.run(
        [*command, "--one", case, method, str(steps)], capture_output=True, text=True
    )
    why = (done.stderr.strip().splitlines() or [""])[-1]
    row = json.loads(done.stdout) if done.returncode == 0 else {"failed": why[:300]}
    print(case, method, json.dumps(row), file=sys.stderr)
    return row


def add_ratios(rows: dict[str, dict[str, Any]]) -> None:
    for variant, rival in RIVALS.items():
        row, other = rows.get(variant, {}), rows.get(rival, {})
        if "seconds_per_step" in row and "seconds_per_step" in other:
            row["to_lora"] = {
                key: round(row[key] / other[key], 3)
                for key in ("parameters", "bytes", *TIMES, "peak_bytes")
            }


def bench(case: Case, method: str, steps: int) -> dict[str, Any]:
    """Train one method for a few steps.

    A method that needs more than the machine's free memory fails by itself, and ends nothing else.
    """
    if case.device == "cpu":
        limit_memory()
    device = torch.device(case.device)
    unet = load_base(device=device).unet if case.model == "bundled" else build_model(case.model)
    unet = unet.to(device).train()
    parameters, save = attach(unet, method)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(device)
    side, channels = case.px // 8, unet.config.in_channels
    forget_peak(device)
    held, seconds, used = read_peak(device), [], []
    for _ in range(steps):
        latents, noise = (draw(case.batch, channels, side, side) for _ in range(2))
        context = draw(case.batch, 77, unet.config.cross_attention_dim)
        timesteps = torch.randint(1000, (case.batch,), generator=generator).to(device)
        began, worked = time.perf_counter(), time.process_time()
        half = torch.autocast("cuda", torch.bfloat16) if case.device == "cuda" else nullcontext()
        with half, choose_attention(device):
            predicted = unet(latents, timesteps, context, return_dict=False)[0]
            (predicted.float() - noise).square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if case.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        used.append(time.process_time() - worked)
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": save(),
        "seconds_per_step": round(statistics.median(seconds[1:] or seconds), 3),
        "core_seconds_per_step": round(statistics.median(used[1:] or used), 3),
        "peak_bytes": read_peak(device),
        "held_before_bytes": held,
        "batch": case.batch,
        "px": case.px,
        "steps": steps,
    }


def attach(unet: Any, method: str) -> tuple[list[nn.Parameter], Any]:
    """Trained parameters, and what tells the bytes of the file that holds them."""
    if method == FULL:
        unet.requires_grad_(True)
        return list(unet.parameters()), lambda: 4 * sum(p.numel() for p in unet.parameters())
    variant = method if method in RIVALS else {SPATIAL: "atoms", ALL: "full"}[method]
    injection = sdatoms.inject(unet, sdatoms.AtomConfig(variant))
    if method in RIVALS:
        file = lambda: pack_atoms({"unet": injection}, trigger="sks", base_model="base")
        size = lambda: len(save_tensors(file().tensors, file().metadata))
        return list(injection.parameters()), size
    paths = list(injection.layers)
    injection.eject()
    unet.requires_grad_(False)
    pattern = "|".join(map(re.escape, paths))
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=f"^({pattern})$"), unet)
    trained = [p for p in unet.parameters() if p.requires_grad]
    tensors = lambda: {k: v.contiguous() for k, v in get_peft_model_state_dict(unet).items()}
    return trained, lambda: len(save_tensors(tensors()))


def limit_memory() -> None:
    free = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    if free:
        most = int(0.95 * 1024 * int(free[1]))
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def forget_peak(device: torch.device) -> None:
    """Loading may take more than training does; only the latter counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def read_peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def run_preset(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """`bench_preset` in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(args.threads), "--one-preset", name]
    command += ["--evaluator", args.evaluator] if args.evaluator else []
    command += ["--steps", str(args.steps)] if args.steps else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(name, done.stdout.strip(), file=sys.stderr)
    return json.loads(done.stdout)


def bench_preset(name: str, steps: int | None, evaluator: str | None) -> dict[str, Any]:
    """Train one preset on a bundled subject, from the command to its atom file.

    Args:
        steps: train so many only, with one round of samples, and count the rest as more of the
            same; what is measured on the samples is then left out.
    """
    folder, about = read_subject(SUBJECTS.get(name, "octopus"))
    given = {"instance_data_dir": str(folder), "instance_prompt": about["instance_prompt"]}
    full = TrainConfig(**expand_preset(name, given), evaluator=evaluator)
    config = replace(full, max_train_steps=steps, validation_steps=steps) if steps else full
    clocks = (time.time, time.process_time)
    marks = [[psutil.Process().create_time(), 0.0]]  # starting Python and loading count as well
    with tempfile.TemporaryDirectory() as run:
        config = replace(config, output_dir=run)
        for _ in train(config, evaluate=find_measure(config)):
            marks.append([clock() for clock in clocks])
        marks.append([clock() for clock in clocks])
        report = json.loads((Path(run) / "report.json").read_text())
    row: dict[str, Any] = {"subject": folder.name, "settings": dict(PRESETS[name].settings)}
    for which, key in enumerate(("seconds", "core_seconds")):
        spent = [after[which] - before[which] for before, after in pairwise(marks)]
        total = sum(spent)
        if steps:
            step = statistics.median(spent[1:-2])
            rounds = full.max_train_steps // full.validation_steps
            total += (full.max_train_steps - steps) * step + (rounds - 1) * (spent[-2] - step)
        row[key] = round(total, 1)
    kept = ("parameters", "bytes", "peak_memory_bytes", "peak_gpu_bytes")
    row |= {key: report[key] for key in kept} | {"steps": full.max_train_steps}
    if steps:
        return row | {"scaled_from_steps": steps}
    return row | {"chosen_step": report["chosen_step"], "measured": report["metrics"]}


if __name__ == "__main__":
    main()
