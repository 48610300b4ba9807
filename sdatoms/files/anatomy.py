r"""Look inside atom files: what atoms look like, before training and after, and without one.

A view's map is `ΔX = X E ΔD` with the encoder `E (p, m)` and the atoms' delta `ΔD (m, p)`. The
coefficients `A = X E` are only ever implied; the dictionary they stand for, `X ≈ A D`, is
`D = E⁺`, the pseudo-inverse of the encoder. For the encoder `E = V Λ^(-1/2) c` of the linear
decomposition that is `D = Λ^(1/2) Vᵀ / c`: the least-squares dictionary, whatever m. The base's
filters are mixtures of the rows of `D`, the tuned filters the same mixtures of the rows of
`D + ΔD`.

Nothing here draws or paints, and no model is needed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from sdatoms.atoms.decompose import split_side
from sdatoms.atoms.keys import TOKENS, find_blocks, find_owners, split_key
from sdatoms.atoms.maps import LayerMap
from sdatoms.atoms.products import FACTORS
from sdatoms.atoms.shared import SHARED
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import AtomFile

__all__ = [
    "AtomTiles",
    "Sheets",
    "count_atoms",
    "lay_out",
    "list_views",
    "mute_atom",
    "respond",
    "show_atoms",
]

ATOM_AXIS = {"atoms": 0, "inner_atoms": 0, "channel_atoms": 1, SHARED[1]: 0}
"""The tensor of each kind of delta that an atom can be muted in, and its axis of atoms."""


@dataclass(frozen=True)
class AtomTiles:
    """Atoms of one view as pictures `(m, rows, columns)`, float32.

    Spatial atoms are h×w kernels. Products have two, their b×b factors of output and input
    channels. Shared atoms are rows of p numbers, wrapped to the squarest rectangle, each scaled by
    how much of it the layers' filters take up; the base has none. Block atoms are b×b channel
    mixings; in the joint view each of their b×b entries is an h×w kernel, laid out as one tile of
    b·h × b·w.
    """

    kind: str
    before: Tensor
    """D, the dictionary of the base."""
    difference: Tensor
    """ΔD; with an own ΔD for every channel, their mean, or one channel's."""
    channels: int | None
    """How many channels have atoms of their own; None where all share them."""

    @property
    def after(self) -> Tensor:
        """D + ΔD."""
        return self.before + self.difference


class Sheets(NamedTuple):
    """Atoms as arrays `(m, rows, columns)`, ready to be drawn."""

    before: np.ndarray
    after: np.ndarray
    difference: np.ndarray
    spectrum: np.ndarray | None
    """What frequencies the atoms let through after training; None for block atoms."""
    scale: float
    """The largest magnitude before and after."""
    change: float
    """The largest magnitude in the difference."""


def drop_word(file: AtomFile) -> AtomFile:
    """The file without the new word it may bring, which changes no layer."""
    tensors = {key: t for key, t in file.tensors.items() if not TOKENS.fullmatch(key)}
    gone = ("tokens", "modelspec.hash_sha256")
    header = {k: v for k, v in file.metadata.items() if k not in gone}
    return replace(file, metadata=header, tensors=tensors)


def list_views(file: AtomFile) -> list[tuple[str, str, str]]:
    """Component, module path and view of every map, in the file's order; those that share the
    atoms of other layers last."""
    keys = (key for key in file.tensors if not TOKENS.fullmatch(key))
    sharing = [
        (component, path, view)
        for key, layout in file.layers.items()
        for component, _, path in [key.partition(".")]
        for view in find_owners(layout)
    ]
    return list(dict.fromkeys([*(split_key(key)[:3] for key in keys), *sharing]))


def find_map(file: AtomFile, component: str, path: str, view: str) -> LayerMap:
    views = [v for c, p, v in list_views(file) if (c, p) == (component, path)]
    if view not in views:
        raise AtomError(
            f"the file has no {clip(view)!r} view of {clip(f'{component}.{path}')!r}; "
            f"it has {', '.join(views) or 'no such layer'}"
        )
    return file.maps(component)[path][views.index(view)]


def show_atoms(
    file: AtomFile, component: str, path: str, view: str, channel: int | None = None
) -> AtomTiles:
    """The atoms of one view of one layer, before training and what training added.

    Args:
        file: an atom file; no model is needed.
        component: such as `unet`.
        path: module path of the layer.
        view: `spatial`, `block`, or `block_2` and so on in composed files.
        channel: absolute input channel, where every channel has atoms of its own; None shows the
            mean of their deltas.

    Raises:
        AtomError: there is no such view or channel.
    """
    found = find_map(file, component, path, view)
    if channel is not None and not 0 <= channel < (found.channels or 0):
        raise AtomError(f"the channel is {channel}; this view has {found.channels or 'none'}")
    if found.factors:
        tiles = [lay_factors(found, added).float() for added in (False, True)]
        return AtomTiles("product", tiles[0], tiles[1], None)
    if pair := found.shared or found.own:
        rows = lay_rows(*pair)
        return AtomTiles("shared", torch.zeros_like(rows), rows, None)
    delta = found.delta
    if delta.dim() == 3:
        delta = delta.mean(0) if channel is None else delta[channel]
    tiles = [fold_tiles(found, t).float() for t in (form_dictionary(found), delta)]
    return AtomTiles(found.kind, tiles[0], tiles[1], found.channels)


def lay_out(tiles: AtomTiles, limit: int, size: int) -> Sheets:
    """The first `limit` atoms as arrays; spectra have sides of `size`."""
    before, after, difference = (t[:limit] for t in (tiles.before, tiles.after, tiles.difference))
    spatial = tiles.kind == "spatial"
    return Sheets(
        before.numpy(),
        after.numpy(),
        difference.numpy(),
        respond(after, size).numpy() if spatial else None,
        float(torch.stack([before, after]).abs().max()),
        float(difference.abs().max()),
    )


def form_dictionary(found: LayerMap) -> Tensor:
    """D `(m, p)`, float64: `E⁺`, or the base atoms of sparse codes."""
    if "base_atoms" in found.tensors:
        return found.tensors["base_atoms"].double()
    return torch.linalg.pinv(found.encoder.double())


def lay_rows(encoder: Tensor, atoms: Tensor) -> Tensor:
    """Shared atoms `(r, p)` as tiles of p numbers, each times the norm of its column of the encoder
    or of the layer's own coefficients."""
    scaled, p = encoder.norm(dim=0)[:, None] * atoms, atoms.shape[1]
    return scaled.reshape(len(atoms), split_side(p, math.isqrt(p)), -1)


def lay_factors(found: LayerMap, added: bool) -> Tensor:
    """The two factors of a product as tiles `(2, b, b)`, output first: the identities they start
    from, or what training added, at the product's strength and as the mean of all blocks."""
    assert found.factors
    side = max(found.block)
    tiles = torch.zeros(2, side, side)
    for tile, factor in zip(tiles, found.factors, strict=True):
        b = factor.shape[-1]
        mean = factor.reshape(-1, b, b).mean(0)
        tile[:b, :b] = found.own_strength * mean if added else torch.eye(b)
    return tiles


def fold_tiles(found: LayerMap, rows: Tensor) -> Tensor:
    """`(m, p)` → `(m, rows, columns)`."""
    a, b = found.block
    h, w = found.kernel or (1, 1)
    if found.kind == "spatial":
        return rows.reshape(-1, h, w)
    if found.kind == "channel":
        return rows.reshape(-1, a, b)
    return rearrange(rows, "m (a b h w) -> m (a h) (b w)", a=a, b=b, h=h, w=w)


def respond(tiles: Tensor, size: int = 32) -> Tensor:
    """What spatial frequencies each kernel lets through, `(m, size, size)`, zero frequency central.

    The magnitude of the discrete Fourier transform of the kernel set into size×size zeros: bright
    in the middle is a blur, dark in the middle an edge or a texture.
    """
    return torch.fft.fftshift(torch.fft.fft2(tiles, s=(size, size)).abs(), dim=(-2, -1))


def mute_atom(
    file: AtomFile, atom: int, *, component: str | None = None, path: str | None = None
) -> AtomFile:
    """The file without what one atom adds, in one layer or in all; the input is left as it is.

    Args:
        file: an atom file.
        atom: number of the atom, from 0, as in `show_atoms`; layers with fewer atoms are unchanged.
        component: only there; None: everywhere.
        path: only in the layer at this module path; None: in all layers.

    Raises:
        AtomError: no layer that was meant has so many atoms.
    """
    if path is not None:
        file = split_off(file, component, path)
    tensors, muted, most = {}, 0, 0
    for key, tensor in file.tensors.items():
        owner, module, _, name = ("", "", "", "") if TOKENS.fullmatch(key) else split_key(key)
        meant = component in (None, owner) and path in (None, module)
        if name in FACTORS and meant:
            most = max(most, len(FACTORS))
            if 0 <= atom < len(FACTORS) and name == FACTORS[atom]:
                tensor = torch.zeros_like(tensor)
                muted += 1
        elif name in ATOM_AXIS and meant:
            axis = ATOM_AXIS[name]
            most = max(most, tensor.shape[axis])
            if 0 <= atom < tensor.shape[axis]:
                tensor = tensor.clone()
                tensor.select(axis, atom).zero_()
                muted += 1
        tensors[key] = tensor
    if not muted:
        raise AtomError(f"there is no atom {atom} to mute; these layers have at most {most} atoms")
    header = {k: v for k, v in file.metadata.items() if k != "modelspec.hash_sha256"}
    return replace(file, metadata=header, tensors=tensors)


def split_off(file: AtomFile, component: str | None, path: str) -> AtomFile:
    """The file with shared atoms of the layer at `path` as its own, which no other layer shares:
    the first of those that shared them keeps a copy."""
    layers, tensors = file.layers, dict(file.tensors)
    for key in [f"{owner}.{path}" for owner in file.components if component in (None, owner)]:
        owner = key.partition(".")[0]
        for view, keeper in find_owners(layers.get(key)).items():
            copy_shared(tensors, f"{owner}.{keeper}.{view}", f"{key}.{view}")
            del find_blocks(layers[key], view)["shared_with"]
        sharing = [
            (other, view)
            for other, layout in layers.items()
            for view, keeper in find_owners(layout).items()
            if keeper == path and other.startswith(f"{owner}.")
        ]
        heirs: dict[str, str] = {}
        for other, view in sharing:
            heir = heirs.setdefault(view, other)
            blocks = find_blocks(layers[other], view)
            if heir != other:
                blocks["shared_with"] = heir.partition(".")[2]
                continue
            del blocks["shared_with"]
            copy_shared(tensors, f"{key}.{view}", f"{heir}.{view}")
    return replace(file, metadata=file.metadata | {"layers": json.dumps(layers)}, tensors=tensors)


def copy_shared(tensors: dict[str, Tensor], source: str, target: str) -> None:
    """Give the layer and view `target` a copy of the shared atoms at `source`, and of their encoder
    where they have one."""
    for name in SHARED:
        if f"{source}.{name}" in tensors:
            tensors[f"{target}.{name}"] = tensors[f"{source}.{name}"].clone()


def count_atoms(file: AtomFile) -> int:
    """The most atoms any view of the file has."""
    kept = drop_word(file).tensors
    named = [(split_key(key)[3], tensor) for key, tensor in kept.items()]
    factors = [len(FACTORS) for name, _ in named if name in FACTORS]
    return max(factors + [t.shape[ATOM_AXIS[name]] for name, t in named if name in ATOM_AXIS])
