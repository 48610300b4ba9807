"""Pictures of the past and saved presets, and how either fills the form again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from sdatoms import AtomError
from sdatoms.diffusion.picture_file import read_embedded_atoms, read_recipe
from sdatoms_app.generate.form import ROW, restore_recipe
from sdatoms_app.shared.html import count, draw_note
from sdatoms_app.studio.studio import MAX_ADAPTERS

if TYPE_CHECKING:
    from sdatoms_app.generate.tab import GenerateTab
from sdatoms_app.shared.messages import warn

__all__ = [
    "build_history_panel",
    "build_preset_panel",
    "take_file",
    "wire_panels",
]

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build_history_panel(tab: GenerateTab) -> None:
    """Thumbnails of kept pictures, newest first, with a search."""
    with gr.Accordion("History", open=False, elem_id="history"):
        with gr.Row():
            tab.search = gr.Textbox(
                label="Search",
                placeholder="an atom file, words of a prompt, a seed",
                elem_id="history-search",
                scale=4,
            )
            tab.look = gr.Button("Search", size="sm", elem_id="history-look", scale=1, min_width=80)
        tab.past = gr.Gallery(
            label="Kept pictures",
            columns=5,
            height=260,
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="past",
        )
        tab.past_ids = gr.State([])
        tab.past_chosen = gr.State("")
        tab.past_note = gr.HTML(
            draw_note("Choose a picture to see its recipe."), elem_id="past-note"
        )
        with gr.Row():
            tab.restore = gr.Button(
                "Restore into the form", size="sm", elem_id="restore", min_width=140
            )
            tab.past_send = gr.Button(
                "Start from this picture", size="sm", elem_id="past-send", min_width=140
            )


def build_preset_panel(tab: GenerateTab) -> None:
    """Save the form under a name, and load it again."""
    with gr.Accordion("Presets", open=False, elem_id="presets"):
        tab.preset = gr.Dropdown(
            tab.studio.presets.list(), value=None, label="Saved presets", elem_id="preset"
        )
        with gr.Row():
            tab.preset_load = gr.Button("Load", size="sm", elem_id="preset-load", min_width=80)
            tab.preset_delete = gr.Button(
                "Delete", size="sm", elem_id="preset-delete", min_width=80
            )
        tab.preset_name = gr.Textbox(label="Name", max_lines=1, elem_id="preset-name")
        tab.preset_save = gr.Button("Save the form", size="sm", elem_id="preset-save")


def take_file(tab: GenerateTab, path: Path, values: Sequence[Any]) -> list[Any]:
    """Updates of the note and the form for a dropped file, judged by its content.

    Raises:
        AtomError: it is neither an atom file nor a picture with a recipe.
    """
    with path.open("rb") as file:
        is_picture = file.read(4) == b"\x89PNG"
    if is_picture:
        return restore_picture(tab, path)
    entry = tab.studio.library.add(path)
    settings = tab.read(values)
    rows = [row for row in settings["adapters"] if row["id"] != entry.id]
    settings["adapters"] = [*rows, {"id": entry.id, **ROW}][-MAX_ADAPTERS:]
    filled, _ = tab.fill(settings)
    return [draw_note(f"{entry.id} is listed and chosen."), *filled]


def restore_picture(tab: GenerateTab, path: Path) -> list[Any]:
    """Updates of the note and the form for a picture; atom files kept inside are listed.

    Raises:
        AtomError: the picture has no recipe, or carries something that is no atom file.
    """
    recipe = read_recipe(path)
    if recipe is None:
        raise AtomError(f"the picture {path.name!r} carries no recipe; its settings are not known")
    names = {used.sha256: used.name for used in recipe.adapters}
    brought = [
        tab.studio.library.add_file(file, names.get(file.sha256, "embedded")).id
        for file in read_embedded_atoms(path)
    ]
    settings, remarks = restore_recipe(recipe, tab.studio)
    filled, _ = tab.fill(settings)
    text = "The form is as it was when the picture was painted."
    if brought:
        text += f" It brought {', '.join(brought)} along."
    if remarks:
        text = "The form was restored, but the picture may come out different:"
    return [draw_note(text, remarks, alarm=bool(remarks)), *filled]


def wire_panels(tab: GenerateTab, load: Any) -> None:
    """Connect history and presets; `load` is the page's load event."""
    studio = tab.studio

    def look(search: str) -> list[Any]:
        kept = studio.history.list(search or "")
        pictures = [(str(k.path), k.caption) for k in kept]
        words = count(len(kept), "picture") if kept else "No picture is kept that fits."
        return [pictures, [k.id for k in kept], "", draw_note(words)]

    def choose(ids: list[str], event: gr.SelectData) -> list[Any]:
        index = event.index if isinstance(event.index, int) else 0
        if index >= len(ids):
            return ["", draw_note("")]
        recipe = studio.history.find(ids[index]).recipe
        atoms = [f"{used.name} at {used.strength}" for used in recipe.adapters]
        size = f"{recipe.width}×{recipe.height} px"
        lines = [*atoms, f"{recipe.scheduler}, {recipe.num_inference_steps} steps, {size}"]
        return [ids[index], draw_note(f"{recipe.prompt} · seed {recipe.seed}", lines)]

    def restore(id: str) -> list[Any]:
        return restore_picture(tab, find_path(id))

    def send(id: str) -> list[Any]:
        with Image.open(find_path(id)) as picture:
            return [picture.convert("RGB"), gr.Accordion(open=True)]

    def find_path(id: str) -> Path:
        if not id:
            raise AtomError("choose a picture of the history first")
        return studio.history.find(id).path

    def save(name: str, *values: Any) -> list[Any]:
        studio.presets.save(name.strip(), tab.read(values))
        return [gr.Dropdown(choices=studio.presets.list(), value=name.strip()), ""]

    def use(name: str | None) -> list[Any]:
        if not name:
            raise AtomError("choose a preset first")
        filled, remarks = tab.fill(studio.presets.load(name))
        return [draw_note(f"Loaded the preset {name}.", remarks, alarm=bool(remarks)), *filled]

    def delete(name: str | None) -> Any:
        if name:
            studio.presets.delete(name)
        return gr.Dropdown(choices=studio.presets.list(), value=None)

    def open_page(remembered: Any) -> list[Any]:
        """A fresh page: the form as it was last painted with, the lists as they are now."""
        settings = remembered if isinstance(remembered, dict) else {}
        presets = gr.Dropdown(choices=studio.presets.list(), value=None)
        ready = draw_note(f"{studio.bases.list()[0].label} is ready.")
        return [presets, ready, *tab.fill(settings)[0]]

    form, history = tab.list_outputs(), [tab.past, tab.past_ids, tab.past_chosen, tab.past_note]
    gr.on([tab.look.click, tab.search.submit, tab.kept.change], look, tab.search, history, **QUIET)
    tab.past.select(choose, tab.past_ids, [tab.past_chosen, tab.past_note], **QUIET)
    tab.restore.click(warn(restore), tab.past_chosen, [tab.note, *form], **QUIET)
    tab.past_send.click(warn(send), tab.past_chosen, [tab.init, tab.start_from], **QUIET)
    tab.preset_save.click(
        warn(save), [tab.preset_name, *tab.list_inputs()], [tab.preset, tab.preset_name], **QUIET
    )
    tab.preset_load.click(warn(use), tab.preset, [tab.note, *form], **QUIET)
    tab.preset_delete.click(warn(delete), tab.preset, tab.preset, **QUIET)
    load(open_page, tab.remembered, [tab.preset, tab.note, *form], **QUIET)
    load(look, tab.search, history, **QUIET)
