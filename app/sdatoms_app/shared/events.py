"""How the page's own events are wired: out of the API's sight, and from tab to tab."""

from __future__ import annotations

from typing import Any

__all__ = [
    "PRIVATE",
    "QUIET",
    "go_to",
]

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""An event of the page that programs do not see."""
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], **PRIVATE}
"""Such an event that shows no progress either. It also names no place for it: at every message of
any event the page visits every part that ever had progress to show, by a search through all
parts, which took most of its time."""


def go_to(tab: str) -> str:
    """JavaScript that opens a tab by its title: no server is asked, no handle on it is needed."""
    return (
        "() => { const tabs = [...document.querySelectorAll('#tabs button[role=tab]')];"
        f" const tab = tabs.find(t => t.textContent.trim() === '{tab}'); if (tab) tab.click(); }}"
    )
