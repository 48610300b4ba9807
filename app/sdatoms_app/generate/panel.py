"""Pictures of the past and saved forms, and how either fills the form again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sdatoms import AtomError
from sdatoms.atoms.strengths import write_strength
from sdatoms.diffusion.picture_file import read_embedded_atoms, read_recipe
from sdatoms.diffusion.samplers import write_sampler
from sdatoms_app.generate.form import ROW, restore_recipe
from sdatoms_app.generate.layout import Form, ResultBox
from sdatoms_app.shared.events import QUIET
from sdatoms_app.shared.html import count, draw_note
from sdatoms_app.shared.messages import show_errors
from sdatoms_app.studio.orders import MAX_ADAPTERS
from sdatoms_app.studio.studio import Studio

__all__ = [
    "HistoryPanel",
    "SavedPanel",
    "build_history_panel",
    "build_saved_panel",
    "take_file",
    "wire_history",
    "wire_saved",
]


@dataclass(frozen=True)
class HistoryPanel:
    """Thumbnails of kept pictures, newest first, with a search."""

    search: gr.Textbox
    look: gr.Button
    gallery: gr.Gallery
    ids: gr.State
    """Ids of the pictures in the gallery, in order."""
    chosen: gr.State
    """The id of the one whose recipe is shown; empty: none."""
    note: gr.HTML
    restore: gr.Button
    send: gr.Button


def build_history_panel() -> HistoryPanel:
    with gr.Accordion("History", open=False, elem_id="history"):
        with gr.Row():
            search = gr.Textbox(
                value="",
                label="Search",
                placeholder="an adapter, words of a prompt, a seed",
                elem_id="history-search",
                scale=4,
            )
            look = gr.Button("Search", size="sm", elem_id="history-look", scale=1, min_width=80)
        gallery = gr.Gallery(
            label="Kept pictures",
            columns=5,
            height=260,
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="past",
        )
        note = gr.HTML(draw_note("Choose a picture to see its recipe."), elem_id="past-note")
        with gr.Row():
            restore = gr.Button(
                "Restore into the form", size="sm", elem_id="restore", min_width=140
            )
            send = gr.Button(
                "Start from this picture", size="sm", elem_id="past-send", min_width=140
            )
    ids, chosen = gr.State([]), gr.State("")
    return HistoryPanel(search, look, gallery, ids, chosen, note, restore, send)


@dataclass(frozen=True)
class SavedPanel:
    """Save the form under a name, and load it again."""

    chosen: gr.Dropdown
    load: gr.Button
    delete: gr.Button
    name: gr.Textbox
    save: gr.Button


def build_saved_panel(studio: Studio) -> SavedPanel:
    with gr.Accordion("Presets", open=False, elem_id="presets"):
        chosen = gr.Dropdown(
            studio.saved_forms.list(), value=None, label="Saved presets", elem_id="preset"
        )
        with gr.Row():
            load = gr.Button("Load", size="sm", elem_id="preset-load", min_width=80)
            delete = gr.Button("Delete", size="sm", elem_id="preset-delete", min_width=80)
        name = gr.Textbox(value="", label="Name", max_lines=1, elem_id="preset-name")
        save = gr.Button("Save the form", size="sm", elem_id="preset-save")
    return SavedPanel(chosen, load, delete, name, save)


def take_file(form: Form, path: Path, values: Sequence[Any]) -> list[Any]:
    """Updates of the note and the form for a dropped file, judged by its content.

    Raises:
        AtomError: it is neither an atom file nor a picture with a recipe.
    """
    with path.open("rb") as file:
        is_picture = file.read(4) == b"\x89PNG"
    if is_picture:
        return restore_picture(form, path)
    entry = form.studio.library.add(path)
    settings = form.read(values)
    rows = [row for row in settings["adapters"] if row["id"] != entry.id]
    settings["adapters"] = [*rows, {"id": entry.id, **ROW}][-MAX_ADAPTERS:]
    filled, _ = form.fill(settings)
    return [draw_note(f"{entry.id} is listed and chosen."), *filled]


def restore_picture(form: Form, path: Path) -> list[Any]:
    """Updates of the note and the form for a picture; atom files that ride inside are listed.

    Raises:
        AtomError: the picture has no recipe, or carries something that is no atom file.
    """
    recipe = read_recipe(path)
    if recipe is None:
        raise AtomError(f"the picture {path.name!r} carries no recipe; its settings are not known")
    names = {used.sha256: used.name for used in recipe.adapters}
    brought = [
        form.studio.library.add_file(file, names.get(file.sha256, "copy")).id
        for file in read_embedded_atoms(path)
    ]
    settings, remarks = restore_recipe(recipe, form.studio)
    filled, _ = form.fill(settings)
    text = "The form is as it was when the picture was generated."
    if brought:
        text += f" It brought {', '.join(brought)} along."
    if remarks:
        text = "The form was restored, but the picture may come out different:"
    return [draw_note(text, remarks, alarm=bool(remarks)), *filled]


def wire_history(panel: HistoryPanel, form: Form, result: ResultBox, load: Any) -> None:
    """Connect search, choice and restoring; `load` is the page's load event."""
    history = form.studio.history

    def look(search: str) -> list[Any]:
        kept = history.list(search or "")
        pictures = [(str(k.path), k.caption) for k in kept]
        words = count(len(kept), "picture") if kept else "No picture is kept that fits."
        return [pictures, [k.id for k in kept], "", draw_note(words)]

    @show_errors
    def choose(ids: list[str], event: gr.SelectData) -> list[Any]:
        index = event.index if isinstance(event.index, int) else 0
        if index >= len(ids):
            return ["", draw_note("")]
        recipe = history.find(ids[index]).recipe
        atoms = [
            f"{used.name} at {write_strength(used.strength)}"
            + (f", over the steps {used.schedule}" if used.schedule else "")
            for used in recipe.adapters
        ]
        size = f"{recipe.width}×{recipe.height} px"
        sampler = write_sampler(recipe.scheduler, recipe.schedule)
        lines = [*atoms, f"{sampler}, {recipe.num_inference_steps} steps, {size}"]
        return [ids[index], draw_note(f"{recipe.prompt} · seed {recipe.seed}", lines)]

    @show_errors
    def restore(id: str) -> list[Any]:
        return restore_picture(form, find_path(id))

    @show_errors
    def send(id: str) -> list[Any]:
        with Image.open(find_path(id)) as picture:
            return [picture.convert("RGB"), gr.Accordion(open=True)]

    def find_path(id: str) -> Path:
        if not id:
            raise AtomError("choose a picture of the history first")
        return history.find(id).path

    looked = [panel.gallery, panel.ids, panel.chosen, panel.note]
    gr.on(
        [panel.look.click, panel.search.submit, result.kept.change],
        look,
        panel.search,
        looked,
        **QUIET,
    )
    panel.gallery.select(choose, panel.ids, [panel.chosen, panel.note], **QUIET)
    panel.restore.click(restore, panel.chosen, [result.note, *form.outputs], **QUIET)
    panel.send.click(send, panel.chosen, [form.canvas.init, form.start_from], **QUIET)
    load(look, panel.search, looked, **QUIET)


def wire_saved(panel: SavedPanel, form: Form, note: gr.HTML) -> None:
    """Connect saving, loading and deleting; what was loaded is said in `note`."""
    saved = form.studio.saved_forms

    @show_errors
    def save(name: str, *values: Any) -> list[Any]:
        saved.save(name.strip(), form.read(values))
        return [gr.Dropdown(choices=saved.list(), value=name.strip()), ""]

    @show_errors
    def use(name: str | None) -> list[Any]:
        if not name:
            raise AtomError("choose a preset first")
        filled, remarks = form.fill(saved.load(name))
        return [draw_note(f"Loaded the preset {name}.", remarks, alarm=bool(remarks)), *filled]

    @show_errors
    def delete(name: str | None) -> Any:
        if name:
            saved.delete(name)
        return gr.Dropdown(choices=saved.list(), value=None)

    panel.save.click(save, [panel.name, *form.inputs], [panel.chosen, panel.name], **QUIET)
    panel.load.click(use, panel.chosen, [note, *form.outputs], **QUIET)
    panel.delete.click(delete, panel.chosen, panel.chosen, **QUIET)
