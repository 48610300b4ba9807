"""Scores as text for a terminal: a line a measure, with what it tells, and the checks below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdatoms.evaluation.rows import Row

__all__ = [
    "MEASURES",
    "draw_checks",
    "draw_scores",
]

MEASURES: Mapping[str, tuple[str, str]] = {
    "truth": ("↑", "shows the subject of the true picture"),
    "followed": ("↑", "share of what the prompt asks for that is there"),
    "error": ("↓", "differs from the true picture"),
    "fidelity": ("↑", "is drawn like your pictures"),
    "likeness": ("↑", "shows what your pictures show"),
    "alignment": ("↑", "shows what the prompt says"),
    "diversity": ("↑", "seeds give different pictures"),
    "drift": ("↓", "changes prompts about other things"),
}
"""Measure → whether high or low is good, and what it tells."""
BASE = "base without atoms"


def draw_scores(rows: Sequence[Row]) -> str:
    """A line a measure: the files' figures, the base's, what it tells; what was not measured is
    left out. Rows after the base's are checks, which `draw_checks` draws."""
    shown = list(rows[: count_shown(rows)])
    names = ["base alone" if row.name == BASE else row.name for row in shown]
    widths = [max(len(name), 5) for name in names]
    first = max(map(len, MEASURES)) + 2
    head = " " * first + "".join(f"  {n:>{w}}" for n, w in zip(names, widths, strict=True))
    lines = [head]
    for name, (arrow, meaning) in MEASURES.items():
        values = [getattr(row, name) for row in shown]
        if any(value is not None for value in values):
            cells = (
                f"  {'-' if v is None else write_score(v):>{w}}"
                for v, w in zip(values, widths, strict=True)
            )
            lines.append(f"{name + ' ' + arrow:<{first}}{''.join(cells)}   {meaning}")
    return "\n".join([*lines, "(↑ high is good, ↓ low is good)"])


def draw_checks(rows: Sequence[Row]) -> str:
    """The rows whose answer is known beforehand, a line each; empty where there are none."""
    checks = rows[count_shown(rows) :]
    width = max((len(row.name) for row in checks), default=0)
    lines = []
    for row in checks:
        values = {name: getattr(row, name) for name in MEASURES}
        told = "  ".join(f"{name} {write_score(v)}" for name, v in values.items() if v is not None)
        lines.append(f"  {row.name:<{width}}  {told}")
    return "\n".join(lines)


def write_score(value: float) -> str:
    """Three digits; what rounds to zero has no sign."""
    return f"{round(value, 3) + 0.0:.3f}"


def count_shown(rows: Sequence[Row]) -> int:
    """How many rows come before the checks: the files' and the base's."""
    names = [row.name for row in rows]
    return names.index(BASE) + 1 if BASE in names else len(rows)
