"""What a run's `report.json` says: numbers, bytes, seconds, memory, versions."""

from __future__ import annotations

import platform
import resource
import time
from pathlib import Path
from typing import Any

import torch

from sdatoms.pipeline import find_base
from sdatoms.trainer import Trainer

__all__ = ["describe_run"]


def describe_run(trainer: Trainer, path: Path) -> dict[str, Any]:
    """Facts about a run whose atom file is at `path`."""
    import diffusers
    import transformers

    import sdatoms

    names = dict.fromkeys(row.name for row in trainer.instances)
    return {
        "parameters": trainer.num_parameters,
        "bytes": path.stat().st_size,
        "seconds": round(time.time() - trainer.began, 2),
        "steps": trainer.step,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if platform.system() == "Darwin" else 1024),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "base_model": find_base(trainer.config.pretrained_model_name_or_path).rsplit("/", 1)[-1],
        "instance_pictures": list(names),
        "picture_notes": list(trainer.notes),
        "class_pictures": len(trainer.classes) if trainer.classes is not None else 0,
        "versions": {
            "sdatoms": sdatoms.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
