"""Codes on disk, so that a sparse adapter is encoded once for a base and not at every load.

One safetensors file a weight and code book in `$XDG_CACHE_HOME/sdatoms/codes` (`~/.cache/…`), as
large as the weight in float32 times m/p: 2.2 GB for the 3×3 convolutions of Stable Diffusion 1.x
with 9 atoms. `measure_cache` says how much there is, `clear_cache` deletes it, and the environment
variable `SDATOMS_CODE_CACHE=0` switches it off; then every load and every change of strength
encodes anew. What is read is what was written, or it is encoded anew: files carry a checksum.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdatoms.atom_file import write_whole
from sdatoms.codes import CodeBook, encode_weight
from sdatoms.decompose import View
from sdatoms.fingerprint import checksum

__all__ = ["clear_cache", "fetch_codes", "find_cache", "measure_cache"]

logger = logging.getLogger(__name__)


def find_cache() -> Path | None:
    """The directory of the codes, which may not exist yet; None when the cache is switched off."""
    if os.environ.get("SDATOMS_CODE_CACHE") == "0":
        return None
    home = os.environ.get("XDG_CACHE_HOME")
    # A relative XDG_CACHE_HOME counts as none, as its specification asks.
    root = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return root / "sdatoms" / "codes"


def measure_cache() -> tuple[int, int]:
    """How many codes are kept, and their bytes."""
    sizes = [path.stat().st_size for path in list_files()]
    return len(sizes), sum(sizes)


def clear_cache() -> None:
    """Delete all kept codes."""
    for path in list_files():
        path.unlink(missing_ok=True)


def list_files() -> list[Path]:
    cache = find_cache()
    return sorted(cache.glob("*.safetensors")) if cache else []


def fetch_codes(weight: Tensor, view: View, book: CodeBook) -> Tensor:
    """`encode_weight`, from the cache where it holds the very same codes."""
    cache = find_cache()
    if cache is None:
        return encode_weight(weight, view, book)
    # Another kind of device may round otherwise: it keeps its own codes.
    facts = (checksum(weight), weight.dtype, weight.device.type, view, book.hash)
    name = hashlib.sha256(";".join(map(repr, facts)).encode()).hexdigest()
    path = cache / f"{name[:40]}.safetensors"
    codes = read_codes(path, (view.height, len(book.atoms)))
    if codes is not None:
        return codes.to(weight.device)
    codes = encode_weight(weight, view, book)
    data = save({"codes": codes.cpu().contiguous()}, {"checksum": str(checksum(codes))})
    try:
        write_whole(path, data)
        logger.info("kept %.1f MB of codes in %s", len(data) / 1e6, cache)
    except OSError as error:
        logger.warning("codes are not kept in %s: %s", cache, error.strerror or error)
    return codes


def read_codes(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The codes of that shape in the file; None where there are none, or damaged ones."""
    try:
        with safe_open(path, framework="pt") as file:
            codes, noted = file.get_tensor("codes"), (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None
    if codes.dtype != torch.float32 or codes.shape != shape or str(checksum(codes)) != noted:
        return None
    return codes
