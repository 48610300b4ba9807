r"""Codes of a weight against stored atoms: the coefficients `A` of the sparse decomposition.

    ΔX = A ΔD,  A = C diag(c),  C = argmin ½‖X − C D‖² + λ‖C‖₁

Codes are as large as the weight (n·m numbers), so no file and no state dict holds them: whoever has
the weight, the atoms D and λ finds them again, without random numbers.

Scale: `c_a = ‖X‖_F / (√(m·p) ‖C_a‖)` gives every column of A the norm that the columns of the
linear decomposition have. An RMS of r in ΔD is then a relative weight change `‖ΔW‖/‖W‖` of exactly
r when it lies in one atom, and of r on average over its directions otherwise (columns of A are not
orthogonal). Atoms that hardly any filter uses are not blown up: norms below a tenth of the RMS over
the columns count as that tenth, and such atoms move the weight by less than r.

Cache: codes are kept on disk, so that a sparse adapter is encoded once for a base and not at every
load. It is one safetensors file a weight and code book in `$XDG_CACHE_HOME/sdatoms/codes`
(`~/.cache/…`), as large as the weight in float32 times m/p: 2.2 GB for the 3×3 convolutions of
Stable Diffusion 1.x with 9 atoms. `measure_cache` says how much there is, `clear_cache` deletes it,
and the environment variable `SDATOMS_CODE_CACHE=0` switches it off; then every load and every
change of strength encodes anew. What is read is what was written, or it is encoded anew: files
carry a checksum.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdatoms.atoms.decompose import View
from sdatoms.atoms.sparse import Solver, encode_rows, learn_atoms, measure_penalty
from sdatoms.errors import AtomError
from sdatoms.fingerprint import checksum
from sdatoms.storage import write_whole

__all__ = [
    "OVERCOMPLETE",
    "CodeBook",
    "Codes",
    "clear_cache",
    "encode_weight",
    "fetch_codes",
    "find_cache",
    "fit_codes",
    "measure_cache",
    "unit_atoms",
]

OVERCOMPLETE = 8
"""The most atoms a column of a view: codes hold at most this many numbers for each weight."""
RARE = 0.1
"""Share of the RMS column norm below which an atom counts as rare."""


@dataclass(frozen=True, eq=False)
class CodeBook:
    """The atoms of one view of one layer, and all that decides the codes beside the weight."""

    atoms: Tensor
    """D `(m, p)` with unit-norm rows."""
    penalty: float
    """λ, in units of the weight."""
    solver: Solver = field(default_factory=Solver)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all of it: equal for two books only if they code every weight alike."""
        atoms = self.atoms.detach().to("cpu", torch.float32).contiguous()
        facts = f"{tuple(atoms.shape)};{self.penalty!r};{self.solver!r};"
        return hashlib.sha256(facts.encode() + atoms.numpy().tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Codes:
    """A code book and the codes of one weight."""

    book: CodeBook
    values: Tensor
    """A `(n, m)`, float32, scaled."""


def fit_codes(
    weight: Tensor, view: View, num_atoms: int, sparsity: float, seed: int
) -> tuple[Codes, float]:
    """Learn at most `num_atoms` atoms for a weight; its codes, and `‖X − C D‖/‖X‖`.

    Raises:
        AtomError: the weight is zero or not finite, or λ leaves no code.
    """
    rows = view.rows(weight.detach().float())
    atoms = learn_atoms(rows, num_atoms, sparsity, seed=seed)
    book = CodeBook(atoms, measure_penalty(rows, sparsity))
    codes = encode_rows(rows, atoms, book.penalty, book.solver)
    missed = sum(
        float((part - code @ atoms).square().sum(dtype=torch.float64))
        for part, code in zip(rows.split(1 << 16), codes.split(1 << 16), strict=True)
    )
    whole = float(torch.linalg.vector_norm(rows, dtype=torch.float64))
    return Codes(book, scale_codes(codes, rows)), missed**0.5 / whole


def encode_weight(weight: Tensor, view: View, book: CodeBook) -> Tensor:
    """The scaled codes `A (n, m)` of a weight, float32, on its device.

    Raises:
        AtomError: λ leaves no code.
    """
    rows = view.rows(weight.detach().float())
    codes = encode_rows(rows, book.atoms, book.penalty, book.solver)
    return scale_codes(codes, rows)


def scale_codes(codes: Tensor, rows: Tensor) -> Tensor:
    """Bring the columns to the norm `‖X‖_F/√(m·p)`, in place; see the module's text on rare atoms.

    Raises:
        AtomError: all codes are zero.
    """
    norms = torch.linalg.vector_norm(codes, dim=0, dtype=torch.float64)
    typical = norms.square().mean().sqrt()
    if not typical > 0:
        raise AtomError("its filters are too small for the atoms' sparsity: every code is zero")
    aim = torch.linalg.vector_norm(rows, dtype=torch.float64)
    aim = aim / (codes.shape[1] * rows.shape[1]) ** 0.5
    return codes.mul_((aim / norms.clamp(min=RARE * typical)).float())


def unit_atoms(atoms: Tensor) -> bool:
    """Whether the atoms have unit norms, up to the rounding of 16 bits."""
    norms = torch.linalg.vector_norm(atoms.float(), dim=1)
    return bool((norms - 1).abs().max() <= 1e-2)


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
    codes = read_kept(path, (view.height, len(book.atoms)))
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


def read_kept(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The codes of that shape in the file; None where there are none, or damaged ones."""
    try:
        with safe_open(path, framework="pt") as file:
            codes, noted = file.get_tensor("codes"), (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None
    if codes.dtype != torch.float32 or codes.shape != shape or str(checksum(codes)) != noted:
        return None
    return codes
