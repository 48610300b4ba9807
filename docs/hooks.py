"""Hooks of the documentation site, named in `mkdocs.yml`: what it takes from outside `docs/`.

Pages that stand for a file of the root hold one line, `--8<-- "NAME.md"`. Pictures lie in
`assets/`, where the README shows them too. On the host of the code a page links to
`../SECURITY.md`; on the site such a link leads to that file's page, and one to a file that has none
becomes its text.
"""

from __future__ import annotations

import re
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

    def turn(found: re.Match[str]) -> str:
        text, link, anchor = found[1], found[2], found[3] or ""
        inner = re.sub(r"^(\.\./|docs/)+", "", link)
        inner = PAGES.get(inner, inner)
        return f"[{text}]({inner}{anchor})" if files.get_file_from_path(inner) else text

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", turn, markdown)
