"""Atom files for programs: looked into, muted, compared, mixed, exported.

Types are read from the signatures, so this module keeps its annotations as objects.
"""

import time
from dataclasses import asdict
from typing import Any

from gradio.events import api

from sdatoms.adapters.changes import measure_changes
from sdatoms.files.anatomy import count_atoms, list_views, show_atoms
from sdatoms.files.contents import measure_budget
from sdatoms.files.likeness import compare_files
from sdatoms.pictures import save_image
from sdatoms_app.atoms.page import EVERYWHERE, HERE, AtomsPage, split_view
from sdatoms_app.shared.messages import answer_errors
from sdatoms_app.shared.references import FileReference, refer

__all__ = [
    "build_atoms_api",
]


def build_atoms_api(page: AtomsPage) -> None:
    """Add the endpoints; call inside `gr.Blocks`."""
    studio, library = page.studio, page.library

    def open_atoms(id: str) -> dict[str, Any]:
        """What a listed file holds: its texts, the bytes of its parts, the atoms of its largest
        view, its views, and by how much every layer changes."""
        file = page.read(id)
        with studio.lock:
            changes = measure_changes(file, studio.open())
        budget = asdict(measure_budget(library.find(id).path))
        return {
            "trigger": file.trigger,
            "variant": file.config.variant,
            "sha256": file.sha256,
            "parameters": file.num_parameters,
            "atoms": count_atoms(file),
            "bytes": {k: budget[k] for k in ("file", "prefix", "header", "tensors", "encoders")},
            "layers": [  # clients take what has a key `path` for a file
                {
                    "layer": f"{change.component}.{change.path}",
                    "block": change.block,
                    "change": change.change,
                    "parameters": change.parameters,
                }
                for change in changes
            ],
            "views": [".".join(view) for view in list_views(file)],
        }

    def show(id: str, view: str, channel: int = -1) -> dict[str, Any]:
        """The atoms of one view as numbers, each as rows: before training, and what it added.

        Args:
            id: one of those that /list_atoms names.
            view: one of those that /open_atoms names.
            channel: where channels have atoms of their own, which one's; -1: the mean of all.
        """
        tiles = show_atoms(page.read(id), *split_view(view), None if channel < 0 else channel)
        numbers = {"before": tiles.before.tolist(), "difference": tiles.difference.tolist()}
        return numbers | {"channels": tiles.channels}

    def mute_atoms(
        id: str,
        prompt: str,
        atoms: list[int],
        view: str = "",
        seed: int = 0,
        num_inference_steps: int = 20,
    ) -> list[dict[str, Any]]:
        """Generate one seed with the base, with a file, and without each of some of its atoms.

        Args:
            id: one of those that /list_atoms names.
            prompt: what to paint.
            atoms: numbers of the atoms, at most 9.
            view: mute them in the layer of this view alone; empty: in every layer.
            seed: of every picture.
            num_inference_steps: at most 50.
        """
        where = HERE if view else EVERYWHERE
        painted = page.paint_without(id, view, prompt, atoms, where, seed, num_inference_steps)
        folder = studio.outputs / "muted" / str(time.time_ns())
        answer = []
        for number, (picture, label) in enumerate(painted):
            path = save_image(picture, folder / f"{number}.png")
            answer.append({"label": label, "file": refer(path)})
        return answer

    def compare_atoms(ids: list[str]) -> list[list[dict[str, Any]]]:
        """How alike files are: for every pair the cosine of the changes they make, and the views
        they have in common."""
        return [[asdict(pair) for pair in row] for row in compare_files(page.read_some(ids))]

    def mix_atoms(strengths: dict[str, float], title: str = "") -> dict[str, Any]:
        """Add up files, each at its strength, exactly, and list the sum as one file.

        Args:
            strengths: id to strength, of two to five files.
            title: what to call the sum; empty: by its parts.
        """
        whole, _ = page.mix(list(strengths), list(strengths.values()), title)
        entry = library.find_hash(whole.sha256)
        assert entry is not None
        return {"id": entry.id, "sha256": entry.sha256, "parameters": entry.parameters}

    def export_atoms(id: str, form: str = "LoRA (diffusers)", rank: int = 16) -> dict[str, Any]:
        """Write a file in another tool's form, and say how exact that is.

        Args:
            id: one of those that /list_atoms names.
            form: LoRA (diffusers), LoRA (kohya), Full difference (LyCORIS) or Baked pipeline.
            rank: of a LoRA, at most 128.
        """
        done = page.write(id, form, rank)
        file: FileReference | None = refer(done.path) if done.download else None
        return {"text": done.text, "file": file}

    for name, endpoint in (
        ("open_atoms", open_atoms),
        ("show_atoms", show),
        ("mute_atoms", mute_atoms),
        ("compare_atoms", compare_atoms),
        ("mix_atoms", mix_atoms),
        ("export_atoms", export_atoms),
    ):
        api(answer_errors(endpoint), api_name=name, concurrency_id="pipeline", concurrency_limit=1)
