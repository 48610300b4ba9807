"""Open a single file in the original layout, offline: diffusers converts, the configs are ours.

The configuration files lie in `configs/`, one folder a family; widths and depths are taken from the
file's own shapes. One component is read at a time, so that nothing is held twice.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdatoms.errors import AtomError, first_line
from sdatoms.models.header import UNOPENED
from sdatoms.models.original_layout import lay_out, remember_file
from sdatoms.models.recognize import UNET, Checkpoint, find_part, read_checkpoint
from sdatoms.models.vocabulary import build_tokenizer
from sdatoms.storage import read_table

__all__ = [
    "CONFIGS",
    "build",
    "check_shapes",
    "convert",
    "describe_missing",
    "open_checkpoint",
    "open_unet",
    "write_configs",
]

CONFIGS = Path(__file__).parent / "configs"
FLAGS = {"vae": "--vae", "text_encoder": "--text_encoders", "text_encoder_2": "--text_encoders"}
"""Component → the flag that gives it."""
WORDS = {
    "unet": "the UNet",
    "vae": "the autoencoder",
    "text_encoder": "the text encoder",
    "text_encoder_2": "the second text encoder",
}


def open_checkpoint(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    *,
    vae: nn.Module | None = None,
    text_encoders: Path | None = None,
) -> Any:
    """A diffusers pipeline of the file's weights, on the CPU.

    Args:
        checkpoint: what `read_checkpoint` found.
        dtype: of all weights.
        vae: an autoencoder to take instead of the file's.
        text_encoders: a pipeline's folder, or another single file of the family, whose text
            encoders are taken instead of the file's.

    Raises:
        AtomError: a component is missing and none is given, or its tensors do not fit.
    """
    import diffusers

    family = checkpoint.family
    missing = [part for part in checkpoint.missing if part != "vae" or vae is None]
    if text_encoders is not None:
        missing = [part for part in missing if part not in family.text_encoders]
    if missing:
        raise AtomError(describe_missing(checkpoint, missing))
    source = checkpoint
    borrowed: dict[str, Any] = {}
    if text_encoders is not None:
        if text_encoders.is_dir():
            borrowed = load_text_encoders(text_encoders, family.text_encoders, dtype)
        else:
            source = read_checkpoint(text_encoders)
            if source.family != family:
                raise AtomError(
                    f"the text encoders of {text_encoders.name!r} are those of {source.label}; "
                    f"{checkpoint.path.name!r} takes those of {family.label}"
                )
            lacking = [part for part in source.missing if part in family.text_encoders]
            if lacking:
                raise AtomError(describe_missing(source, lacking))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_configs(checkpoint, folder)
        parts: dict[str, Any] = {"unet": open_part(checkpoint, "unet", folder, dtype)}
        parts["vae"] = vae or open_part(checkpoint, "vae", folder, dtype)
        if source is not checkpoint:
            write_configs(source, folder, family.text_encoders)
        for part in family.text_encoders:
            parts[part] = borrowed.get(part) or open_part(source, part, folder, dtype)
            tokenizer = part.replace("text_encoder", "tokenizer")
            table = read_table(folder / tokenizer / "tokenizer_config.json")
            parts[tokenizer] = borrowed.get(tokenizer) or build_tokenizer(table["pad_token"])
        index = read_table(folder / "model_index.json")
        scheduler = getattr(diffusers, index["scheduler"][1])
        parts["scheduler"] = scheduler.from_pretrained(folder, subfolder="scheduler")
    return assemble(index["_class_name"], parts, checkpoint)


def open_unet(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The UNet alone; other components may be missing.

    Raises:
        AtomError: its tensors do not fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_configs(checkpoint, Path(folder), ("unet",))
        return open_part(checkpoint, "unet", Path(folder), dtype)


def assemble(kind: str, parts: dict[str, Any], checkpoint: Checkpoint) -> Any:
    import diffusers

    if checkpoint.inpainting:
        kind = kind.replace("Pipeline", "InpaintPipeline")
    extras: dict[str, Any] = {"add_watermarker": False}
    if checkpoint.family.key != "sdxl":
        extras = {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
    return getattr(diffusers, kind)(**parts, **extras)


def describe_missing(checkpoint: Checkpoint, parts: list[str]) -> str:
    """One sentence: what the file lacks, and which flags give it."""
    words = " and ".join(WORDS[part] for part in parts)
    flags = " and ".join(dict.fromkeys(FLAGS.get(part, "") for part in parts))
    source = f"a pipeline's folder or single file of {checkpoint.family.label}"
    return (
        f"{checkpoint.path.name!r} holds a {checkpoint.label} without {words}; give {flags} with "
        f"{source}"
    )


def write_configs(
    checkpoint: Checkpoint, folder: Path, parts: tuple[str, ...] | None = None
) -> None:
    """Write the family's configuration files, widths and depths set to the file's own.

    Args:
        folder: is made where it is missing.
        parts: components whose files are written; None for all.
    """
    own = CONFIGS / checkpoint.family.key
    for path in sorted(own.rglob("*.json")):
        part = path.parent.name if path.parent != own else ""
        if parts is not None and part not in parts:
            continue
        table = read_table(path) | read_shapes(checkpoint, part)
        if part == "scheduler":
            table["prediction_type"] = checkpoint.prediction_type
            if checkpoint.zero_snr:
                table |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        target = folder / path.relative_to(own)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def read_shapes(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    """The config entries of one component that its tensors' shapes say."""
    if part not in checkpoint.part_bytes:
        return {}
    names = find_part(checkpoint, part)
    shapes = {new: checkpoint.header.tensors[old].shape for old, new in names.items()}
    with suppress(KeyError, IndexError, ValueError):
        if part == "unet":
            return read_unet_shapes(checkpoint, shapes)
        if part == "vae":
            prefix = next(iter(shapes)).split(".")[0]
            levels = list_numbers(shapes, rf"{prefix}\.encoder\.down\.(\d+)\.")
            block = f"{prefix}.encoder.down.{{}}.block.0.conv1.weight"
            widths = [shapes[block.format(k)][0] for k in levels]
            return {"block_out_channels": widths}
        layers = list_numbers(shapes, r".*(?:layers|resblocks)\.(\d+)\.")
        layers = layers[:-1] if checkpoint.family.key == "sd2" and len(layers) == 24 else layers
        wide = next(
            shape[0]
            for name, shape in shapes.items()
            if name.endswith(("0.mlp.fc1.weight", "0.mlp.c_fc.weight"))
        )
        return {"num_hidden_layers": len(layers), "intermediate_size": wide}
    return {}


def read_unet_shapes(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    table = read_table(CONFIGS / checkpoint.family.key / "unet" / "config.json")
    levels, step = len(table["block_out_channels"]), table["layers_per_block"] + 1
    widths = [
        shapes[f"{UNET}input_blocks.{1 + k * step}.0.out_layers.3.weight"][0] for k in range(levels)
    ]
    found: dict[str, Any] = {
        "in_channels": 9 if checkpoint.inpainting else 4,
        "block_out_channels": widths,
        "sample_size": checkpoint.side // 8,
    }
    if isinstance(table["attention_head_dim"], list):  # heads of 64 numbers, as many as fit
        found["attention_head_dim"] = [max(1, width // 64) for width in widths]
    if checkpoint.family.key == "sdxl":
        found["projection_class_embeddings_input_dim"] = shapes[f"{UNET}label_emb.0.0.weight"][1]
    return found


def list_numbers(names: Mapping[str, Any], pattern: str) -> list[int]:
    """The numbers that the pattern finds in names, in order."""
    found = {int(match[1]) for name in names if (match := re.match(pattern, name))}
    return sorted(found)


def open_part(checkpoint: Checkpoint, part: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One component with the file's weights, in evaluation mode.

    Raises:
        AtomError: tensors are missing or have other shapes.
    """
    model = build(part, folder)
    names = find_part(checkpoint, part)
    check_shapes(checkpoint, part, model, names)
    try:
        with safe_open(checkpoint.path, framework="pt") as file:
            tensors = {new: file.get_tensor(old) for old, new in names.items()}
            model = convert(part, tensors, folder, dtype)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = first_line(error)
        raise AtomError(
            f"{WORDS[part]} of {checkpoint.path.name!r} cannot be opened: {reason}"
        ) from None
    if part != "vae":
        remember_file(model, checkpoint.path, checkpoint.family.key, part, names)
    return model.eval()


def build(part: str, folder: Path, changes: Mapping[str, Any] | None = None) -> nn.Module:
    """The component on the meta device.

    Args:
        changes: config entries to set otherwise, such as smaller widths.
    """
    from accelerate import init_empty_weights

    kind, table = find_class(part), read_table(folder / part / "config.json")
    table |= changes or {}
    with init_empty_weights():
        if part in ("unet", "vae"):
            return kind.from_config(table)
        return kind(kind.config_class(**table))


def find_class(part: str) -> Any:
    if part == "unet":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel
    if part == "vae":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return AutoencoderKL
    import transformers

    second = part == "text_encoder_2"
    return transformers.CLIPTextModelWithProjection if second else transformers.CLIPTextModel


def check_shapes(
    checkpoint: Checkpoint, part: str, model: nn.Module, names: Mapping[str, str]
) -> None:
    """Hold the file's names and shapes against the model's.

    Raises:
        AtomError: a tensor is missing, or has another shape.
    """
    found = {new: checkpoint.header.tensors[old].shape for old, new in names.items()}
    if part == "vae":
        found = {
            re.sub(r"^vae\.", "first_stage_model.", name): shape for name, shape in found.items()
        }
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted = lay_out(checkpoint.family.key, part, shapes)
    odd = [t for t in wanted if flatten(found.get(t.name)) != flatten(t.shape)]
    if odd:
        first = odd[0]
        has = found.get(first.name)
        state = f"is {has} where {first.shape} fits" if has else "is missing"
        raise AtomError(
            f"{WORDS[part]} of {checkpoint.path.name!r} is not that of {checkpoint.family.label}: "
            f"{len(odd)} of {len(wanted)} tensors do not fit, first {first.name!r}, which {state}"
        )


def flatten(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """A shape without the trailing ones of 1×1 kernels, which some writers leave away."""
    if shape is None or len(shape) < 3:
        return shape
    return shape[:2] if all(side == 1 for side in shape[2:]) else shape


def convert(part: str, tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> Any:
    """diffusers' own conversion of one component."""
    kind = find_class(part)
    options = {"config": str(folder), "subfolder": part, "torch_dtype": dtype}
    if part in ("unet", "vae"):
        return kind.from_single_file(tensors, local_files_only=True, **options)
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    return create_diffusers_clip_model_from_ldm(
        kind, checkpoint=tensors, local_files_only=True, **options
    )


def load_text_encoders(folder: Path, parts: tuple[str, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Text encoders and tokenizers of a pipeline's folder."""
    import transformers

    found: dict[str, Any] = {}
    for part in parts:
        tokenizer = part.replace("text_encoder", "tokenizer")
        if not (folder / part / "config.json").is_file():
            raise AtomError(f"the folder {str(folder)!r} holds no {part} to take")
        options: dict[str, Any] = {"subfolder": part, "local_files_only": True}
        try:
            found[part] = find_class(part).from_pretrained(
                folder, dtype=dtype, use_safetensors=True, **options
            )
            found[tokenizer] = transformers.CLIPTokenizer.from_pretrained(
                folder, subfolder=tokenizer, local_files_only=True
            )
        except UNOPENED as error:
            reason = first_line(error)
            raise AtomError(f"the {part} of {str(folder)!r} cannot be opened: {reason}") from None
    return found
