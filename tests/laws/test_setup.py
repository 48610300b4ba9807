"""`scripts/setup.sh` on machines where something is missing, and in a fresh clone.

The programs written here stand for other people's: a Python too old, a disk too small.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.limits import HANG

ROOT = Path(__file__).parents[2]
TOOLS = "/usr/local/bin:/usr/bin:/bin"


@pytest.fixture
def clone(tmp_path):
    """What the set-up reads, in a folder without an environment."""
    shutil.copytree(ROOT / "scripts", tmp_path / "clone" / "scripts")
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "clone")
    return tmp_path / "clone"


def run(clone, *argv, **environment):
    """Run bash with an empty environment but for what is given."""
    given = {"PATH": TOOLS, "HOME": str(clone), "PYTHON": sys.executable} | environment
    return subprocess.run(
        ["bash", *argv], cwd=clone, env=given, capture_output=True, text=True, timeout=HANG
    )


def write_program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", ["demo.sh", "test.sh", "bench_gpu.sh"])
def test_a_missing_python_is_one_line(clone, script):
    done = run(clone, f"scripts/{script}", PYTHON="python-that-is-not-there")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "3.11" in done.stderr
    assert "python-that-is-not-there" in done.stderr and not (clone / ".venv").exists()


def test_an_old_python_is_named_with_its_version(clone, tmp_path):
    old = write_program(
        tmp_path / "bin" / "python3",
        'case "$2" in *version_info*) exit 1;; *) echo 3.10.14;; esac',
    )
    done = run(clone, "scripts/test.sh", PYTHON=str(old))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "3.11" in done.stderr and "3.10.14" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_disk_too_small_is_said_before_anything_is_installed(clone, tmp_path):
    write_program(
        tmp_path / "bin" / "df",
        'echo "Filesystem 1024-blocks Used Available"; echo "x 9 8 2048000"',
    )
    done = run(clone, "scripts/demo.sh", PATH=f"{tmp_path / 'bin'}:{TOOLS}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "2000 MB" in done.stderr and not (clone / ".venv").exists()


def test_a_set_up_that_stops_can_be_run_again(clone):
    (clone / ".venv" / "bin").mkdir(parents=True)  # as a run killed at its start leaves it
    for _ in range(2):
        done = run(clone, "scripts/demo.sh", PIP_NO_INDEX="1")  # no package can be found
        assert done.returncode not in (0, 2)
        assert "run this again" in done.stderr.splitlines()[-1]
        assert (clone / ".venv" / "bin" / "pip").exists()
        assert not (clone / ".venv" / ".installed").exists()


def test_a_second_run_installs_nothing(clone):
    stamp = subprocess.run(
        "cat constraints.txt pyproject.toml scripts/setup.sh | cksum",
        shell=True, cwd=clone, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / ".installed").write_text(stamp)
    done = run(clone, "-c", "source scripts/setup.sh; echo $PATH", PIP_NO_INDEX="1")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(str(clone / ".venv" / "bin") + os.pathsep)


@pytest.mark.slow
def test_the_demo_runs_in_a_fresh_clone_with_an_empty_environment(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    given = {"PATH": TOOLS, "HOME": str(tmp_path), "PYTHON": sys._base_executable}
    given |= {k: v for k, v in os.environ.items() if k.startswith("PIP_")}  # where the index is
    done = subprocess.run(
        ["bash", "scripts/demo.sh", "--max_train_steps", "3"],
        cwd=clone, env=given, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (clone / "outputs" / "demo" / "before-after.png").is_file()
    assert not subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout
