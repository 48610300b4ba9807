"""Curves as HTML that needs no script: sharp at every width, in light and dark, read aloud too.

The axes' numbers are text around an SVG that stretches, so that nothing shrinks on a phone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = [
    "PLOT_STYLE",
    "Line",
    "draw_plot",
    "find_ticks",
]

HOVERED = 60
"""Strips of a plot that tell their values to the mouse."""
PLOT_STYLE = """
.plot {margin: 0; display: grid; gap: .35rem; min-width: 0}
.plot figcaption {display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline}
.plot figcaption b {font-weight: 600}
.plot .key::before {content: ""; display: inline-block; width: 1.2em; height: .25em;
  margin-right: .4em; vertical-align: middle; background: currentColor; color: var(--line)}
.plot .area {position: relative; height: 200px; margin: .4rem .8rem 1.4rem 3.6rem;
  border-left: 1px solid var(--border-color-primary);
  border-bottom: 1px solid var(--border-color-primary)}
.plot svg {position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible}
.plot .y, .plot .x {position: absolute; font-size: 12px; line-height: 1; white-space: nowrap;
  color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums}
.plot .y {right: calc(100% + .4rem); transform: translateY(-50%)}
.plot .x {top: calc(100% + .4rem); transform: translateX(-50%)}
.plot path {fill: none; stroke: var(--line); vector-effect: non-scaling-stroke; stroke-width: 2px;
  stroke-linejoin: round}
.plot path.grid {stroke: var(--border-color-primary); stroke-width: 1px; opacity: .6}
.plot path.faint {stroke-width: 1px}
.plot rect {fill: transparent}
.plot rect:hover {fill: var(--body-text-color); opacity: .08}
.plot .line-0 {--line: #2b8fbf} .plot .line-1 {--line: #d9822b}
.plots {display: grid; gap: 1.8rem 1rem;
  grid-template-columns: repeat(auto-fit, minmax(260px, 1fr))}
"""


Place = Callable[[float, float], tuple[float, float]]
"""Step and value → per cent from the left and from the top."""


class Line(NamedTuple):
    """One curve: points `(step, value)` in rising order of steps."""

    name: str
    points: Sequence[tuple[int, float]]
    faint: bool = False
    """Drawn thin, behind the others."""


def draw_plot(title: str, lines: Sequence[Line], *, log: bool = False) -> str:
    """A figure with its axes, a key, and the values of any step under the mouse.

    Args:
        title: what is drawn.
        lines: one or two curves.
        log: a logarithmic axis; values that are not positive are left out.
    """
    kept = [line._replace(points=[p for p in line.points if p[1] > 0 or not log]) for line in lines]
    kept = [line for line in kept if line.points]
    if not kept:
        return f'<figure class="plot"><figcaption><b>{html.escape(title)}</b></figcaption></figure>'
    scale = math.log10 if log else float
    steps = [step for line in kept for step, _ in line.points]
    values = [scale(value) for line in kept for _, value in line.points]
    wide, high = span(steps), span(values)

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - wide[0]) / (wide[1] - wide[0])
        return 100 * across, 100 - 100 * (scale(value) - high[0]) / (high[1] - high[0])

    marks = [(v, place(wide[0], v)[1]) for v in find_ticks(*high, log=log)]
    under = [(s, place(s, kept[0].points[0][1])[0]) for s in find_ticks(*wide, whole=True)]
    grid = "".join(f"M0 {y:.2f}H100" for _, y in marks)
    paths = [draw_path(k, line, place) for k, line in enumerate(kept)]
    keys = [
        f'<span class="key line-{k}">{html.escape(line.name)} {line.points[-1][1]:.4g}</span>'
        for k, line in enumerate(kept)
    ]
    first, last = kept[0].points[0], kept[0].points[-1]
    words = f"{title} from {first[1]:.4g} at step {first[0]} to {last[1]:.4g} at step {last[0]}"
    return (
        f'<figure class="plot"><figcaption><b>{html.escape(title)}</b>{"".join(keys)}</figcaption>'
        f'<div class="area" role="img" aria-label="{html.escape(words, quote=True)}">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="grid" d="{grid}"/>{"".join(reversed(paths))}{draw_strips(kept, place)}</svg>'
        + "".join(f'<span class="y" style="top:{y:.2f}%">{v:.4g}</span>' for v, y in marks)
        + "".join(f'<span class="x" style="left:{x:.2f}%">{s:.0f}</span>' for s, x in under)
        + "</div></figure>"
    )


def span(values: Sequence[float]) -> tuple[float, float]:
    """Least and most, apart even where all are one."""
    low, high = min(values), max(values)
    room = abs(low) / 2 or 0.5
    return (low, high) if high > low else (low - room, high + room)


def draw_path(number: int, line: Line, place: Place) -> str:
    points = [place(*point) for point in line.points]
    if len(points) == 1:  # a line of no length, drawn as a dot by its caps
        points *= 2
    way = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    faint = " faint" if line.faint else ""
    return f'<path class="line-{number}{faint}" stroke-linecap="round" d="{way}"/>'


def draw_strips(lines: Sequence[Line], place: Place) -> str:
    """Upright strips with a tooltip each."""
    points = lines[0].points
    chosen = range(0, len(points), max(1, len(points) // HOVERED))
    tables = [dict(line.points) for line in lines]
    wide = 100 / max(1, len(chosen))
    strips = []
    for k in chosen:
        step = points[k][0]
        told = [f"{t[step]:.4g} {n.name}" for t, n in zip(tables, lines, strict=True) if step in t]
        x = place(*points[k])[0] - wide / 2
        strips.append(
            f'<rect x="{x:.2f}" width="{wide:.2f}" height="100">'
            f"<title>{html.escape(f'step {step}: ' + ', '.join(told))}</title></rect>"
        )
    return "".join(strips)


def find_ticks(low: float, high: float, *, log: bool = False, whole: bool = False) -> list[float]:
    """Three to seven round numbers from `low` to `high`.

    Args:
        log: the ends are decimal logarithms; the ticks are the numbers themselves.
        whole: only whole numbers.
    """
    if log:
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = [
                m * 10.0**e
                for e in range(math.floor(low), math.ceil(high) + 1)
                for m in steps
                if low <= math.log10(m * 10.0**e) <= high
            ]
            if len(found) >= 3:
                return found[:: -(-len(found) // 7)]
        return [10**low, 10**high]
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    size = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    size = max(1.0, round(size)) if whole else size
    return [k * size for k in range(math.ceil(low / size), math.floor(high / size) + 1)]
