"""One adapter, one `.safetensors` file: trained tensors, encoders and everything needed to apply them.

Keys are `<component>.<module path>.<view>.<tensor>`. The header holds the config, the layout of every layer,
fingerprints of the base weights and the `modelspec.*` keys that model browsers read. A file is judged by its
content, never by its suffix; nothing is ever unpickled; files are written whole or not at all.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdatoms.decompose import Kind, View
from sdatoms.errors import AtomError
from sdatoms.inject import AtomConfig, Injection

__all__ = [
    "AtomFile",
    "LayerMap",
    "fingerprint",
    "pack_atoms",
    "read_atoms",
    "save_atoms",
    "write_whole",
]

FORMAT = "sdatoms/1"
MAX_HEADER = 16 << 20
MAX_TENSORS = 100_000
KEY = re.compile(r"^([A-Za-z_][\w]*)\.(.+)\.(spatial|block)\.([a-z_]+)$")
TRAINED = {
    "spatial": ("atoms", "inner_coefficients", "inner_atoms", "channel_atoms"),
    "block": ("atoms",),
}
PROJECTION_PERIOD = 65_521


@dataclass(frozen=True)
class LayerMap:
    """One view's unit-strength map of one layer: `ΔX = X T`."""

    kind: Kind
    block: tuple[int, int]
    groups: int
    kernel: tuple[int, ...]
    transform: Tensor
    """`T (p, p)` or `(g·i, p, p)`, float64."""

    def view(self, weight: Tensor) -> View:
        return View(self.kind, tuple(weight.shape), self.groups, self.block)


@dataclass(frozen=True)
class AtomFile:
    """A validated atom file in memory; needs no model."""

    config: AtomConfig
    metadata: dict[str, str]
    """The header's text entries, as stored."""
    tensors: dict[str, Tensor]

    @property
    def components(self) -> tuple[str, ...]:
        """Pipeline components the file holds atoms for, such as `unet`."""
        return tuple(dict.fromkeys(split_key(key)[0] for key in self.tensors))

    @property
    def num_parameters(self) -> int:
        """Trained numbers; encoders do not count."""
        return sum(t.numel() for key, t in self.tensors.items() if not key.endswith(".encoder"))

    @property
    def sha256(self) -> str:
        """Hash of names, shapes and bytes of all tensors."""
        return hash_tensors(self.tensors)

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """`<component>.<module path>` → kernel, groups, block sides and block view."""
        return json.loads(self.metadata["layers"])

    @property
    def fingerprints(self) -> dict[str, dict[str, list[float]]]:
        """component → module path → norm and three projections of the base weight."""
        return json.loads(self.metadata["base_fingerprints"])

    @property
    def trigger(self) -> str | None:
        return self.metadata.get("trigger")

    def maps(self, component: str) -> dict[str, list[LayerMap]]:
        """Module path → the maps its weight goes through at strength 1."""
        found: dict[str, list[LayerMap]] = {}
        for path, views in group_tensors(self.tensors, component).items():
            layout = self.layers[f"{component}.{path}"]
            for view, tensors in views.items():
                spatial = view == "spatial"
                found.setdefault(path, []).append(
                    LayerMap(
                        kind="spatial" if spatial else layout["view"],
                        block=(1, 1) if spatial else tuple(layout["block"]),
                        groups=layout["groups"],
                        kernel=tuple(layout["kernel"]),
                        transform=form_transform(tensors),
                    )
                )
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file whole or not at all."""
        return write_whole(Path(path), save_tensors(self.tensors, self.metadata))


def form_transform(tensors: dict[str, Tensor]) -> Tensor:
    """`T = E ΔD` in float64, whichever trained tensors make up ΔD."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    if "atoms" in t:
        delta = t["atoms"]
    elif "channel_atoms" in t:
        delta = t["channel_atoms"]
    else:
        delta = torch.einsum("caj,ajp->cap", t["inner_coefficients"], t["inner_atoms"])
    return t["encoder"] @ delta


def split_key(key: str) -> tuple[str, str, str, str]:
    match = KEY.match(key)
    if not match:
        raise AtomError(
            f"the tensor {clip(key)!r} is not named <component>.<module path>.<spatial|block>.<tensor>; "
            "this is no atom file of a known kind"
        )
    return match[1], match[2], match[3], match[4]


def group_tensors(
    tensors: Mapping[str, Tensor], component: str
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """path → view → tensor name → tensor, for one component."""
    grouped: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        owner, path, view, name = split_key(key)
        if owner == component:
            grouped.setdefault(path, {}).setdefault(view, {})[name] = tensor
    return grouped


def pack_atoms(
    injections: Mapping[str, Injection],
    *,
    trigger: str | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    step: int | None = None,
    seed: int | None = None,
    title: str | None = None,
    description: str | None = None,
    resolution: int | None = None,
    prediction_type: str | None = None,
    thumbnail: str | None = None,
    metadata: Mapping[str, str] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> AtomFile:
    """The atom file of live injections, in memory. `tensors` (keys as in the file) replaces the live values,
    for instance by running averages; `thumbnail` is a data URI; other arguments are as in `save_atoms`."""
    from sdatoms import __version__

    if not injections:
        raise AtomError(
            "there is nothing to save: no component was given; pass {'unet': injection} or the like"
        )
    stored: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    prints: dict[str, dict[str, list[float]]] = {}
    for component, injection in injections.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", component):
            raise AtomError(f"the component name {component!r} is not a plain name such as 'unet'")
        for name, tensor in injection.state_dict().items():
            stored[f"{component}.{name}"] = tensor.float().cpu().contiguous()
        prints[component] = {}
        for path, layer in injection.layers.items():
            layers[f"{component}.{path}"] = describe_layout(layer)
            prints[component][path] = fingerprint(layer.weight)
    for key, tensor in (tensors or {}).items():
        if key not in stored or stored[key].shape != tensor.shape:
            raise AtomError(f"the replacement tensor {key!r} fits no tensor of these injections")
        stored[key] = tensor.detach().float().cpu().contiguous()
    first = next(iter(injections.values()))
    header = {
        "format": FORMAT,
        "config": json.dumps(first.config.to_dict()),
        "layers": json.dumps(layers, separators=(",", ":")),
        "base_model": base_model,
        "base_revision": base_revision,
        "base_fingerprints": json.dumps(prints, separators=(",", ":")),
        "trigger": trigger,
        "step": step,
        "seed": seed,
        "sdatoms_version": __version__,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{guess_architecture(first.model)}/filter-atoms",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": title or trigger or "filter atoms",
        "modelspec.description": description,
        "modelspec.trigger_phrase": trigger,
        "modelspec.thumbnail": thumbnail,
        "modelspec.date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{resolution}x{resolution}" if resolution else None,
        "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}.get(
            prediction_type or ""
        ),
        "modelspec.hash_sha256": "0x" + hash_tensors(stored),
        **(metadata or {}),
    }
    for key, tensor in stored.items():
        if not torch.isfinite(tensor).all():
            raise AtomError(f"the tensor {key!r} holds NaN or infinite numbers; nothing was saved")
    return AtomFile(first.config, {k: str(v) for k, v in header.items() if v is not None}, stored)


def save_atoms(
    path: str | os.PathLike[str],
    injections: Mapping[str, Injection],
    *,
    trigger: str | None = None,
    base_model: str | None = None,
    **details: Any,
) -> Path:
    """Save `{component: injection}` as one atom file, written whole or not at all.

    Args:
        path: where to; parent directories are made.
        injections: components as diffusers names them (`unet`, `text_encoder`, …), or `model`.
        trigger: the words that call the subject, such as "sks dog".
        base_model: hub id or directory of the base.
        details: base_revision, step, seed, title, description, resolution (px), prediction_type, thumbnail
            (a data URI), metadata (further header entries).

    Raises:
        AtomError: nothing to save, or a tensor is not finite.
    """
    return pack_atoms(injections, trigger=trigger, base_model=base_model, **details).save(path)


def describe_layout(layer: torch.nn.Module) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "kernel": list(layer.weight.shape[2:]),
        "groups": getattr(layer, "groups", 1),
    }
    if "block" in layer.deltas:
        view = layer.deltas["block"].view
        layout |= {"view": view.kind, "block": list(view.block)}
    return layout


def guess_architecture(model: torch.nn.Module) -> str:
    """The modelspec architecture of a diffusion UNet by its text width; other models by their class name."""
    width = getattr(getattr(model, "config", None), "cross_attention_dim", None)
    if type(model).__name__ == "UNet2DConditionModel":
        return {1024: "stable-diffusion-v2", 2048: "stable-diffusion-xl-v1-base"}.get(
            width, "stable-diffusion-v1"
        )
    return type(model).__name__.lower()


def read_atoms(path: str | os.PathLike[str]) -> AtomFile:
    """Read and validate an atom file. No model is needed, nothing is unpickled.

    Raises:
        AtomError: the file is missing, truncated, no safetensors file, of another or a future format, or its
            tensors contradict each other.
    """
    path = Path(path)
    if not path.is_file():
        raise AtomError(f"there is no file {str(path)!r}")
    data = path.read_bytes()
    where = f"the file {path.name!r}"
    header = read_header(data, where)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AtomError(f"{where} has a header whose metadata is not plain text")
    if metadata.get("format") != FORMAT:
        came = clip(metadata.get("format", "none"))
        raise AtomError(
            f"{where} is not an atom file: its format is {came!r} where {FORMAT!r} fits"
        )
    try:
        tensors = load_tensors(data)
        config = AtomConfig.from_dict(json.loads(metadata["config"]))
        layers, prints = json.loads(metadata["layers"]), json.loads(metadata["base_fingerprints"])
    except AtomError as error:
        raise AtomError(f"{where}: {error}") from None
    except KeyError as error:
        raise AtomError(f"{where} lacks the header entry {error}") from None
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise AtomError(f"{where} is damaged: {clip(str(error))}") from None
    if not isinstance(layers, dict) or not isinstance(prints, dict):
        raise AtomError(f"{where} has a header whose layers or fingerprints are no tables")
    check_tensors(tensors, layers, where)
    return AtomFile(config, dict(metadata), tensors)


def read_header(data: bytes, where: str) -> dict[str, Any]:
    """The JSON header of a safetensors file, with limits on what it may claim."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8 or size > MAX_HEADER or data[8:9] != b"{":
        raise AtomError(
            f"{where} is no safetensors file (or was cut short); atom files are safetensors only"
        )
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        raise AtomError(f"{where} has a header that is not JSON") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise AtomError(
            f"{where} has a header of {len(header)} entries; at most {MAX_TENSORS} are read"
        )
    return header


def check_tensors(tensors: Mapping[str, Tensor], layers: Mapping[str, Any], where: str) -> None:
    """Refuse tensors that are not finite, of another dtype, or whose shapes contradict the layout."""
    if not tensors:
        raise AtomError(f"{where} holds no tensors")
    for key, tensor in tensors.items():
        component, path, view, name = split_key(key)
        if name != "encoder" and name not in TRAINED[view]:
            raise AtomError(f"{where} holds an unknown tensor {clip(key)!r}")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise AtomError(
                f"{where}: {clip(key)!r} is {tensor.dtype} where a floating-point type fits"
            )
        if not torch.isfinite(tensor).all():
            raise AtomError(f"{where}: {clip(key)!r} holds NaN or infinite numbers")
        layout = layers.get(f"{component}.{path}")
        if not isinstance(layout, dict):
            raise AtomError(f"{where} has no layout for the layer {clip(path)!r}")
        problem = check_layout(layout, view)
        if problem:
            raise AtomError(f"{where}: the layout of {clip(path)!r} {problem}")
    for component in {split_key(key)[0] for key in tensors}:
        for path, views in group_tensors(tensors, component).items():
            for view, found in views.items():
                problem = check_shapes(found, layers[f"{component}.{path}"], view)
                if problem:
                    raise AtomError(f"{where}: {clip(f'{component}.{path}.{view}')!r} {problem}")


def check_layout(layout: Mapping[str, Any], view: str) -> str:
    whole = lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1
    kernel, block = layout.get("kernel"), layout.get("block")
    if not isinstance(kernel, list) or len(kernel) > 3 or not all(map(whole, kernel)):
        return "has no kernel of whole numbers"
    if not whole(layout.get("groups")):
        return "has no number of groups"
    if view == "block" and not (
        isinstance(block, list) and len(block) == 2 and all(map(whole, block))
    ):
        return "has no pair of block sides"
    if view == "block" and layout.get("view") not in ("channel", "joint"):
        return "names no block view"
    return ""


def check_shapes(found: Mapping[str, Tensor], layout: Mapping[str, Any], view: str) -> str:
    """What is wrong with one view's tensors, or an empty string."""
    taps = int(np.prod(layout["kernel"], dtype=np.int64))
    area = 1 if view == "spatial" else layout["block"][0] * layout["block"][1]
    p = area * (1 if view == "block" and layout["view"] == "channel" else taps)
    kinds = [{"atoms"}, {"inner_coefficients", "inner_atoms"}, {"channel_atoms"}]
    if "encoder" not in found or set(found) - {"encoder"} not in kinds:
        return f"holds {', '.join(sorted(found))}: not one encoder with one set of trained tensors"
    shapes = {name: tuple(t.shape) for name, t in found.items()}
    if len(shapes["encoder"]) != 2 or shapes["encoder"][0] != p or shapes["encoder"][1] > p:
        return f"has an encoder of shape {shapes['encoder']} where ({p}, at most {p}) fits"
    m = shapes["encoder"][1]
    expected: dict[str, tuple[Any, ...]] = {"encoder": (p, m), "atoms": (m, p)}
    if "channel_atoms" in shapes:
        expected["channel_atoms"] = (shapes["channel_atoms"][0], m, p)
    if "inner_atoms" in shapes:
        inner = shapes["inner_atoms"][1] if len(shapes["inner_atoms"]) == 3 else 0
        expected |= {
            "inner_atoms": (m, inner, p),
            "inner_coefficients": (shapes["inner_coefficients"][0], m, inner),
        }
    for name, shape in shapes.items():
        if shape != expected[name]:
            return f"has {name} of shape {shape} where {expected[name]} fits"
    return ""


def fingerprint(weight: Tensor) -> list[float]:
    """`‖W‖_F` and three seeded ±1 projections of W divided by it, 5 significant digits.

    The signs are `RandomState(0).randint` numbers, a frozen stream, repeated with a period of 65,521.
    """
    flat = weight.detach().float().flatten()
    norm = float(flat.double().norm()) if flat.numel() < 1 << 20 else float(flat.norm())
    if norm == 0:
        return [0.0, 0.0, 0.0, 0.0]
    whole = flat.numel() // PROJECTION_PERIOD * PROJECTION_PERIOD
    folded = torch.zeros(PROJECTION_PERIOD, device=flat.device)
    if whole:
        folded += flat[:whole].reshape(-1, PROJECTION_PERIOD).sum(0)
    folded[: flat.numel() - whole] += flat[whole:]
    signs = np.random.RandomState(0).randint(0, 2, (3, PROJECTION_PERIOD)) * 2 - 1
    projections = signs.astype(np.float64) @ folded.double().cpu().numpy() / norm
    return [float(f"{v:.5g}") for v in (norm, *projections)]


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_whole(path: Path, data: bytes) -> Path:
    """Write to a temporary file beside `path`, flush to disk, rename: `path` is complete or untouched."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def clip(text: str, length: int = 120) -> str:
    """Untrusted text made fit for one line: control characters dropped, cut to `length`."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return plain if len(plain) <= length else plain[: length - 1] + "…"
