"""What other programs call the layers of a Stable Diffusion pipeline, and which of them they read.

- `diffusers`: `<component>.<module path>.lora_A.weight`, `unet` and `text_encoder` in front.
- `kohya`: `lora_unet_<path with _ for .>.lora_down.weight`; text encoders are `lora_te`, or
  `lora_te1` and `lora_te2` where there are two. ComfyUI and AUTOMATIC1111's web UI know these best.
- `lycoris`: `lycoris_<path>`, the names of one module.

Text encoders stand one level deeper in files, under `text_model`, than in transformers 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import AtomFile

__all__ = [
    "CLIENTS",
    "NAMES",
    "READERS",
    "Client",
    "Names",
    "Spelling",
    "find_client",
    "find_spelling",
    "list_skipped",
    "name_diffusers",
]

Names = Literal["diffusers", "kohya", "lycoris"]
NAMES: tuple[Names, ...] = ("diffusers", "kohya", "lycoris")

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer")
"""Components that other programs have names for."""
OUTER = ("unet.conv_in", "unet.conv_out", "unet.time_embedding.*", "unet.add_embedding.*")
"""Layers of a UNet outside its blocks."""
SGM = {
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""Layers that more programs know by the name of the original release."""


@dataclass(frozen=True)
class Client:
    """A program that opens exports."""

    title: str
    formats: tuple[str, ...]
    """What it opens, of `lora`, `diff` and `pipeline`; the best first."""
    names: Names
    skipped: tuple[str, ...] = ()
    """Patterns of `<component>.<module path>` that it does not place."""


CLIENTS = {
    "comfyui": Client("ComfyUI", ("lora", "diff", "pipeline"), "kohya"),
    "a1111": Client(
        "AUTOMATIC1111's web UI", ("lora", "diff"), "kohya", ("text_encoder*.text_projection",)
    ),
    "kohya": Client(
        "kohya's sd-scripts",
        ("lora", "pipeline"),
        "kohya",
        (*OUTER, "text_encoder*.text_projection"),
    ),
    "diffusers": Client("diffusers", ("lora", "pipeline"), "diffusers"),
    "lycoris": Client("LyCORIS", ("diff", "lora"), "lycoris"),
}
"""Choice of `--for` → program."""
READERS: dict[tuple[str, str], tuple[Client, ...]] = {
    ("lora", "kohya"): (
        CLIENTS["a1111"],
        CLIENTS["kohya"],
        Client("diffusers 0.32", ("lora",), "kohya", OUTER),
    ),
    ("diff", "kohya"): (CLIENTS["a1111"],),
}
"""Form and names → programs that skip some layers of it."""


def find_client(name: str) -> Client:
    """
    Raises:
        AtomError: the name is none of `CLIENTS`.
    """
    if name not in CLIENTS:
        raise AtomError(f"the program {clip(name)!r} is unknown; known are {', '.join(CLIENTS)}")
    return CLIENTS[name]


def list_skipped(client: Client, layers: Iterable[str]) -> list[str]:
    """Those of the layers (`<component>.<module path>`) that a program does not place."""
    return [
        layer
        for layer in layers
        if any(fnmatchcase(layer.replace(".text_model.", "."), p) for p in client.skipped)
    ]


def name_diffusers(component: str, path: str) -> str:
    """`<component>.<module path>` as diffusers' LoRA files spell it.

    Raises:
        AtomError: other programs have no name for the component.
    """
    if component not in COMPONENTS:
        raise AtomError(f"other tools have no names for the component {clip(component)!r}")
    above = path.startswith("text_model.") or path == "text_projection"
    if component.startswith("text_encoder") and not above:
        path = f"text_model.{path}"
    return f"{component}.{path}"


@dataclass(frozen=True)
class Spelling:
    """How one file's layers are called."""

    names: Names
    two_encoders: bool = False
    """Whether the base has a second text encoder, as SDXL has."""

    def prefix(self, component: str, path: str) -> str:
        """What stands before `.lora_down.weight`, `.diff` and the like.

        Raises:
            AtomError: as in `name_diffusers`.
        """
        whole = name_diffusers(component, path)
        if self.names == "diffusers":
            return whole
        if self.names == "lycoris":
            return f"lycoris_{path.replace('.', '_')}"
        inner = whole.removeprefix(f"{component}.")
        inner = SGM.get(inner, inner)
        first = "lora_te1" if self.two_encoders else "lora_te"
        start = {"text_encoder": first, "text_encoder_2": "lora_te2"}.get(component, "lora_unet")
        return f"{start}_{inner.replace('.', '_')}"


def find_spelling(file: AtomFile, target: Any, names: str) -> Spelling:
    """The spelling of a file's layers for the pipeline or module it is for.

    Raises:
        AtomError: the names are unknown, or those of one module and the file has several.
    """
    if names not in NAMES:
        raise AtomError(f"names is {names!r}; it takes {' | '.join(NAMES)}")
    if names == "lycoris" and len(file.components) > 1:
        raise AtomError(
            f"LyCORIS' loader takes the names of one module, and the file has "
            f"{' and '.join(file.components)}; kohya's names hold both"
        )
    second = getattr(target, "text_encoder_2", None) is not None
    xl = file.metadata.get("modelspec.architecture", "").startswith("stable-diffusion-xl")
    return Spelling(
        next(known for known in NAMES if known == names),
        second or xl or "text_encoder_2" in file.components,
    )
