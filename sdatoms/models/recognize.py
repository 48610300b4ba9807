"""What a single file holds, told by its tensors' names and shapes: no weight is loaded.

Stable Diffusion 1.x, 2.x and XL in the layout of their first release, which ComfyUI, A1111 and
kohya's trainers write too: `model.diffusion_model.` (UNet), `first_stage_model.` (autoencoder),
`cond_stage_model.` or `conditioner.embedders.` (text encoders). The family follows from the width
of the text the UNet looks at, and from whether it has an embedding of sizes.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open

from sdatoms.errors import AtomError
from sdatoms.models.header import Header, TensorEntry, read_header
from sdatoms.models.strangers import name_stranger, name_unet

__all__ = [
    "DTYPES",
    "FAMILIES",
    "TELLTALE",
    "TEXT_PREFIXES",
    "UNET",
    "VAE_PREFIXES",
    "Checkpoint",
    "Family",
    "Prediction",
    "choose_files",
    "find_dtype",
    "find_part",
    "read_checkpoint",
    "recognize",
]

Prediction = Literal["epsilon", "v_prediction"]

UNET = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.")


@dataclass(frozen=True)
class Family:
    """One of the families that open from a single file."""

    key: str
    """Folder of its configuration files."""
    label: str
    context: int
    """Width of the text's embedding."""
    sides: Mapping[Prediction, int]
    """Native side in px, by what the UNet predicts."""
    text_encoders: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        return ("unet", "vae", *self.text_encoders)


FAMILIES = {
    family.key: family
    for family in (
        Family(
            "sd1",
            "Stable Diffusion 1.x",
            768,
            {"epsilon": 512, "v_prediction": 512},
            ("text_encoder",),
        ),
        Family(
            "sd2",
            "Stable Diffusion 2.x",
            1024,
            {"epsilon": 512, "v_prediction": 768},
            ("text_encoder",),
        ),
        Family(
            "sdxl",
            "Stable Diffusion XL",
            2048,
            {"epsilon": 1024, "v_prediction": 1024},
            ("text_encoder", "text_encoder_2"),
        ),
    )
}
"""Key → family, oldest first."""

TEXT_PREFIXES = {
    ("sd1", "text_encoder"): ("cond_stage_model.transformer.",),
    ("sd2", "text_encoder"): ("cond_stage_model.model.", "conditioner.embedders.0.model."),
    ("sdxl", "text_encoder"): ("conditioner.embedders.0.transformer.",),
    ("sdxl", "text_encoder_2"): ("conditioner.embedders.1.model.",),
}
"""Family and component → how its tensors' names may begin."""

DTYPES = {
    "F64": torch.float32,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float16,
    "F8_E5M2": torch.float16,
}
"""Dtype in the header → the nearest one that layers compute in."""

V_DEVIATION = 0.09
"""Standard deviation of the bias `TELLTALE` in SD 2.x above which ComfyUI takes the UNet for a
768-v; `comfy/supported_models.py`, class SD20."""
TELLTALE = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
SPELLINGS: dict[str, Prediction] = {
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "vpred": "v_prediction",
    "epsilon": "epsilon",
    "eps": "epsilon",
}


@dataclass(frozen=True)
class Checkpoint:
    """A single file that is a base, or lacks only parts that flags can give."""

    path: Path
    family: Family
    inpainting: bool
    """Whether the UNet also takes a mask and a masked picture: 9 input channels."""
    prediction_type: Prediction
    because: str
    """What the prediction type was told by."""
    zero_snr: bool
    """Whether the noise schedule ends in pure noise."""
    dtype: torch.dtype
    """That of most of the UNet's weights, or float16 for 8-bit floats."""
    part_bytes: Mapping[str, int]
    """Component → bytes it takes in the file; components that it lacks are left out."""
    bare: bool
    """Whether the UNet's names stand without their prefix."""
    header: Header

    @property
    def missing(self) -> tuple[str, ...]:
        """Components that the file lacks."""
        return tuple(part for part in self.family.parts if part not in self.part_bytes)

    @property
    def side(self) -> int:
        """Native side in px."""
        return self.family.sides[self.prediction_type]

    @property
    def label(self) -> str:
        """Family and form in words, such as "Stable Diffusion 2.x (v), inpainting"."""
        v = " (v)" if self.prediction_type == "v_prediction" else ""
        return self.family.label + v + (", inpainting" if self.inpainting else "")


def read_checkpoint(
    path: str | os.PathLike[str], prediction_type: Prediction | None = None
) -> Checkpoint:
    """What base a safetensors file holds, read from its header.

    One small tensor is read beside it, where nothing else tells what an SD 2.x predicts.

    Args:
        path: the file, judged by its content.
        prediction_type: what the UNet predicts; otherwise found, see `find_prediction`.

    Raises:
        AtomError: it is no safetensors file, or holds no base of a known family.
    """
    return recognize(Path(path), read_header(path), prediction_type)


def choose_files(files: Iterable[Path], variant: str | None = None) -> list[Path]:
    """Of a folder's weight files those of a variant, or those that are not the half-precision twins
    of others; all where there are none such."""
    mark = f".{variant}." if variant else None
    files = sorted(files)
    return [p for p in files if (mark in p.name if mark else ".fp16." not in p.name)] or files


def find_dtype(files: Sequence[Path]) -> torch.dtype | None:
    """What the first of these weight files is kept in.

    Raises:
        AtomError: it is no safetensors file.
    """
    entries = read_header(min(files)).tensors.values() if files else ()
    return next((DTYPES[e.dtype] for e in entries if e.dtype in DTYPES), None)


def recognize(path: Path, header: Header, prediction_type: Prediction | None = None) -> Checkpoint:
    """`read_checkpoint` for a header at hand."""
    tensors = header.tensors
    bare = UNET + "input_blocks.0.0.weight" not in tensors and (
        "input_blocks.0.0.weight" in tensors and "middle_block.1.norm.weight" in tensors
    )
    prefix = "" if bare else UNET
    first = tensors.get(f"{prefix}input_blocks.0.0.weight")
    if first is None or len(first.shape) != 4:
        raise AtomError(f"{path.name!r} is no base model: it holds {name_stranger(header)}")
    family, inpainting = find_family(path, tensors, prefix)
    if any(name.endswith((".scale_weight", ".weight_scale")) for name in tensors):
        raise AtomError(
            f"{path.name!r} holds a {family.label} whose weights are scaled into 8 bits, which is "
            "not read; take the float16 file of the same model"
        )
    sizes = {"unet": measure(tensors, [prefix + "input", prefix + "middle", prefix + "output"])}
    sizes["vae"] = measure(tensors, VAE_PREFIXES)
    for part in family.text_encoders:
        sizes[part] = measure(tensors, TEXT_PREFIXES[family.key, part])
    prediction, because = find_prediction(path, header, family, inpainting, prefix)
    if prediction_type is not None:
        prediction, because = prediction_type, "--prediction_type"
    held = Counter[torch.dtype]()
    for name, entry in tensors.items():
        if name.startswith(prefix) and entry.dtype in DTYPES and is_unet(name, prefix):
            held[DTYPES[entry.dtype]] += entry.bytes
    return Checkpoint(
        path=path,
        family=family,
        inpainting=inpainting,
        prediction_type=prediction,
        because=because,
        zero_snr="ztsnr" in tensors,
        dtype=held.most_common(1)[0][0] if held else torch.float32,
        part_bytes={part: size for part, size in sizes.items() if size},
        bare=bare,
        header=header,
    )


def is_unet(name: str, prefix: str) -> bool:
    own = name.removeprefix(prefix)
    return own.startswith(("input_blocks.", "middle_block.", "output_blocks."))


def measure(tensors: Mapping[str, TensorEntry], prefixes: Iterable[str]) -> int:
    """Bytes of the tensors whose names begin so."""
    prefixes = tuple(prefixes)
    return sum(entry.bytes for name, entry in tensors.items() if name.startswith(prefixes))


def find_part(checkpoint: Checkpoint, part: str) -> dict[str, str]:
    """Names of one component's tensors in the file → as diffusers' converter expects them."""
    names = checkpoint.header.tensors
    if part == "unet":
        if checkpoint.bare:
            own = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.")
            return {name: UNET + name for name in names if name.startswith((*own, "out."))}
        return {name: name for name in names if name.startswith(UNET)}
    if part == "vae":
        return {name: name for name in names if name.startswith(VAE_PREFIXES)}
    prefixes = TEXT_PREFIXES[checkpoint.family.key, part]
    found = {}
    for name in names:
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is None:
            continue
        own = name.removeprefix(prefix)
        if ".transformer." in prefix and not own.startswith("text_model."):
            own = "text_model." + own  # as transformers named them in 2022
        found[name] = prefixes[0] + own
    return found


def find_family(path: Path, tensors: Mapping[str, TensorEntry], prefix: str) -> tuple[Family, bool]:
    """The family, and whether it is its inpainting form.

    Raises:
        AtomError: the UNet is of another family, named where it is known.
    """
    channels = tensors[f"{prefix}input_blocks.0.0.weight"].shape[1]
    pattern = re.compile(
        re.escape(prefix) + r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight"
    )
    width = next((e.shape[1] for name, e in tensors.items() if pattern.fullmatch(name)), 0)
    sizes = f"{prefix}label_emb.0.0.weight" in tensors
    other = name_unet(tensors, prefix, channels, width)
    for family in FAMILIES.values():
        fits = family.context == width and (family.key == "sdxl") == sizes and channels in (4, 9)
        if fits and other is None:
            return family, channels == 9
    other = other or (
        f"a UNet of {channels} input channels that looks at texts {width} wide, of no known family"
    )
    known = ", ".join(family.label for family in FAMILIES.values())
    raise AtomError(f"{path.name!r} holds {other}; bases of these families open: {known}")


def find_prediction(
    path: Path, header: Header, family: Family, inpainting: bool, prefix: str
) -> tuple[Prediction, str]:
    """What the UNet predicts, and what told it.

    In this order: the file's own word (a tensor `v_pred`, `modelspec.prediction_type`), the
    configuration beside it as A1111 has it (`parameterization` in a `.yaml` of the same name), its
    name, and for SD 2.x, which has no tell-tale tensor, one bias that ComfyUI looks at.
    """
    if "v_pred" in header.tensors:
        return "v_prediction", "its tensor v_pred"
    said = header.metadata.get("modelspec.prediction_type", "").strip().lower()
    if said in SPELLINGS:
        return SPELLINGS[said], "its metadata"
    beside = path.with_suffix(".yaml")
    if beside.is_file():
        try:
            text = beside.read_text(encoding="utf-8", errors="replace")[:100_000]
        except OSError:
            text = ""
        found = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", text, re.MULTILINE)
        if found and found[1].lower() in SPELLINGS:
            return SPELLINGS[found[1].lower()], f"{beside.name} beside it"
    stem = path.stem.lower()
    if re.search(r"v[-_ ]?pred|768[-_]?v(?![a-z])|[-_]v[-_]ema", stem):
        return "v_prediction", "its name"
    if family.key == "sd2" and not inpainting:
        if re.search(r"512[-_](?:base|ema)|[-_]base(?![a-z])", stem):
            return "epsilon", "its name"
        entry = header.tensors.get(prefix + TELLTALE)
        if entry is not None:
            deviation = read_deviation(path, prefix + TELLTALE)
            over = deviation > V_DEVIATION
            return ("v_prediction" if over else "epsilon"), f"a bias that varies by {deviation:.2g}"
    return "epsilon", "its family"


def read_deviation(path: Path, name: str) -> float:
    """Standard deviation of one small tensor."""
    with safe_open(path, framework="pt") as file:
        return float(file.get_tensor(name).float().std(correction=0))
