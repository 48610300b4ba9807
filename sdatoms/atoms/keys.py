"""The grammar of tensor names: `<component>.<module path>.<view>.<tensor>`.

Base atoms of the sparse decomposition stand under `<component>.<module path>.sparse`, those of a
block view as `block_base_atoms`; a new word's embeddings under `<component>.tokens`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sdatoms.errors import AtomError, clip

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "TOKENS",
    "Views",
    "find_blocks",
    "find_owners",
    "group_tensors",
    "is_frozen",
    "is_word",
    "join_key",
    "read_kind",
    "split_key",
]
KEY = re.compile(r"([A-Za-z_]\w*)\.(.+)\.(spatial|sparse|block(?:_[1-9][0-9]*)?)\.([a-z_]+)")
FROZEN = ("encoder", "base_atoms", "block_base_atoms", "strength")
"""Names of tensors that no training changes; base atoms stand for an encoder where codes are
sparse."""
BASE_ATOMS = {"spatial": "base_atoms", "block": "block_base_atoms"}
"""View → what its base atoms are called under `sparse`."""


TOKENS = re.compile(r"([A-Za-z_]\w*)\.tokens\.embeddings")
"""Key of the embeddings of a new word; the header's `tokens` names the word."""


Views: TypeAlias = "dict[str, dict[str, Tensor]]"
"""View → tensor name → tensor, for one layer."""


def is_frozen(key: str) -> bool:
    """Whether no training changes the tensor of that key, or of that name."""
    return key.rpartition(".")[2] in FROZEN


def is_word(text: str) -> bool:
    """Whether a file may bring this word: lower case, since tokenizers lower prompts, and in angle
    brackets, so that it is found inside no other word."""
    return re.fullmatch(r"<[^<>\s]{1,60}>", text) is not None and text == text.lower()


def find_blocks(layout: Mapping[str, Any], view: str) -> Any:
    """Where a layout gives the kind and the block sides of a view; None in the spatial view.

    One block view is described in the layout itself, further ones (`block_2`, …: sums of files with
    other blocks hold them) in tables of their own.
    """
    if view == "spatial":
        return None
    return layout if view == "block" else layout.get(view)


def find_owners(layout: Any) -> dict[str, str]:
    """View → path of the layer whose tensors that view shares; a layout that says nothing of it
    has tensors of its own in every view."""
    if not isinstance(layout, Mapping):
        return {}
    views = [view for view in layout if re.fullmatch(r"block_[1-9][0-9]*", view)]
    named = {view: find_blocks(layout, view) for view in ("block", *views)}
    return {
        view: blocks["shared_with"]
        for view, blocks in named.items()
        if isinstance(blocks, Mapping) and "shared_with" in blocks
    }


def group_tensors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Views]]:
    """component → module path → view → tensor name → tensor."""
    grouped: dict[str, dict[str, Views]] = {}
    for key, tensor in tensors.items():
        if TOKENS.fullmatch(key):
            continue
        component, path, view, name = split_key(key)
        views = grouped.setdefault(component, {}).setdefault(path, {})
        views.setdefault(view, {})[name] = tensor
    return grouped


def split_key(key: str) -> tuple[str, str, str, str]:
    """Component, module path, view and tensor name.

    Raises:
        AtomError: the key is not of that form.
    """
    match = KEY.fullmatch(key)
    if not match:
        raise AtomError(
            f"the tensor {clip(key)!r} is not named "
            "<component>.<module path>.<spatial|block>.<tensor>"
        )
    if match[3] == "sparse":
        view = next((view for view, name in BASE_ATOMS.items() if name == match[4]), None)
        if view is None:
            raise AtomError(
                f"the tensor {clip(key)!r} is none of the base atoms "
                f"sparse.{' | sparse.'.join(BASE_ATOMS.values())}"
            )
        return match[1], match[2], view, "base_atoms"
    return match[1], match[2], match[3], match[4]


def read_kind(name: str) -> Literal["spatial", "block"]:
    """Which atoms a tensor of a model is of, from its name `<module path>.<view>.<tensor>`.

    Raises:
        AtomError: the name is not of that form.
    """
    return "spatial" if split_key(f"model.{name}")[2] == "spatial" else "block"


def join_key(view: str, name: str) -> str:
    """The end of a tensor's key, after the module path; the inverse of `split_key`."""
    return f"sparse.{BASE_ATOMS[view]}" if name == "base_atoms" else f"{view}.{name}"
