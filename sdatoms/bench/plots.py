"""Pareto plots as SVG text: points by group, and the line of those that none beats."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Point", "draw_pareto", "find_front"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 400, 64, 48, 16, 16
COLOURS = {"atoms": "#b5432a", "peers": "#2a6fb5", "ablations": "#8a8a8a"}


@dataclass(frozen=True)
class Point:
    """A method's place; its name is shown when pointed at."""

    name: str
    group: str
    x: float
    y: float


def find_front(points: Sequence[Point]) -> list[Point]:
    """Those for which no other has as little x with as much y, by x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def draw_pareto(
    points: Sequence[Point], x_label: str, y_label: str, *, logarithmic: bool = False
) -> str:
    """An SVG: less x and more y are better. Points that are not finite, or on a logarithmic axis
    not above 0, are left out."""
    shown = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    shown = [p for p in shown if p.x > 0] if logarithmic else shown
    if not shown:
        return ""
    scale = math.log10 if logarithmic else float
    xs, ys = [scale(p.x) for p in shown], [p.y for p in shown]
    across, up = spread(xs), spread(ys)

    def place(point: Point) -> tuple[float, float]:
        x = (scale(point.x) - across[0]) / (across[1] - across[0])
        y = (point.y - up[0]) / (up[1] - up[0])
        return (
            round(LEFT + x * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - TOP), 1),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(y_label)} against {html.escape(x_label)}" '
        'font-family="sans-serif" font-size="11">'
    ]
    for k in range(5):
        value = across[0] + k / 4 * (across[1] - across[0])
        x = LEFT + k / 4 * (WIDTH - LEFT - RIGHT)
        text = f"{10**value:.3g}" if logarithmic else f"{value:.3g}"
        parts.append(write(x, HEIGHT - BOTTOM + 16, text))
        value, y = (
            up[0] + k / 4 * (up[1] - up[0]),
            HEIGHT - BOTTOM - k / 4 * (HEIGHT - BOTTOM - TOP),
        )
        parts.append(write(LEFT - 8, y + 4, f"{value:.3g}", "end"))
        parts.append(
            f'<line x1="{LEFT}" y1="{y:g}" x2="{WIDTH - RIGHT}" y2="{y:g}" stroke="#ddd"/>'
        )
    line = " ".join(f"{x:g},{y:g}" for x, y in map(place, find_front(shown)))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#444" stroke-dasharray="4 3"/>')
    for point in shown:
        x, y = place(point)
        colour = COLOURS.get(point.group, "#444")
        label = html.escape(f"{point.name}: {point.x:.4g}, {point.y:.4g}")
        parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="{colour}"><title>{label}</title></circle>'
        )
    for k, (group, colour) in enumerate(COLOURS.items()):
        x = LEFT + 12 + 90 * k
        parts.append(f'<circle cx="{x}" cy="{TOP - 6}" r="4" fill="{colour}"/>')
        parts.append(write(x + 8, TOP - 2, group, "start"))
    parts.append(write((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label))
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(f'<g transform="rotate(-90 14 {middle:g})">{write(14, middle, y_label)}</g></svg>')
    return "".join(parts)


def write(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(text)}</text>'


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis, a little beyond the values."""
    low, high = min(values), max(values)
    more = (high - low) * 0.06 or max(abs(high), 1.0) * 0.1
    return low - more, high + more
