"""What a training step costs: every variant, LoRA r = 4 on the same layers, and full fine-tuning.

    python scripts/bench_training.py --output training.json
    python scripts/bench_training.py --presets --output sdatoms/presets.json

Each method runs in a process of its own: peak memory is that process's, and `seconds_per_step` the
median after the first step, of one UNet with random latents and text in AdamW. Cases are the
bundled base and Stable Diffusion 1.5's UNet (random weights) at 256 px, on a CPU in float32; where
there is a GPU, the latter at 512 px in bfloat16 autocast too. Ratios are to the LoRA on the layers
that the variant tunes. `--presets` trains each preset on a bundled subject, from its command to its
atom file, and takes the figures of its report.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save as save_tensors
from torch import nn

import sdatoms
from sdatoms.checkpoint import pack_atoms, write_whole
from sdatoms.demo import read_subject
from sdatoms.models import build_model
from sdatoms.pipeline import load_base
from sdatoms.presets import PRESETS
from sdatoms.trainer import choose_attention

SPATIAL, ALL = "LoRA r4 on the layers of atoms", "LoRA r4 on the layers of full"
FULL = "full fine-tuning"
RIVALS = {"atoms": SPATIAL, "overcomplete": SPATIAL, "coefficients": ALL, "full": ALL}
"""Variant → the LoRA that tunes the same layers."""
METHODS = (*RIVALS, SPATIAL, ALL, FULL)
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
    parser.add_argument("--steps", type=int, default=None, help="of every method and case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--presets", nargs="*", default=None, choices=list(PRESETS))
    parser.add_argument("--evaluator", default=None, help="measures the presets' samples")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only printed")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # case, method, steps
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
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
                for key in ("parameters", "bytes", "seconds_per_step", "peak_bytes")
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
    held, seconds = read_peak(device), []
    for _ in range(steps):
        latents, noise = (draw(case.batch, channels, side, side) for _ in range(2))
        context = draw(case.batch, 77, unet.config.cross_attention_dim)
        timesteps = torch.randint(1000, (case.batch,), generator=generator).to(device)
        began = time.perf_counter()
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
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": save(),
        "seconds_per_step": round(statistics.median(seconds[1:] or seconds), 3),
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
    """Train one preset on a bundled subject, as its user would."""
    folder, about = read_subject(SUBJECTS.get(name, "octopus"))
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, "-m", "sdatoms", "train", "--preset", name]
        command += ["--instance_data_dir", str(folder), "--output_dir", run]
        command += ["--instance_prompt", about["instance_prompt"]]
        command += ["--evaluator", args.evaluator] if args.evaluator else []
        began = time.perf_counter()
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(args.threads)})
        seconds = time.perf_counter() - began
        report = json.loads((Path(run) / "report.json").read_text())
    kept = ("parameters", "bytes", "steps", "chosen_step", "peak_memory_bytes", "peak_gpu_bytes")
    row = {"subject": folder.name, "seconds": round(seconds, 1)} | {k: report[k] for k in kept}
    row |= {"settings": dict(PRESETS[name].settings), "measured": report["metrics"]}
    print(name, json.dumps(row), file=sys.stderr)
    return row


if __name__ == "__main__":
    main()
