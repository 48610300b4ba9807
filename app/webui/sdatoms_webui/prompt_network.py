"""`<atoms:name:0.8>` in prompts: which files a picture is made with, and at what strengths."""

from __future__ import annotations

from typing import Any

from modules import extra_networks, shared  # the web UI's own  # pyright: ignore

from sdatoms_webui.a1111 import apply_to_a1111, list_a1111_shapes
from sdatoms_webui.atoms import name_left_out
from sdatoms_webui.changes import Change, find_changes, read_wanted
from sdatoms_webui.forge import apply_to_forge, list_forge_shapes
from sdatoms_webui.library import find_files

__all__ = ["ExtraNetworkAtoms"]


class ExtraNetworkAtoms(extra_networks.ExtraNetwork):
    """What the prompt names; put on the model by `apply`, when all other networks are in place."""

    def __init__(self) -> None:
        super().__init__("atoms")
        self.params: list[Any] = []

    def activate(self, p: Any, params_list: list[Any]) -> None:
        """Note what the prompt names: called for every batch, with nothing where it names none."""
        self.params = list(params_list)

    def deactivate(self, p: Any) -> None:
        """Nothing to do: weights are restored by the next picture that wants others."""

    def apply(self, p: Any) -> None:
        """Put the noted files on the model, and take off all others of ours.

        A file that cannot be used is left out, and the picture's comments say why.
        """
        forge = hasattr(p.sd_model, "forge_objects")
        list_shapes, apply = (
            (list_forge_shapes, apply_to_forge) if forge else (list_a1111_shapes, apply_to_a1111)
        )
        files = find_files(shared.cmd_opts.atoms_dir) if self.params else {}
        shapes = list_shapes(p.sd_model) if self.params else {}
        total: dict[str, list[Change]] = {}
        names = []
        for params in self.params:
            try:
                wanted = read_wanted(params.positional, params.named)
                path = files.get(wanted.name)
                if path is None:
                    raise ValueError(f"there is no atom file of the name {wanted.name!r}")
                changes = find_changes(path, wanted, shapes)
                left_out = name_left_out(str(path))
            except ValueError as error:
                p.comment(f"Atoms: {error}")
                continue
            if left_out:
                p.comment(f"Atoms: {left_out}")
            for key, change in changes.items():
                total.setdefault(key, []).append(change)
            names.append(f"{path} {path.stat().st_mtime_ns} {wanted[1:]}")
        try:
            apply(p.sd_model, "; ".join(names), total)
        except ValueError as error:
            p.comment(f"Atoms: {error}")
