"""What was generated, as the page shows it: galleries, and the line below them."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from sdatoms.diffusion.recipe import UsedAtoms
from sdatoms.diffusion.samplers import write_sampler
from sdatoms.errors import clip
from sdatoms.models.families import BLOCK_NAMES
from sdatoms_app.shared.html import count, draw_note
from sdatoms_app.studio.history import Kept

__all__ = ["describe", "describe_pair", "show_gallery", "show_pair"]


def show_gallery(kept: Sequence[Kept]) -> gr.Gallery:
    pictures = [(str(picture.path), picture.caption) for picture in kept]
    return gr.Gallery(pictures, selected_index=len(pictures) - 1, preview=True, visible=True)


def show_pair(kept: Sequence[Kept]) -> gr.Gallery:
    """The picture without an adapter beside the one with it."""
    pictures = [(str(picture.path), name_half(picture)) for picture in kept]
    return gr.Gallery(pictures, selected_index=None, preview=False, columns=2, visible=True)


def name_half(kept: Kept) -> str:
    names = ", ".join(used.name for used in kept.recipe.adapters)
    return clip(f"with {names}" if names else "without adapter", 60)


def describe(kept: Sequence[Kept], remarks: Sequence[str], *, cancelled: bool) -> str:
    """What is said under the pictures."""
    if not kept:
        return draw_note("Cancelled; nothing was kept." if cancelled else "")
    recipe = kept[-1].recipe
    atoms = ", ".join(describe_atoms(used) for used in recipe.adapters)
    seeds = f"seed {kept[0].recipe.seed}" + (f" to {recipe.seed}" if len(kept) > 1 else "")
    sampler = write_sampler(recipe.scheduler, recipe.schedule)
    text = f"{seeds}, {atoms or 'no atoms'}, {sampler}, {recipe.num_inference_steps} steps"
    if cancelled:
        text = f"Cancelled after {count(len(kept), 'picture')}. {text}"
    return draw_note(text, remarks)


def describe_pair(kept: Sequence[Kept], remarks: Sequence[str], *, cancelled: bool) -> str:
    """The same of a picture without and one with an adapter."""
    if len(kept) < 2:
        return describe(kept, remarks, cancelled=cancelled)
    recipe = kept[-1].recipe
    text = (
        f"“{recipe.prompt}”, seed {recipe.seed}: without, and with "
        f"{', '.join(describe_atoms(used) for used in recipe.adapters)}. Change the prompt, keep "
        f"the trigger word, and press Generate."
    )
    return draw_note(text, remarks)


def describe_atoms(used: UsedAtoms) -> str:
    over = f" ({used.schedule})" if used.schedule else ""
    return f"{used.name} at {write_short(used.strength)}{over}"


def write_short(strength: float | dict[str, float]) -> str:
    if not isinstance(strength, dict):
        return f"{strength:g}"
    if set(strength) == set(BLOCK_NAMES):
        return "/".join(f"{number:g}" for number in strength.values())
    return ", ".join(f"{name}={number:g}" for name, number in strength.items())
