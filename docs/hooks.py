"""Hooks of the documentation site, named in `mkdocs.yml`: what it takes from outside `docs/`.

Pages that stand for a file of the root hold one line, `--8<-- "NAME.md"`. Pictures lie in
`assets/`, where the README shows them too. On the host of the code a page links to
`../SECURITY.md`; on the site such a link leads to that file's page, and one to a file that has none
becomes its text. The page of commands ends in all their flags, as the parsers have them.
"""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted((ROOT / "assets").glob("*.png")):
        files.append(File.generated(config, f"assets/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    markdown = re.sub(r'--8<-- "(\w+\.md)"', lambda found: (ROOT / found[1]).read_text(), markdown)
    markdown = markdown.replace("](../assets/", "](assets/")
    if page.file.src_uri == "commands.md":
        markdown += "".join(f"\n{line}" for line in list_commands())

    def turn(found: re.Match[str]) -> str:
        text, link, anchor = found[1], found[2], found[3] or ""
        inner = re.sub(r"^(\.\./|docs/)+", "", link)
        inner = PAGES.get(inner, inner)
        return f"[{text}]({inner}{anchor})" if files.get_file_from_path(inner) else text

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", turn, markdown)


def list_commands() -> Iterator[str]:
    """A section for every command, with a table for every group of its flags."""
    from sdatoms.cli.main import COMMANDS, build_parser

    for action in build_parser(COMMANDS)._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from ("", f"## sdatoms {name}", "", plain(command.description or ""))
                for group in command._action_groups:
                    yield from list_flags(command, group)


def list_flags(command: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> Iterator[str]:
    """A table of one group: flag, and what it does."""
    shown = [a for a in group._group_actions if a.dest != "help" and a.help != argparse.SUPPRESS]
    if not shown:
        return
    known = ("options", "positional arguments")
    yield from (
        "",
        f"**{group.title}**" if group.title not in known else "",
        "",
        "| | |",
        "|---|---|",
    )
    formatter = command._get_formatter()
    for action in shown:
        flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
        values = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
        values = f" `{values}`" if values else ""
        words = plain(formatter._expand_help(action)) if action.help else ""
        yield f"| {f'{flags}{values}'.strip()} | {words} |"


def plain(words: str) -> str:
    """Words as they are, whatever they would mean in Markdown; what stands in backticks is code."""
    parts = " ".join(words.split()).split("`")
    parts[::2] = [
        re.sub(r"([*_|\\\[\]])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2]
    ]
    return "`".join(parts)
