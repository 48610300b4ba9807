"""Figures as text: of a table's cells, and tables as Markdown and as HTML."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import Any

from sdatoms.bench.intervals import Interval

__all__ = [
    "dump_figures",
    "show",
    "show_bytes",
    "show_gain",
    "write_html_table",
    "write_markdown",
]


def clean(value: Any) -> Any:
    """Figures as JSON takes them: intervals by name, None for what is not a number."""
    if isinstance(value, Interval):
        return clean(value._asdict())
    if isinstance(value, dict):
        return {key: clean(part) for key, part in value.items()}
    if isinstance(value, list):
        return [clean(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dump_figures(value: Any) -> bytes:
    """A file of JSON."""
    return (json.dumps(clean(value), indent=1) + "\n").encode()


def show(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"


def show_gain(gain: Interval | None) -> str:
    if gain is None or gain.mean != gain.mean:
        return ""
    return f"{gain.mean:+.3f} ({gain.low:+.3f} … {gain.high:+.3f})"


def show_bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def write_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def write_html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = lambda cells, tag: "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells)
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="t"><table><tr>{line(head, "th")}</tr>{body}</table></div>'
