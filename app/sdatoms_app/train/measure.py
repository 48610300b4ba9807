"""Minutes and memory of a training, measured on this machine by the trainer's own dry run."""

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
from sdatoms.training.presets import read_costs
from sdatoms_app.queue.worker import write_json
from sdatoms_app.train.drafts import Draft

__all__ = [
    "Measurements",
    "describe_facts",
    "describe_source",
    "make_key",
    "name_machine",
    "quote_cost",
    "sample_folder",
]

PATIENCE = 600
LINE = re.compile(r"^(\w[\w ]*?)\s{2,}(\S.*)$", re.MULTILINE)
IRRELEVANT = ("instance_prompt", "class_prompt", "validation_prompt", "trigger", "seed")
"""Settings that change neither minutes nor memory."""


class Measurements:
    """Dry runs by settings, base, machine and version; each is done once and kept in `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def find(self, settings: dict[str, Any]) -> dict[str, str] | None:
        """What was measured for these settings, or None."""
        return read_table(self.path, {}).get(make_key(settings))

    def measure(self, settings: dict[str, Any], pictures: Path) -> dict[str, str]:
        """Measure in a process of its own, unless it was done before.

        Args:
            settings: the trainer's settings, without folders.
            pictures: any folder of pictures: their number hardly counts.

        Raises:
            AtomError: the trainer refuses the settings; its own sentence.
        """
        with self._lock:
            known = self.find(settings)
            if known:
                return known
            facts = run_dry(settings, pictures)
            facts["machine"] = name_machine()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, read_table(self.path, {}) | {make_key(settings): facts})
            return facts


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


def name_machine() -> str:
    """Processor and cores, in words."""
    model = ""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        model = found[1] if found else ""
    except OSError:
        model = platform.processor()
    words = clip(" ".join((model or platform.machine()).split()), 60)
    return f"{words}, {os.cpu_count()} cores"


def describe_facts(facts: dict[str, str] | None, *, brief: bool = False) -> str:
    """Minutes, memory and size in one line."""
    if not facts:
        return "minutes and memory: not measured yet"
    minutes = f"{facts['minutes'].split()[0]} min" if facts.get("minutes") else ""
    parts = [minutes, facts.get("memory", "")]
    if not brief:
        parts[0] += " (without class pictures and samples)" if minutes else ""
        parts[1] += " of memory" if parts[1] else ""
        parts += [f"{facts['parameters']} trained numbers" if "parameters" in facts else ""]
        parts += [f"a file of {facts['bytes']} bytes" if "bytes" in facts else ""]
    return (" · " if brief else ", ").join(part for part in parts if part)


def quote_cost(preset: str) -> str:
    """What the library measured of a preset on the bundled base, elsewhere."""
    row = read_costs().get(preset.lower())
    if not row:
        return ""
    memory = row["peak_memory_bytes"] / 2**30
    return f" · {row['core_seconds'] / 60:.1f} min on one core, {memory:.1f} GiB"


def describe_source() -> str | None:
    """Where the library's costs were measured; None where it has none."""
    rows = list(read_costs().values())
    return f"Minutes “on one core” are those of: {rows[0]['device']}." if rows else None


def sample_folder(draft: Draft) -> Path:
    """Pictures to measure with: the draft's own, else a bundled subject's."""
    if draft.list():
        return draft.folder
    return next(iter(sorted((find_assets() / "subjects").iterdir())))
