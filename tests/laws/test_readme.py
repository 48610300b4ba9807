"""What README and docs say is so: the block of Python runs, and all that they name is there."""

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from sdatoms.cli.main import COMMANDS
from sdatoms.cli.parser import LineParser
from sdatoms.settings import list_flags

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "SECURITY.md"]
PAGES += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))
PAGES += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("assets/*/README.md"))
OTHERS = {"--no-deps", "--num_processes"}
"""Flags of other programs."""


def read_block():
    """The first Python block: complete, unlike the later ones."""
    return re.search(r"```python\n(.*?)```", README, re.S).group(1)


def list_code(page):
    """What a page sets as code, a line or a span each; a span that is broken is one line."""
    text = (ROOT / page).read_text()
    for block in re.findall(r"```\w*\n(.*?)```", text, re.S):
        yield from block.splitlines()
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    yield from re.findall(r"^ {4}(\S.*)$", text, re.M)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))


@cache
def read_commands():
    """Command of `sdatoms` → its flags."""
    found = {}
    for name, (module, _) in COMMANDS.items():
        parser = LineParser()
        getattr(importlib.import_module(f"sdatoms.cli.{module}"), f"add_{name}")(parser)
        found[name] = set(list_flags(parser))
    return found


@cache
def read_flags():
    """Every flag of a command or of a script."""
    found = set(OTHERS).union(*read_commands().values())
    for folder in ("scripts", "sdatoms", "app"):
        for path in (p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".sh")):
            found |= set(re.findall(r"(--[a-zA-Z][\w-]*)", path.read_text()))
    return found


def test_the_block_is_short():
    assert len([line for line in read_block().splitlines() if line.strip()]) <= 12


def test_the_first_page_is_read_in_five_minutes():
    assert len(README.split()) < 1000


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert links or page != "README.md"
    assert not [link for link in links if not ((ROOT / page).parent / link).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    folders = "scripts|sdatoms|tests|app|assets|docs"
    named = re.findall(rf"(?<![\w./~-])((?:{folders})/[\w./*-]*\w)", (ROOT / page).read_text())
    known = {"sdatoms/1"}  # the format, not a file
    assert not [name for name in named if name not in known and not list(ROOT.glob(name))]


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_can_be_imported(page):
    named = r"\bsdatoms(?:_app)?(?:\.[A-Za-z_]\w*)+"
    for name in re.findall(named, "\n".join(list_code(page))):
        top, *parts = name.split(".")
        owner = importlib.import_module(top)
        for n, part in enumerate(parts):
            if not hasattr(owner, part):
                importlib.import_module(".".join([top, *parts[: n + 1]]))
            owner = getattr(owner, part)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_flags_exist(page):
    for line in list_code(page):
        if run := re.match(r"sdatoms ([a-z]+)\b(.*)", line.partition("  #")[0]):
            command, words = run.groups()
            assert command in read_commands(), line
            flags = re.findall(r"(?<!\S)(--[\w-]+)", words)
            assert set(flags) <= read_commands()[command], line
        assert set(re.findall(r"(?<!\S)(--[a-zA-Z][\w-]*)", line)) <= read_flags(), line


@pytest.mark.slow
def test_the_block_runs_as_it_stands(tmp_path, monkeypatch):
    run_block(read_block(), tmp_path, monkeypatch)


def test_the_block_runs_with_fewer_steps(tmp_path, monkeypatch):
    few = "max_train_steps=2, validation_steps=0"
    code, trains = re.subn(r"max_train_steps=\d+", few, read_block())
    code, paints = re.subn(r"pipe\(prompt\)", "pipe(prompt, num_inference_steps=2)", code)
    assert trains == paints == 1
    run_block(code, tmp_path, monkeypatch)


def run_block(code, tmp_path, monkeypatch):
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert list(tmp_path.glob("outputs/*/atoms.safetensors"))
    assert list(tmp_path.glob("outputs/**/octopus.png"))
