"""What a finished run says of itself: the facts of `report.json`, its model card, the hub.

The facts are numbers, bytes, seconds, memory, pictures and versions.
"""

from __future__ import annotations

import json
import platform
import re
import resource
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from sdatoms.errors import AtomError, first_line
from sdatoms.training.run_folder import name_step
from sdatoms.version import __version__

__all__ = [
    "describe_run",
    "name_device",
    "push_run",
    "write_card",
]


def describe_run(
    path: Path,
    *,
    parameters: int,
    began: float,
    steps: int,
    base: str,
    instances: Iterable[str],
    notes: Sequence[str],
    class_pictures: int,
) -> dict[str, Any]:
    """Facts about a run whose atom file is at `path`.

    Args:
        parameters: trained numbers.
        began: when it began, seconds since 1970.
        base: name of the base model.
        instances: names of the pictures, as often as they come.
        notes: what was found odd in the instance folder.
    """
    import diffusers
    import transformers

    return {
        "parameters": parameters,
        "bytes": path.stat().st_size,
        "seconds": round(time.time() - began, 2),
        "steps": steps,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if platform.system() == "Darwin" else 1024),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "device": name_device(),
        "base_model": base,
        "instance_pictures": list(dict.fromkeys(instances)),
        "picture_notes": list(notes),
        "class_pictures": class_pictures,
        "versions": {
            "sdatoms": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def name_device() -> str:
    """The GPU's name, or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.M)
    return found[1] if found else platform.machine() or "CPU"


PUSHED = ("README.md", "atoms.safetensors", "samples.png", "report.json", "config.toml")


def write_card(
    facts: dict[str, Any], *, words: str, base: str | None, variant: str, seed: int, has_grid: bool
) -> str:
    """A model card in Markdown, with the front matter the hub reads.

    Args:
        facts: what report.json says.
        words: the trigger.
        base: what the run was given as its base; None: the bundled one.
        variant: which tensors were trained.
        has_grid: whether there is a samples.png to show.
    """
    on_hub = base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    front = {
        "base_model": base if on_hub else None,
        "library_name": "diffusers",
        "instance_prompt": words,
        "tags": ["text-to-image", "stable-diffusion", "dreambooth", "filter-atoms", "sdatoms"],
    }
    lines = ["---"]
    lines += [f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None]
    lines += ["---", "", f"# {words}", ""]
    if has_grid:
        lines += ["![Samples, the base in the first column](samples.png)", ""]
    lines += [
        f"{facts['parameters']:,} numbers of {variant} filter atoms, {facts['bytes']:,} bytes, for "
        f"`{facts['base_model']}`; trained on {len(facts['instance_pictures'])} pictures for "
        f"{facts['steps']} steps in {facts['seconds']:.0f} seconds.",
        "",
        "```python",
        "import sdatoms",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({base or 'path to the bundled base'!r})",
        'sdatoms.load_atoms(pipe, "atoms.safetensors")',
        f"image = pipe({words!r}).images[0]",
        "```",
        "",
    ]
    measured = facts["metrics"].get(name_step(facts["chosen_step"]), {})
    if measured:
        before = facts["metrics"].get("base", {})
        lines += ["| measured | base | these atoms |", "|---|---|---|"]
        for name, value in measured.items():
            shown = f"{before[name]:.3f}" if name in before else "–"
            lines.append(f"| {name} | {shown} | {value:.3f} |")
        lines.append("")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return "\n".join([*lines, f"Seed {seed}; {versions}.", ""])


def push_run(run: Path, repository: str | None) -> str:
    """Upload the card, the atom file, samples and report; returns the repository's address.

    Args:
        repository: the run directory's name when None.

    The login is huggingface_hub's own (`hf auth login` or `HF_TOKEN`); no token is written down.

    Raises:
        AtomError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    name = repository or run.resolve().name
    try:
        api = HfApi()
        where = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=where.repo_id, folder_path=run, allow_patterns=list(PUSHED))
    except Exception as error:  # the client raises a dozen kinds, its network's among them
        raise AtomError(
            f"the run {str(run)!r} is complete on disk but could not be pushed to {name!r}: "
            f"{first_line(error)}"
        ) from None
    return str(where)
