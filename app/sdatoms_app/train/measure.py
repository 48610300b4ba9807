"""Minutes and memory of a training, measured on this machine by the trainer's own dry run.

Steps take as long as they take whatever their number, so one measurement serves all settings that
differ in nothing but steps, rates and samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import sdatoms
from sdatoms import AtomError
from sdatoms.errors import clip
from sdatoms.storage import find_assets, read_table
from sdatoms.training.config import TrainConfig
from sdatoms_app.queue.worker import write_json
from sdatoms_app.train.drafts import Draft

__all__ = [
    "Measurements",
    "describe_facts",
    "describe_minutes",
    "make_key",
    "sample_folder",
]

PATIENCE = 600
LONG = 10_000
"""Steps whose minutes are asked for, so that a tenth of a minute is no coarse measure."""
LINE = re.compile(r"^(\w[\w ]*?)\s{2,}(\S.*)$", re.MULTILINE)
IRRELEVANT = (
    *("instance_prompt", "class_prompt", "trigger", "seed", "prior_loss_weight", "random_flip"),
    *("max_train_steps", "learning_rate", "spatial_learning_rate", "block_learning_rate"),
    *("lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power"),
    *("validation_prompt", "validation_steps", "num_validation_images", "num_drift_images"),
    *("validation_scheduler", "num_inference_steps"),
    *("best_metric", "best_metric_goal", "early_stopping_patience"),
    *("checkpointing_steps", "checkpoints_total_limit"),
)
"""Settings that change neither the seconds of a step nor the memory."""


class Measurements:
    """Dry runs by settings, base, machine and version; each is done once and kept in `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def find(self, settings: dict[str, Any]) -> dict[str, str] | None:
        """What was measured for these settings, its minutes for as many steps as they have; None
        where nothing was."""
        facts: Any = read_table(self.path, {}).get(make_key(settings))
        steps = settings.get("max_train_steps", TrainConfig.max_train_steps)
        try:
            minutes, _, apart = facts["minutes"].partition(" ")
            scaled = float(minutes) * steps / int(facts["steps"])
        except (TypeError, AttributeError, LookupError, ArithmeticError, ValueError):
            return None  # none are there, or they are damaged
        return facts | {"steps": str(steps), "minutes": f"{scaled:.1f} {apart}".strip()}

    def measure(
        self, settings: dict[str, Any], pictures: Path, *, anew: bool = False
    ) -> dict[str, str]:
        """Measure in a process of its own, unless it was done before.

        Args:
            settings: the trainer's settings, without folders.
            pictures: any folder of pictures: their number hardly counts.
            anew: measure all the same; the machine may have been busy then.

        Raises:
            AtomError: the trainer refuses the settings; its own sentence.
        """
        with self._lock:
            known = self.find(settings)
            if known and not anew:
                return known
            facts = run_dry(settings | {"max_train_steps": LONG}, pictures)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, read_table(self.path, {}) | {make_key(settings): facts})
            found = self.find(settings)
            assert found is not None
            return found


def run_dry(settings: dict[str, Any], pictures: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        request = settings | {
            "instance_data_dir": str(pictures),
            "instance_prompt": settings.get("instance_prompt") or "a picture",
            "output_dir": str(Path(folder) / "run"),
        }
        write_json(Path(folder) / "request.json", request)
        command = [sys.executable, "-m", "sdatoms", "train", "--dry_run"]
        command += ["--config", str(Path(folder) / "request.json")]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                env=os.environ | {"TQDM_DISABLE": "1"},
            )
        except subprocess.TimeoutExpired:
            raise AtomError(f"the measurement took more than {PATIENCE} s and was ended") from None
    facts = dict(LINE.findall(done.stdout))
    if done.returncode or not facts:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise AtomError(f"the trainer could not measure this: {clip(lines[-1], 300)}")
    return facts


def make_key(settings: dict[str, Any]) -> str:
    """A digest of all that changes minutes or memory."""
    counted = {k: v for k, v in sorted(settings.items()) if k not in IRRELEVANT}
    where = [platform.node(), os.cpu_count(), sdatoms.__version__]
    return hashlib.sha256(json.dumps([counted, where]).encode()).hexdigest()[:32]


def describe_facts(facts: dict[str, str] | None, *, brief: bool = False) -> str:
    """Memory and size in one line; briefly, minutes and memory."""
    if not facts:
        return ""
    if brief:
        minutes = f"{facts['minutes'].split()[0]} min" if facts.get("minutes") else ""
        return " · ".join(filter(None, (minutes, facts.get("memory", ""))))
    parts = [f"{facts['memory']} of memory"] if facts.get("memory") else []
    if facts.get("bytes") and facts.get("parameters"):
        size = f"{int(facts['bytes']) / 1000:,.0f} kB"
        parts.append(f"the file has {size} ({int(facts['parameters']):,} trained numbers)")
    return "; ".join(parts)


def describe_minutes(facts: dict[str, str] | None) -> str:
    """How long it takes here, for a sentence; empty where that is not known."""
    if not facts or not facts.get("minutes"):
        return ""
    minutes = float(facts["minutes"].split()[0])
    if minutes < 1:
        return "less than a minute on this machine"
    amount = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} min"
    return f"about {amount} on this machine"


def sample_folder(draft: Draft) -> Path:
    """Pictures to measure with: the draft's own, else a bundled subject's."""
    if draft.list():
        return draft.folder
    return next(iter(sorted((find_assets() / "subjects").iterdir())))
