"""Open an autoencoder by itself: what `--vae` names, such as SDXL's that works in float16."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sdatoms.errors import AtomError, first_line
from sdatoms.models.header import Header, read_header
from sdatoms.models.recognize import FAMILIES, VAE_PREFIXES, Checkpoint, find_part
from sdatoms.models.single_file import (
    CONFIGS,
    build,
    check_shapes,
    convert,
    write_configs,
)
from sdatoms.storage import reach_hub, read_table

__all__ = [
    "open_vae",
]


def open_vae(where: str, dtype: torch.dtype, family: str = "sd1") -> Any:
    """An autoencoder from a folder, a hub id or a single file.

    Args:
        where: a folder of an autoencoder or of a pipeline, a `.safetensors` file with a lone
            autoencoder or with a whole base, or a hub id.
        dtype: of all weights.
        family: key of the family whose configuration a single file takes.

    Raises:
        AtomError: there is no autoencoder, or its tensors do not fit.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    path = Path(where)
    try:
        if path.is_file():
            return open_file(path, dtype, family).eval()
        options = {"subfolder": "vae"} if (path / "vae" / "config.json").is_file() else {}
        with reach_hub(where):
            vae: Any = AutoencoderKL.from_pretrained(
                where, torch_dtype=dtype, use_safetensors=True, **options
            )
        return vae.eval()
    except AtomError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise AtomError(f"the autoencoder {where!r} cannot be opened: {reason}") from None


def open_file(path: Path, dtype: torch.dtype, family: str) -> Any:
    """The autoencoder in a single file, in the original names or in diffusers'."""
    header = read_header(path)
    prefix = next((p for p in VAE_PREFIXES if any(n.startswith(p) for n in header.tensors)), "")
    own = {n: n.removeprefix(prefix) for n in header.tensors if n.startswith(prefix)}
    if not {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= set(own.values()):
        raise AtomError(f"{path.name!r} holds no autoencoder")
    if any(name.startswith("encoder.down_blocks.") for name in own.values()):
        return open_renamed(path, own, dtype, family)
    names = {old: VAE_PREFIXES[0] + new for old, new in own.items()}
    entries = {new: header.tensors[old] for old, new in names.items()}
    lone = Checkpoint(
        path=path,
        family=FAMILIES[family],
        inpainting=False,
        prediction_type="epsilon",
        because="",
        zero_snr=False,
        dtype=dtype,
        part_bytes={"vae": sum(entry.bytes for entry in entries.values())},
        bare=False,
        header=Header(entries, header.metadata, header.length),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_configs(lone, folder, ("vae",))
        check_shapes(lone, "vae", build("vae", folder), find_part(lone, "vae"))
        with safe_open(path, framework="pt") as file:
            tensors = {new: file.get_tensor(old) for old, new in names.items()}
        return convert("vae", tensors, folder, dtype)


def open_renamed(path: Path, own: dict[str, str], dtype: torch.dtype, family: str) -> Any:
    """A lone autoencoder in diffusers' names, with the family's configuration."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    table = read_table(CONFIGS / family / "vae" / "config.json")
    with safe_open(path, framework="pt") as file:
        tensors = {new: file.get_tensor(old) for old, new in own.items()}
    levels = {name.split(".")[2] for name in tensors if name.startswith("encoder.down_blocks.")}
    first = "encoder.down_blocks.{}.resnets.0.conv1.weight"
    table["block_out_channels"] = [len(tensors[first.format(k)]) for k in sorted(levels)]
    kind: Any = AutoencoderKL
    vae = kind.from_config(table).to(dtype)
    vae.load_state_dict(tensors)
    return vae
