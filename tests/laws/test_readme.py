"""The README's own block of Python runs as it stands, and what it links to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def read_block():
    """The first Python block: complete, unlike the later ones."""
    return re.search(r"```python\n(.*?)```", README, re.S).group(1)


def test_the_block_is_short_and_the_links_lead_somewhere():
    assert len([line for line in read_block().splitlines() if line.strip()]) <= 12
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.slow
def test_the_block_runs_as_it_stands(tmp_path, monkeypatch):
    run_block(read_block(), tmp_path, monkeypatch)


def test_the_block_runs_with_fewer_steps(tmp_path, monkeypatch):
    code, count = re.subn(r"max_train_steps=\d+", "max_train_steps=2", read_block())
    assert count == 1
    run_block(code, tmp_path, monkeypatch)


def run_block(code, tmp_path, monkeypatch):
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert list(tmp_path.glob("outputs/*/atoms.safetensors"))
    assert list(tmp_path.glob("outputs/**/octopus.png"))
