"""The documentation site builds without a warning, and what it tells people to type works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

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
    "painting.md",
    "sampling.md",
    "strengths.md",
    "truth.md",
    "training.md",
)
"""In the order in which a newcomer could type what they say."""
FILES = {
    "app": "app",
    "assets": "assets",
    "my-dog": "assets/subjects/cat",
    "dog.safetensors": "assets/examples/robot.safetensors",
    "ink.safetensors": "assets/examples/ink.safetensors",
    "run/atoms.safetensors": "assets/examples/robot.safetensors",
    "BASE": "assets/emoji-sd",
    "dog": "assets/subjects/cat",
}
"""What the pages take for given → what stands for it here."""


def read_lines(page):
    """The lines of a page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def furnish(folder):
    for name, path in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / path)
    shutil.make_archive(str(folder / "vase"), "zip", ROOT / "assets/subjects/octopus")
    Image.new("RGB", (64, 64), "orange").save(folder / "fox.jpg")
    Image.new("L", (64, 64), "white").save(folder / "hat.png")
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return furnish(tmp_path_factory.mktemp("site"))


FEWER = {
    "train": ["--max_train_steps", "2", "--validation_steps", "0"],
    "generate": ["--num_inference_steps", "2"],
    "evaluate": ["--num_inference_steps", "2", "--prompt", "a sks horse at night", "--seeds", "1"],
}
"""What is added to a command where the pages are tried and not lived."""
OURS = {"dinov2": str(ROOT / "assets/emoji-clip")}
"""Evaluators of the pages that lie on a hub → what stands for them here."""


def run_pages(folder, monkeypatch, added):
    """Type what the pages say, in their order, with the flags that are added to a command, and
    train what their settings describe."""
    monkeypatch.chdir(folder)
    ran = []
    for page in PAGES:
        text = (ROOT / "docs" / page).read_text()
        for n, block in enumerate(re.findall(r"```toml\n(.*?)```", text, re.S)):
            Path("data.toml").write_text(block)
            words = ["--data_config", "data.toml", "--output_dir", f"outputs/{page}-{n}"]
            assert not main(["train", *words, *FEWER["train"]]), block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S):
            exec(compile(block, page, "exec"), {"__name__": "page"})
        for words in read_lines(page):
            words = [OURS.get(word, word) for word in words]
            if words and words[0] in ("cp", "mkdir"):
                subprocess.run(words, check=True)
            elif words and words[0] not in ELSEWHERE and words[:2] != ["sdatoms", "ui"]:
                assert words[0] == "sdatoms", words
                assert not main([*words[1:], *added.get(words[1], [])]), words
                ran.append(words[1])
    return ran


def test_every_command_of_the_pages_runs(workplace, monkeypatch):
    ran = run_pages(workplace, monkeypatch, FEWER)
    assert {"train", "generate", "inspect", "evaluate", "compose", "export"} <= set(ran)
    assert list(workplace.glob("outputs/pictures/*.png"))
    assert json.loads((workplace / "row.json").read_text())
    assert (workplace / "outputs/training.md-0/atoms.safetensors").is_file()
    assert (workplace / "outputs/octopus-pipeline/model_index.json").is_file()
    assert (workplace / "ComfyUI/custom_nodes/sdatoms/__init__.py").is_file()
    assert (workplace / "stable-diffusion-webui/extensions/sdatoms/preload.py").is_file()


@pytest.mark.slow
def test_every_command_of_the_pages_runs_as_it_stands(tmp_path, monkeypatch):
    run_pages(furnish(tmp_path), monkeypatch, {})


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


def read_notebook():
    """The notebook, set to two steps on the bundled base, without the cell that installs."""
    book = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    book.cells = [c for c in book.cells if "install" not in c.metadata.get("tags", ())]
    (settings,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", ())]
    pictures = ROOT / "assets/subjects/cat"
    settings.source += '\nBASE, PRESET, PROMPT = "", "pet", "a sks cat"'
    settings.source += f'\nSTEPS, PICTURES = 2, "{pictures}"'
    return book


def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch, capsys):
    """In this process: a command of a cell is called, with what is added to the pages' commands."""

    def run(line):
        command, *words = shlex.split(line)
        assert command == "sdatoms" and not main([*words, *FEWER.get(words[0], [])]), line

    code = "\n".join(c.source for c in read_notebook().cells if c.cell_type == "code")
    code = re.sub(r"^!(.*)$", r"run(f'\1')", code, flags=re.M)
    code, paints = re.subn(r"pipe\(prompt, ", "pipe(prompt, num_inference_steps=2, ", code)
    assert paints == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "quickstart.ipynb", "exec"), {"__name__": "notebook", "run": run})
    assert (tmp_path / "run/lora.safetensors").is_file()
    assert capsys.readouterr().out.count("PIL.Image.Image") == 3


@pytest.mark.slow
def test_the_notebook_runs_as_notebooks_do(tmp_path, monkeypatch):
    book = read_notebook()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    paths = [str(ROOT), str(ROOT / "app")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    NotebookClient(book, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "run/atoms.safetensors").is_file()
    assert (tmp_path / "run/lora.safetensors").is_file()
    shown = [out for cell in book.cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", {}) for out in shown) == 3
