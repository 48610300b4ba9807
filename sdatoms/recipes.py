"""Pictures that carry how they were made: a PNG from which the same picture can be painted again.

Three things ride in the file:

- `parameters`: the text that A1111 and the tools around it write and read;
- `sdatoms`: a JSON table with the base and its fingerprint, the hash and strength of every atom
  file, scheduler, seed and versions;
- on request `saTm` chunks: the atom files themselves, which are small. They are validated by
  `read_atoms` on the way out, like any file from a stranger.
"""

from __future__ import annotations

import io
import json
import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save as save_tensors

import sdatoms
from sdatoms.atom_file import AtomFile, clip, write_whole
from sdatoms.atom_reader import read_atoms
from sdatoms.compatibility import same_base
from sdatoms.errors import AtomError

__all__ = [
    "Recipe",
    "UsedAtoms",
    "compare_recipe",
    "format_parameters",
    "hash_picture",
    "list_versions",
    "parse_parameters",
    "read_passengers",
    "read_recipe",
    "save_picture",
]

CHUNK = b"saTm"
"""Ancillary, private, safe to copy: programs that do not know it keep it or drop it."""
MAX_PASSENGER = 16 << 20
MAX_FILE = 64 << 20
MAX_TEXT = 1 << 20
MAX_ADAPTERS = 16
SIGNATURE = b"\x89PNG\r\n\x1a\n"
FIELD = re.compile(r'\s*([\w][\w ./+-]*?):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


@dataclass(frozen=True)
class UsedAtoms:
    """One atom file that took part."""

    name: str
    sha256: str
    strength: float | dict[str, float]
    """One number, or numbers for the UNet's `down`, `mid` and `up` blocks."""
    trigger: str = ""


@dataclass(frozen=True)
class Recipe:
    """All that a picture depends on."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    scheduler: str = "DDIM"
    width: int = 0
    """px; 0: the base's own."""
    height: int = 0
    base_model: str = ""
    base_fingerprint: dict[str, list[float]] = field(default_factory=dict)
    """A few layers of the UNet, see `fingerprint_base`; empty where another tool painted."""
    adapters: tuple[UsedAtoms, ...] = ()
    denoising_strength: float | None = None
    """Set where the picture was painted over another."""
    init_sha256: str | None = None
    """`hash_picture` of that other."""
    versions: dict[str, str] = field(default_factory=dict)


def save_picture(
    picture: Image.Image, path: Path, recipe: Recipe, passengers: Iterable[AtomFile] = ()
) -> Path:
    """Write the picture as PNG with its recipe, whole or not at all.

    Args:
        passengers: atom files that ride inside; at most 16 MB in all.

    Raises:
        AtomError: the files are too large to ride inside.
    """
    info = PngInfo()
    info.add_itxt("parameters", format_parameters(recipe))
    info.add_itxt("sdatoms", json.dumps(asdict(recipe), ensure_ascii=False))
    total = 0
    for file in passengers:
        data = save_tensors(file.tensors, file.metadata)
        total += len(data)
        if total > MAX_PASSENGER:
            raise AtomError(
                f"the atom files have {total / 1e6:.0f} MB; at most {MAX_PASSENGER >> 20} MB ride "
                "inside a picture"
            )
        info.add(CHUNK, data)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return write_whole(path, buffer.getvalue())


def read_recipe(path: Path) -> Recipe | None:
    """The recipe in a picture: ours, or what can be read from another tool's `parameters`.

    Returns:
        None where the picture carries neither.

    Raises:
        AtomError: the file is no PNG, or its recipe is damaged.
    """
    where = f"the picture {clip(path.name)!r}"
    texts = {k: v for k, v in open_texts(path, where).items() if k in ("sdatoms", "parameters")}
    for text in texts.values():
        if len(text) > MAX_TEXT:
            raise AtomError(f"{where} has a recipe of {len(text)} characters; no recipe is so long")
    if "sdatoms" in texts:
        try:
            table = json.loads(texts["sdatoms"])
        except (ValueError, RecursionError):
            raise AtomError(f"{where} has a recipe that is not JSON") from None
        return build_recipe(table, where)
    return parse_parameters(texts["parameters"]) if "parameters" in texts else None


def open_texts(path: Path, where: str) -> dict[str, str]:
    try:
        if path.stat().st_size > MAX_FILE:
            raise AtomError(f"{where} is larger than {MAX_FILE >> 20} MB")
        with Image.open(path, formats=["PNG"]) as opened:
            opened.load()  # text may stand after the pixels
            return {str(k): str(v) for k, v in getattr(opened, "text", {}).items()}
    except AtomError:
        raise
    except Exception as error:  # Pillow raises many kinds for what is no picture
        raise AtomError(f"{where} is no PNG that opens: {clip(str(error))}") from None


def build_recipe(table: Any, where: str) -> Recipe:
    """A recipe from untrusted JSON; unknown entries are passed over.

    Raises:
        AtomError: an entry is of another type or out of range.
    """
    if not isinstance(table, dict) or not isinstance(table.get("prompt"), str):
        raise AtomError(f"{where} has a recipe without a prompt")
    kinds: dict[str, tuple[type, ...]] = {
        "prompt": (str,),
        "negative_prompt": (str,),
        "seed": (int,),
        "num_inference_steps": (int,),
        "guidance_scale": (int, float),
        "scheduler": (str,),
        "width": (int,),
        "height": (int,),
        "base_model": (str,),
        "denoising_strength": (int, float, type(None)),
        "init_sha256": (str, type(None)),
    }
    values: dict[str, Any] = {}
    for name, accepted in kinds.items():
        if name in table:
            value = table[name]
            if not isinstance(value, accepted) or isinstance(value, bool) or not finite(value):
                raise AtomError(f"{where} has a recipe whose {name} is {clip(repr(value))}")
            values[name] = value
    adapters = table.get("adapters", [])
    if not isinstance(adapters, list) or len(adapters) > MAX_ADAPTERS:
        raise AtomError(f"{where} has a recipe whose adapters are no list of {MAX_ADAPTERS}")
    return Recipe(
        **values,
        base_fingerprint=check_prints(table.get("base_fingerprint", {}), where),
        adapters=tuple(build_used(entry, where) for entry in adapters),
        versions=check_versions(table.get("versions", {}), where),
    )


def build_used(entry: Any, where: str) -> UsedAtoms:
    texts = ("name", "sha256", "trigger")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(k, ""), str) for k in texts):
        raise AtomError(f"{where} has a recipe with an adapter that is no table of texts")
    strength = entry.get("strength", 1.0)
    numbers = strength if isinstance(strength, dict) else {"down": strength}
    for block, number in numbers.items():
        plain = isinstance(number, int | float) and not isinstance(number, bool)
        if not plain or not math.isfinite(number) or block not in ("down", "mid", "up"):
            raise AtomError(f"{where} has a recipe with a strength of {clip(repr(strength))}")
    return UsedAtoms(
        name=clip(entry.get("name", ""), 200),
        sha256=clip(entry.get("sha256", ""), 64),
        strength=strength,
        trigger=clip(entry.get("trigger", "")),
    )


def check_prints(prints: Any, where: str) -> dict[str, list[float]]:
    whole = isinstance(prints, dict) and len(prints) <= 64
    if not whole or not all(
        isinstance(v, list)
        and len(v) == 4
        and all(isinstance(n, int | float) and math.isfinite(n) for n in v)
        for v in prints.values()
    ):
        raise AtomError(f"{where} has a recipe whose base_fingerprint is no table of four numbers")
    return prints


def check_versions(versions: Any, where: str) -> dict[str, str]:
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise AtomError(f"{where} has a recipe whose versions are no table of texts")
    return {clip(k, 40): clip(v, 40) for k, v in list(versions.items())[:16]}


def finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def format_parameters(recipe: Recipe) -> str:
    """The text A1111 writes: prompt, negative prompt, and one line of settings."""
    settings: dict[str, Any] = {
        "Steps": recipe.num_inference_steps,
        "Sampler": recipe.scheduler,
        "CFG scale": f"{recipe.guidance_scale:g}",
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
    }
    if recipe.base_fingerprint:
        prints = json.dumps(recipe.base_fingerprint, sort_keys=True)
        settings["Model hash"] = sha256(prints.encode()).hexdigest()[:10]
    if recipe.base_model:
        settings["Model"] = Path(recipe.base_model).name
    if recipe.denoising_strength is not None:
        settings["Denoising strength"] = f"{recipe.denoising_strength:g}"
    if recipe.adapters:
        named = [(re.sub(r"[:,\"]", " ", used.name), used) for used in recipe.adapters]
        settings["Atoms"] = ", ".join(f"{n}: {write_strength(u.strength)}" for n, u in named)
        settings["Atoms hashes"] = ", ".join(f"{n}: {u.sha256[:12]}" for n, u in named)
    settings["Version"] = f"sdatoms {recipe.versions.get('sdatoms', sdatoms.__version__)}"
    lines = [recipe.prompt]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    lines.append(", ".join(f"{name}: {quote(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def write_strength(strength: float | Mapping[str, float]) -> str:
    if isinstance(strength, Mapping):
        return " ".join(f"{block}={number:g}" for block, number in strength.items())
    return f"{strength:g}"


def quote(value: Any) -> str:
    text = str(value)
    special = any(c in text for c in ",:\n")
    return json.dumps(text, ensure_ascii=False) if special else text


def parse_parameters(text: str) -> Recipe:
    """Read A1111's text, whoever wrote it; settings it lacks keep their defaults."""
    lines = text.strip().split("\n")
    found = {k.strip(): v.strip() for k, v in FIELD.findall(lines[-1])}
    settings = found if len(found) >= 3 and "Steps" in found else {}
    body = "\n".join(lines[:-1] if settings else lines)
    prompt, _, negative = body.partition("Negative prompt:")
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", settings.get("Size", ""))
    recipe = Recipe(prompt.strip(), negative.strip(), base_model=clip(settings.get("Model", "")))
    changes: dict[str, Any] = {}
    for name, setting, kind in (
        ("seed", "Seed", int),
        ("num_inference_steps", "Steps", int),
        ("guidance_scale", "CFG scale", float),
        ("denoising_strength", "Denoising strength", float),
    ):
        try:
            value = kind(settings[setting])
        except (KeyError, ValueError):
            continue
        changes |= {name: value} if math.isfinite(value) else {}
    if "Sampler" in settings:
        changes["scheduler"] = clip(settings["Sampler"], 40)
    if size:
        changes |= {"width": int(size[1]), "height": int(size[2])}
    return replace(recipe, **changes)


def compare_recipe(
    recipe: Recipe,
    *,
    base_fingerprint: Mapping[str, Sequence[float]],
    hashes: Iterable[str],
) -> list[str]:
    """What would make the picture differ if it were painted here: one sentence each.

    Args:
        base_fingerprint: of the base at hand.
        hashes: sha256 of the atom files at hand.
    """
    remarks = []
    stored, found = recipe.base_fingerprint, {k: list(v) for k, v in base_fingerprint.items()}
    if not stored:
        remarks.append("The picture does not say which weights its base had.")
    elif not same_base(stored, found):
        remarks.append(f"The base differs from the picture's ({clip(recipe.base_model)}).")
    held = set(hashes)
    remarks += [
        f"The atom file {used.name} ({used.sha256[:12]}) is not here."
        for used in recipe.adapters
        if used.sha256 not in held
    ]
    here = list_versions()
    other = [f"{k} {v}" for k, v in recipe.versions.items() if here.get(k) != v]
    if other:
        remarks.append(f"It was painted with {', '.join(other)}; pixels may differ a little.")
    if recipe.denoising_strength is not None:
        remarks.append("It was painted over another picture, which is not inside it.")
    return remarks


def list_versions() -> dict[str, str]:
    """Versions that pixels depend on."""
    return {
        "sdatoms": sdatoms.__version__,
        "diffusers": version("diffusers"),
        "torch": version("torch"),
    }


def hash_picture(picture: Image.Image) -> str:
    """SHA-256 of size and RGB pixels."""
    rgb = picture.convert("RGB")
    return sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def read_passengers(path: Path) -> list[AtomFile]:
    """The atom files that ride inside a PNG, validated; none where there are none.

    Raises:
        AtomError: the file is no PNG, a passenger is too large, or no atom file.
    """
    where = f"the picture {clip(path.name)!r}"
    if path.stat().st_size > MAX_FILE:
        raise AtomError(f"{where} is larger than {MAX_FILE >> 20} MB")
    data = path.read_bytes()
    if not data.startswith(SIGNATURE):
        raise AtomError(f"{where} is no PNG")
    files, place, total = [], len(SIGNATURE), 0
    with tempfile.TemporaryDirectory() as folder:
        while place + 8 <= len(data) and len(files) < MAX_ADAPTERS:
            length, kind = (
                int.from_bytes(data[place : place + 4], "big"),
                data[place + 4 : place + 8],
            )
            body = data[place + 8 : place + 8 + length]
            if kind == CHUNK:
                total += length
                if total > MAX_PASSENGER or len(body) < length:
                    raise AtomError(f"{where} carries an atom file that is cut short or too large")
                passenger = Path(folder) / "passenger.safetensors"
                passenger.write_bytes(body)
                files.append(read_atoms(passenger))
            place += 12 + length
    return files
