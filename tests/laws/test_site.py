"""The documentation site builds without a warning, and what it tells people to type works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sdatoms.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("git", "cd", "bash", "source", "accelerate")
"""First words of lines that set up a machine: other tests run those scripts."""
PAGES = (
    "index.md",
    "using-files.md",
    "../app/comfyui/README.md",
    "../app/webui/README.md",
    "train-your-own.md",
    "cluster.md",
)
"""In the order in which a newcomer could type what they say."""


def read_lines(page):
    """The lines of a page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "assets").symlink_to(ROOT / "assets")
    (folder / "app").symlink_to(ROOT / "app")
    (folder / "my-dog").symlink_to(ROOT / "assets/subjects/cat")
    return folder


def run_pages(folder, monkeypatch, steps):
    """Type what the pages say, in their order; trainings end after `steps` where that is given."""
    monkeypatch.chdir(folder)
    ran = []
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S):
            exec(compile(block, page, "exec"), {"__name__": "page"})
        for words in read_lines(page):
            if words and words[0] in ("cp", "mkdir"):
                subprocess.run(words, check=True)
            elif words and words[0] not in ELSEWHERE and words[:2] != ["sdatoms", "ui"]:
                assert words[0] == "sdatoms", words
                less = ["--max_train_steps", str(steps)] if words[1] == "train" and steps else []
                assert not main([*words[1:], *less]), words
                ran.append(words[1])
    return ran


def test_every_command_of_the_pages_runs(workplace, monkeypatch):
    ran = run_pages(workplace, monkeypatch, 2)
    assert {"train", "generate", "inspect", "evaluate", "compose", "export"} <= set(ran)
    assert list(workplace.glob("outputs/pictures/*.png"))
    assert (workplace / "outputs/octopus-pipeline/model_index.json").is_file()
    assert (workplace / "ComfyUI/custom_nodes/sdatoms/__init__.py").is_file()
    assert (workplace / "stable-diffusion-webui/extensions/sdatoms/preload.py").is_file()


@pytest.mark.slow
def test_every_command_of_the_pages_runs_as_it_stands(tmp_path, monkeypatch):
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / "app").symlink_to(ROOT / "app")
    (tmp_path / "my-dog").symlink_to(ROOT / "assets/subjects/cat")
    run_pages(tmp_path, monkeypatch, None)


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "index.html").read_text()
    assert all(f'id="sdatoms.{name}"' in page for name in ("inject", "load_atoms", "TrainConfig"))
    commands = (tmp_path / "commands" / "index.html").read_text()
    assert all(f"sdatoms {name}" in commands for name in COMMANDS)
    assert "--instance_data_dir" in commands and "Peak learning rate" in commands
    assert "weakness" in (tmp_path / "security" / "index.html").read_text()


def test_every_page_stands_in_the_menu():
    menu = re.findall(r":\s+([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(menu) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_notebook_runs_on_the_bundled_base(tmp_path, monkeypatch):
    book = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    book.cells = [c for c in book.cells if "install" not in c.metadata.get("tags", ())]
    (settings,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", ())]
    pictures = ROOT / "assets/subjects/cat"
    settings.source += f'\nBASE, PROMPT, STEPS, PICTURES = "", "a sks cat", 2, "{pictures}"'
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    paths = [str(ROOT), str(ROOT / "app")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    NotebookClient(book, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "run/atoms.safetensors").is_file()
    assert (tmp_path / "run/lora.safetensors").is_file()
    shown = [out for cell in book.cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", {}) for out in shown) == 3
