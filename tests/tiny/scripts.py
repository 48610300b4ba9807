"""Scripts as a user runs them."""

import runpy
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run_script(name, *words, code=0):
    """`python scripts/NAME.py WORDS`, which has to end with `code`."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def call_script(monkeypatch, path, *words):
    """The same in this process, where the law is not about processes: nothing is imported anew."""
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, words)])
    runpy.run_path(str(path), run_name="__main__")
