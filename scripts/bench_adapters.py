"""How long loading, re-strengthening and clearing adapters takes on a UNet, and what it holds.

    python scripts/bench_adapters.py --output adapters.json

Times are medians of `--runs` rounds; every round ends with all weights restored, which is checked.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from sdatoms import AtomConfig, inject, load_atoms, read_atoms, save_atoms
from sdatoms.fingerprint import checksum
from sdatoms.models.open import build_model

PAGE = os.sysconf("SC_PAGE_SIZE")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def held_bytes() -> int:
    """Memory the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def timed(times: list[float], call):
    start = time.perf_counter()
    result = call()
    times.append(time.perf_counter() - start)
    return result


def bench(model, variant: str, runs: int, folder: Path) -> dict:
    sums = {name: checksum(p) for name, p in model.named_parameters()}
    start = time.perf_counter()
    injection = inject(model, AtomConfig(variant))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    path = save_atoms(folder / f"{variant}.safetensors", {"unet": injection})
    facts = {
        "parameters": injection.num_parameters,
        "layers": len(injection.layers),
        "file_bytes": path.stat().st_size,
        "inject_seconds": round(seconds, 2),
    }
    injection.eject()
    del injection
    file, times, extra = read_atoms(path), {"bake": [], "re-strength": [], "clear": []}, []
    for _ in range(runs):
        before = held_bytes()
        adapters = timed(times["bake"], lambda: load_atoms(model, file, name="a"))
        timed(times["re-strength"], lambda a=adapters: a.set_strengths({"a": 0.5}))
        extra.append(held_bytes() - before)
        timed(times["clear"], adapters.clear)
    for name, parameter in model.named_parameters():
        assert checksum(parameter) == sums[name], f"{variant} did not restore {name}"
    facts |= {f"{what}_seconds": round(statistics.median(t), 3) for what, t in times.items()}
    return facts | {"extra_bytes": int(statistics.median(extra)), "rounds": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sd15-unet")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    names = ["atoms", "overcomplete", "coefficients", "full"]
    parser.add_argument("--variants", nargs="+", default=names, choices=names)
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only printed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build_model(args.model, DTYPES[args.dtype])
    facts = {"model": args.model, "dtype": args.dtype, "threads": args.threads}
    facts |= {"torch": torch.__version__, "load_average": os.getloadavg(), "variants": {}}
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.variants:
            facts["variants"][variant] = bench(model, variant, args.runs, Path(folder))
            print(variant, json.dumps(facts["variants"][variant]), file=sys.stderr)
    facts["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = json.dumps(facts, indent=2)
    if args.output:
        args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
