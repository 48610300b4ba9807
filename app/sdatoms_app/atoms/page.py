"""What the Atoms tab does: opens files, shows layers, mutes atoms, compares, mixes, exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sdatoms import AtomError, AtomFile, read_atoms
from sdatoms.adapters.changes import measure_changes
from sdatoms.errors import clip
from sdatoms.files.anatomy import count_atoms, lay_out, list_views, mute_atom, show_atoms
from sdatoms.files.compose import compose
from sdatoms.files.contents import measure_budget
from sdatoms.files.likeness import compare_files
from sdatoms_app.atoms.drawing import TILE, draw_budget, draw_heat_map, draw_likeness, draw_sheet
from sdatoms_app.atoms.exports import MAX_RANK, Exported, export_file
from sdatoms_app.shared.messages import show_errors
from sdatoms_app.studio.library import slugify
from sdatoms_app.studio.orders import MAX_PROMPT, MAX_SEED, MAX_STRENGTH
from sdatoms_app.studio.studio import Studio

__all__ = [
    "EVERYWHERE",
    "HERE",
    "MAX_MIXED",
    "MAX_MUTED",
    "MAX_STEPS",
    "MIN_HEIGHT",
    "AtomsPage",
    "split_view",
]

MAX_MIXED = 5
MAX_MUTED = 9
MAX_STEPS = 50
MAX_TILES = 64
FILLED = 10
"""Widgets that `open_file` fills."""
MIN_HEIGHT = 130
"""px of a frame around a sheet of tiles."""
EVERYWHERE, HERE = "in every layer", "in the chosen layer"


class AtomsPage:
    """The tab's handlers. Files are named by their id in the library, layers by
    `<component>.<module path>.<view>`."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.library = studio.library

    def list_files(self) -> list[tuple[str, str]]:
        return [(entry.label, entry.id) for entry in self.library.list()]

    def relist(self, id: str | None = None) -> tuple[Any, Any]:
        """List the atom files of the folder anew; where none is chosen, choose the first."""
        choices = self.list_files()
        first = gr.Dropdown(choices=choices)
        if not id and choices:
            first = gr.Dropdown(choices=choices, value=choices[0][1])
        return first, gr.Dropdown(choices=choices)

    @show_errors
    def open_first(self, id: str | None, opened: str) -> list[Any]:
        """The chosen file's id and what `open_file` shows of it, where nothing is shown yet."""
        if not id or opened:
            return [gr.skip()] * (FILLED + 1)
        return [id, *self.open_file(id)]

    def read(self, id: str | None) -> AtomFile:
        """The listed file.

        Raises:
            AtomError: none is named, or it is not listed.
        """
        if not id:
            raise AtomError("choose an atom file first")
        return read_atoms(self.library.find(id).path)

    def read_some(self, ids: Sequence[str]) -> list[AtomFile]:
        """Listed files.

        Raises:
            AtomError: there are too many, or one is not listed.
        """
        if len(ids) > MAX_MIXED:
            raise AtomError(f"{len(ids)} files are named; at most {MAX_MIXED} are taken")
        return [self.read(id) for id in ids]

    @show_errors
    def open_file(self, id: str | None) -> list[Any]:
        """What a listed file changes, layer by layer, what its bytes are for, and its atoms."""
        file = self.read(id)
        path = self.library.find(id or "").path
        with self.studio.lock:
            changes = measure_changes(file, self.studio.open())
        budget = measure_budget(path)
        facts = {
            "trigger": clip(file.trigger or "none", 80),
            "variant": file.config.variant,
            "base": clip(file.metadata.get("base_model", "unknown"), 60),
            "layers": f"{len(changes)}",
            "trained numbers": f"{file.num_parameters:,}",
            "sha256 of the tensors": file.sha256[:16],
        }
        views = [".".join(view) for view in list_views(file)]
        strongest = max(changes, key=lambda c: c.change)
        first = next(v for v in views if v.startswith(f"{strongest.component}.{strongest.path}."))
        atoms = [(f"atom {k}", str(k)) for k in range(count_atoms(file))]
        return [
            draw_heat_map(changes),
            draw_budget(budget, facts),
            gr.Dropdown(choices=views, value=first),
            gr.Dropdown(choices=atoms, value=[], multiselect=True),
            *self.show_layer(id, first, None),
        ]

    @show_errors
    def show_layer(self, id: str | None, view: str | None, channel: float | None) -> list[Any]:
        """The atoms of one layer's view as sheets of tiles: before, difference, after, spectrum."""
        file = self.read(id)
        component, path, name = split_view(view)
        tiles = show_atoms(file, component, path, name)
        if tiles.channels and channel is not None and channel >= 0:
            tiles = show_atoms(file, component, path, name, int(channel))
        sheets = lay_out(tiles, MAX_TILES, TILE)
        rows, columns = sheets.before.shape[1:]
        spectrum = sheets.spectrum
        some = f", the first {MAX_TILES} shown" if len(tiles.before) > MAX_TILES else ""
        told = (
            f"{len(tiles.before)} atoms of {rows}×{columns}{some}; full colour is "
            f"{sheets.scale:.3g} before and after, {sheets.change:.3g} in the difference; orange "
            "above zero, blue below"
        )
        return [
            gr.Number(visible=tiles.channels is not None, maximum=(tiles.channels or 1) - 1),
            frame(draw_sheet(sheets.before, sheets.scale)),
            frame(draw_sheet(sheets.after, sheets.scale)),
            frame(draw_sheet(sheets.difference, sheets.change)),
            frame(None if spectrum is None else draw_sheet(spectrum, spectrum.max(), signed=False)),
            told,
        ]

    @show_errors
    def choose_cell(self, id: str | None, event: gr.SelectData) -> list[Any]:
        views = [".".join(view) for view in list_views(self.read(id))]
        found = [view for view in views if view.startswith(f"{event.value}.")]
        if not found:
            raise AtomError("this layer is not of the chosen file; choose the file again")
        return [found[0], *self.show_layer(id, found[0], None)]

    @show_errors
    def paint_muted(
        self,
        id: str | None,
        view: str | None,
        prompt: str,
        muted: list[str],
        where: str,
        seed: float | None,
        steps: float | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[tuple[Any, str]]:
        """What `paint_without` paints."""
        atoms = [int(atom) for atom in muted]
        return self.paint_without(id, view, prompt, atoms, where, seed, steps, progress)

    def paint_without(
        self,
        id: str | None,
        view: str | None,
        prompt: str,
        atoms: Sequence[int],
        where: str,
        seed: float | None,
        steps: float | None,
        progress: Any = lambda *_, **__: None,
    ) -> list[tuple[Any, str]]:
        """Paint one seed with the base, with the file, and without each of the atoms.

        Raises:
            AtomError: the file is not listed or does not fit, there is no such atom, or a number is
                out of range.
        """
        file = self.read(id)
        component, path, _ = split_view(view)
        scope = {"component": component, "path": path} if where == HERE else {}
        if not prompt.strip() or len(prompt) > MAX_PROMPT:
            raise AtomError(f"the prompt takes 1 to {MAX_PROMPT} characters")
        if len(atoms) > MAX_MUTED:
            raise AtomError(f"{len(atoms)} atoms are named; at most {MAX_MUTED} are muted at once")
        chosen = int(check_field("the seed", seed, 0, MAX_SEED))
        count = int(check_field("the number of steps", steps, 1, MAX_STEPS))
        files = [("with the file", file)]
        files += [(f"without atom {k}", mute_atom(file, k, **scope)) for k in atoms]
        return self.studio.paint_each(
            files, prompt, chosen, count, lambda n, total, label: progress((n, total), desc=label)
        )

    @show_errors
    def show_likeness(self, ids: list[str]) -> list[Any]:
        """Cosines of the changes of all pairs of files."""
        files = self.read_some(ids)
        table = draw_likeness(ids, compare_files(files)) if len(files) > 1 else ""
        shown = [gr.Slider(visible=True, label=f"Strength of {id}") for id in ids]
        return [table, *shown, *[gr.Slider(visible=False)] * (MAX_MIXED - len(shown))]

    @show_errors
    def save_mix(self, ids: list[str], title: str, *values: float | None) -> tuple[str, Any, Any]:
        """What `mix` saves, at the strengths of the first sliders."""
        whole, path = self.mix(ids, values[: len(ids)], title)
        told = f"{path.stem}: {whole.num_parameters:,} numbers, {path.stat().st_size:,} bytes"
        choices = self.list_files()
        return told, gr.Dropdown(choices=choices), gr.Dropdown(choices=choices)

    def mix(
        self, ids: Sequence[str], values: Sequence[float | None], title: str
    ) -> tuple[AtomFile, Path]:
        """Add up files at their strengths, exactly, and list the sum as one file.

        Raises:
            AtomError: there are not two to five, one is not listed, or they cannot be added up.
        """
        files = self.read_some(ids)
        if len(files) < 2:
            raise AtomError("a mix takes at least two files")
        strengths = [
            float(check_field(f"the strength of {id!r}", value, -MAX_STRENGTH, MAX_STRENGTH))
            for id, value in zip(ids, values, strict=True)
        ]
        name = title.strip() or " + ".join(ids)
        whole = compose(files, strengths, title=clip(name, 60))
        file = f"{slugify(name)}-{whole.sha256[:8]}.safetensors"
        return whole, whole.save(self.library.folder / "mixes" / file)

    @show_errors
    def export(self, id: str | None, form: str, rank: float | None) -> tuple[str, Any]:
        """What `write` writes, and a button that downloads it."""
        done = self.write(id, form, rank)
        return done.text, gr.DownloadButton(value=done.download, visible=bool(done.download))

    def write(self, id: str | None, form: str, rank: float | None) -> Exported:
        """Write the file in another tool's form and say how exact that is.

        Raises:
            AtomError: as `export_file`, or the file is not listed.
        """
        file = self.read(id)
        width = int(check_field("the rank", rank, 1, MAX_RANK))
        folder = self.studio.outputs / "exports"
        with self.studio.lock:
            pipe = self.studio.open()
            return export_file(file, pipe, form, width, folder, slugify(id or ""))


def frame(sheet: Image.Image | None) -> Any:
    """A sheet in a frame of its height; no frame without one."""
    height = max(MIN_HEIGHT, sheet.height + 60) if sheet else MIN_HEIGHT
    return gr.Image(sheet, height=height, visible=sheet is not None)


def check_field(what: str, number: float | None, low: float, high: float) -> float:
    """The number of a field.

    Raises:
        AtomError: the field is empty, or the number is out of range.
    """
    if number is None:
        raise AtomError(f"{what} is empty; give a number")
    if not low <= number <= high:  # NaN is refused too
        raise AtomError(f"{what} is {clip(str(number), 40)}; it goes from {low:g} to {high:g}")
    return number


def split_view(view: str | None) -> tuple[str, str, str]:
    """Component, module path and view."""
    component, _, rest = (view or "").partition(".")
    path, _, name = rest.rpartition(".")
    return component, path, name
