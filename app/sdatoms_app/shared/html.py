"""Small pieces of markup: counts, notes, progress."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = [
    "count",
    "draw_note",
    "draw_progress",
]


def draw_progress(done: int, total: int, message: str) -> str:
    """A progress bar with its words; empty words draw nothing."""
    if not message:
        return ""
    share = round(100 * done / max(total, 1))
    return (
        f'<div class="progress" role="progressbar" aria-label="Generating" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share}"><div style="width: {share}%"></div></div>'
        f'<p class="hint" aria-live="polite">{escape(message)}</p>'
    )


def draw_note(text: str, remarks: Iterable[str] = (), *, alarm: bool = False) -> str:
    """A line, and remarks below it, as text."""
    tone = "note alarm" if alarm else "note"
    lines = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    listed = f"<ul>{lines}</ul>" if lines else ""
    role = ' role="alert"' if alarm else ' role="status"'
    return f'<div class="{tone}"{role}>{escape(text)}{listed}</div>' if text or lines else ""


def count(number: int, noun: str) -> str:
    """A number of things: `1 picture`, `2 pictures`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
