"""The form of the Generate tab as plain settings.

They are what saved forms keep, recipes restore and the page remembers over a reload: a dictionary
of JSON values under the names of `DEFAULTS`, and `adapters`, a list of tables with `id`, `enabled`,
`strength`, the factors `down`, `mid`, `up`, and the texts `by_block` (further factors, which come
after those) and `schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from sdatoms import AtomError
from sdatoms.atoms.schedules import parse_schedule
from sdatoms.atoms.strengths import ALL, Strength, parse_strength, write_strength
from sdatoms.diffusion.recipe import Recipe, compare_recipe
from sdatoms.diffusion.samplers import SAMPLERS, SCHEDULES
from sdatoms.errors import clip, is_finite, mark_bytes
from sdatoms.models.families import BLOCK_NAMES
from sdatoms_app.studio.orders import LIMITS, MAX_ADAPTERS, SETTINGS, Order
from sdatoms_app.studio.studio import Studio

__all__ = [
    "DEFAULTS",
    "ROW",
    "clean_settings",
    "join_strength",
    "make_order",
    "restore_recipe",
    "spread_strength",
]

DEFAULTS: dict[str, Any] = {"prompt": "cat face", **SETTINGS, "random_seed": False}
RANGES = LIMITS | {side: (0, LIMITS[side][1]) for side in ("width", "height")}
"""Setting → least and most that the form shows; a side of 0 becomes the base's own."""
KINDS: dict[str, Any] = {
    name: float if default is None else type(default) for name, default in DEFAULTS.items()
}
"""Setting → its type; a guidance scale that is missing becomes the base's own."""
ROW = {
    "enabled": True,
    "strength": 1.0,
    **dict.fromkeys(BLOCK_NAMES, 1.0),
    "by_block": "",
    "schedule": "",
}


def clean_settings(settings: Mapping[str, Any], studio: Studio) -> tuple[dict[str, Any], list[str]]:
    """Settings that the form takes, and a remark for each that it does not.

    Args:
        settings: from a saved form, a recipe or a browser's storage; what is missing keeps its
            default.
    """
    clean, remarks = dict(DEFAULTS), []
    for name, default in DEFAULTS.items():
        value = settings.get(name, default)
        if name in RANGES:
            low, high = RANGES[name]
            high = studio.max_side if name in ("width", "height") else high
            fits = is_finite(value) and low <= value <= high
            value = KINDS[name](value) if fits else value
            fits = fits or value is default is None
        elif name == "scheduler":
            fits = value in list(SAMPLERS)  # tables and lists have no hash
        elif name == "schedule":
            fits = value in list(SCHEDULES)
        else:
            fits = type(value) is KINDS[name]
        if fits:
            clean[name] = mark_bytes(value) if isinstance(value, str) else value
        else:
            remarks.append(f"{name.replace('_', ' ')} {str(value)[:60]!r} is not possible here.")
    if clean["schedule"] not in SAMPLERS[clean["scheduler"]].schedules:
        remarks.append(f"{clean['scheduler']} has no schedule {clean['schedule']!r}.")
        clean["schedule"] = "normal"
    if clean["base"]:
        try:
            clean["base"] = studio.bases.find(clean["base"]).id
        except AtomError as error:
            remarks.append(f"{error}.")
            clean["base"] = ""
    clean["base"] = clean["base"] or studio.bases.list()[0].id
    if clean["guidance_scale"] is None:
        clean["guidance_scale"] = studio.bases.find_guidance(clean["base"])
    rows = settings.get("adapters", [])
    listed = {
        entry.id for entry in [*studio.library.list_adapters(), *studio.library.list_checkpoints()]
    }
    clean["adapters"] = []
    for row in rows if isinstance(rows, list) else []:
        id = row.get("id") if isinstance(row, dict) else None
        if not isinstance(id, str) or id not in listed:
            remarks.append(f"The atom file {str(id)[:60]!r} is not here.")
        elif len(clean["adapters"]) < MAX_ADAPTERS:
            clean["adapters"].append({"id": id} | clean_row(row))
    return clean, remarks


def clean_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one adapter row; what is no number keeps its default."""
    clean = dict(ROW)
    for name in ROW:
        value = row.get(name, ROW[name])
        if name == "enabled":
            clean[name] = bool(value)
        elif isinstance(ROW[name], str):
            clean[name] = value if is_readable(name, value) else ""
        elif is_finite(value):
            clean[name] = min(max(float(value), -1.0), 2.0)
    return clean


def make_order(
    settings: Mapping[str, Any],
    init_picture: Image.Image | None = None,
    mask: Image.Image | None = None,
) -> Order:
    """The order a form stands for; rows that are switched off are left out, and a text field that
    nobody touched, which Gradio reads as None, is empty.

    Raises:
        AtomError: a number is missing.
    """
    adapters, schedules = [], {}
    for row in settings["adapters"]:
        if row["enabled"]:
            adapters.append((row["id"], join_strength(row)))
            if row.get("schedule", "").strip():
                schedules[row["id"]] = row["schedule"].strip()
    for name in RANGES:
        if not is_finite(settings[name]):
            raise AtomError(f"the {name.replace('_', ' ')} is {say(settings[name])}; give a number")
    plain: dict[str, Any] = {
        name: default if settings[name] is None else KINDS[name](settings[name])
        for name, default in SETTINGS.items()
    }
    pictures = {"init_picture": init_picture, "mask": mask}
    return Order(
        settings["prompt"],
        adapters=tuple(adapters),
        strength_schedules=schedules,
        **pictures,
        **plain,
    )


def join_strength(row: Mapping[str, Any]) -> Strength:
    """The strength that a row stands for: one number, else numbers by name, each the row's strength
    times a factor; what is written in `by_block` comes last.

    Raises:
        AtomError: a number is missing, or the text is none.
    """
    whole, factors = row["strength"], [row[block] for block in BLOCK_NAMES]
    for number in (whole, *factors):
        if not is_finite(number):
            raise AtomError(f"the strength of {row['id']!r} is {say(number)}; give a number")
    whole, text = float(whole), row.get("by_block", "").strip()
    even = factors == [1.0] * len(factors)
    if even and not text:
        return whole
    table = {} if whole == 1 else {ALL: whole}
    if not even:
        table |= {b: whole * factor for b, factor in zip(BLOCK_NAMES, factors, strict=True)}
    given = parse_strength(text, f"the strength by block of {row['id']!r}") if text else {}
    for name, factor in (given if isinstance(given, dict) else {ALL: given}).items():
        table.pop(name, None)  # the last name counts
        table[name] = whole * factor
    return table


def say(value: Any) -> str:
    """What stands in a field that takes a number, for a refusal."""
    return "empty" if value is None else clip(repr(value), 40)


def is_readable(name: str, text: Any) -> bool:
    """Whether a text of a row is empty or what it is to be."""
    if not isinstance(text, str):
        return False
    try:
        if text.strip():
            parse_schedule(text) if name == "schedule" else parse_strength(text, name)
    except AtomError:
        return False
    return True


def restore_recipe(recipe: Recipe, studio: Studio) -> tuple[dict[str, Any], list[str]]:
    """Settings that paint a recipe's picture, and what stands in the way of the same pixels."""
    listed = [choice.id for choice in studio.bases.list()]
    here = recipe.base_model if recipe.base_model in listed else ""
    remarks = compare_recipe(
        recipe,
        base_fingerprint=studio.read_fingerprint(here),
        hashes=[u.sha256 for u in recipe.adapters if studio.library.find_hash(u.sha256)],
    )
    rows = []
    for used in recipe.adapters:
        entry = studio.library.find_hash(used.sha256)
        if entry:
            row = {"id": entry.id, **spread_strength(used.strength)}
            rows.append(row | ({"schedule": used.schedule} if used.schedule else {}))
    settings = {
        "base": here,
        **recipe.settings,
        "seed": recipe.seed,
        "hires_scale": recipe.hires_scale,
        "hires_steps": recipe.hires_steps,
        "adapters": rows,
    }
    for name in ("denoising_strength", "mask_blur"):
        if getattr(recipe, name) is not None:
            settings[name] = getattr(recipe, name)
    clean, more = clean_settings(settings, studio)
    return clean, remarks + more


def spread_strength(strength: Strength) -> dict[str, Any]:
    """A strength as a row of the form has it, to the bit: in the sliders where they reach it, else
    as text."""
    if not isinstance(strength, Mapping):
        return {"strength": float(strength)}
    whole = strength.get(ALL, 1.0)
    factors = {block: strength.get(block, whole) / (whole or 1) for block in BLOCK_NAMES}
    row = {"strength": whole, **factors}
    reached = all(-1 <= number <= 2 for number in row.values())
    joined = join_strength({"id": ""} | row)
    same = isinstance(joined, dict) and list(joined.items()) == list(strength.items())
    if reached and same:
        return row
    return {"strength": 1.0, "by_block": write_strength(strength)}
