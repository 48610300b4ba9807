"""`AtomConfig`: what is trained in each layer, and which numbers the budget rule may lower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

from sdatoms.errors import AtomError

__all__ = [
    "ATOM_FLAGS",
    "BLOCK_VARIANTS",
    "MOST_INNER",
    "AtomConfig",
    "Variant",
    "read_atom_flags",
]

Variant = Literal["atoms", "overcomplete", "coefficients", "full"]
Decomposition = Literal["linear", "sparse"]
BlockView = Literal["channel", "joint"]
BlockForm = Literal["map", "product", "shared"]
BlockFactors = Literal["shared", "each"]


BLOCK_VARIANTS: tuple[Variant, ...] = ("coefficients", "full")
"""Those that train block atoms."""
LOWERED = {"num_inner_atoms": 3, "block_size": 4}
"""What these numbers are where none was given; the budget rule lowers them in a layer, while a
number that was given stands."""
PRODUCT = {"block_size": 16}
"""What they are in product form."""
MOST_INNER = 4096
"""More inner atoms than the widest filter has weights are of no use."""
NOT_GIVEN: Any = None
"""Their default; `AtomConfig` turns it into the number and notes the name in `defaults`."""


@dataclass(frozen=True)
class AtomConfig:
    """What is trained in each layer. See the README's table of variants.

    `num_inner_atoms` and `block_size` always read as numbers. None in the call means that none was
    given, which `defaults` keeps: `AtomConfig()` and `AtomConfig(block_size=4)` are not equal,
    since a layer too small for the one's blocks gets smaller ones, and the other's stand.

    Raises:
        AtomError: a setting is out of its range; the sentence names it.
    """

    variant: Variant = "overcomplete"
    """Which tensors are trained; the four settings of the paper, in its order."""
    decomposition: Decomposition = "linear"
    """How coefficients are found: `linear` is exact, deterministic and stores none; `sparse` is the
    paper's sparse coding, with more atoms than filters have entries if asked; while it trains, it
    holds m/p codes for every weight."""
    num_atoms: int | None = None
    """m, atoms per spatial filter; None takes all the weight has (its rank, at most h·w; h·w with
    `sparse`)."""
    num_inner_atoms: int = NOT_GIVEN
    """m1, inner atoms behind each atom in `overcomplete` and `full`; 3 when not given, and fewer
    where the budget asks."""
    block_atoms: int | None = None
    """Atoms of the block view in `coefficients` and `full`; None takes all the weight has."""
    block_size: int = NOT_GIVEN
    """b, the side of a channel block; the largest divisor not above it is taken per side; 4 when
    not given, and less where the budget asks."""
    block_view: BlockView = "joint"
    """A convolution's block atoms are shared over kernel positions (`channel`) or hold them."""
    sparsity: float = 0.15
    """λ of `sparse`, in units of the root mean square of the weight's entries; between 0 and 1.
    A complete dictionary loses about this share of white filters. On the 3×3 filters of a trained
    ResNet-56 the default sets 22 % of the codes of 9 atoms and 41 % of 12 to zero, at an error of
    13 %: twice as much loses a quarter of the weight, a third as much hardly any code is zero."""
    target_modules: tuple[str, ...] | None = None
    """fnmatch patterns on module paths; None takes the model family's default."""
    exclude_modules: tuple[str, ...] | None = None
    """fnmatch patterns on module paths to leave out; None takes the model family's default."""
    seed: int = 0
    """Seeds the inner coefficients, and the rows that `sparse` learns its atoms from."""
    defaults: tuple[str, ...] | None = None
    """The numbers that nobody gave, which the budget rule may lower; None in the call: those not
    given in it. Kept so that a config read from a file asks for the same layers as the one that was
    saved, and handed on by `dataclasses.replace`, where a number other than the default stands."""
    block_share: float | None = None
    """In place of `block_atoms`: the share of a layer's weights that its block atoms may hold,
    above 0 and at most 1. A layer has at least one, which may hold more."""
    block_form: BlockForm = "map"
    """How `coefficients` and `full` change channel blocks: by one full map between the entries of a
    block (`map`); by a small matrix over its output channels and one over its input channels
    (`product`), which holds far fewer numbers, trains at LoRA's price and takes a `block_size` of
    16 where none is given; or by `block_atoms` atoms (4 where none is given) as long as a layer's
    rows, which all layers with inputs of that width share (`shared`) and which hold the fewest."""
    block_factors: BlockFactors = "shared"
    """With `block_form` "product", whether all blocks of a weight have one pair of factors
    (`shared`), or each row and column of blocks its own (`each`). With "shared", whether the layers
    have one encoder in common too (`shared`), or each has coefficients of its own (`each`)."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("variant", get_args(Variant)),
            ("decomposition", get_args(Decomposition)),
            ("block_view", get_args(BlockView)),
            ("block_form", get_args(BlockForm)),
            ("block_factors", get_args(BlockFactors)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise AtomError(f"AtomConfig.{name} is {value!r}; it takes {' | '.join(choices)}")
        for name in ("num_atoms", "num_inner_atoms", "block_atoms", "block_size", "seed"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if value is None and name != "seed":
                continue
            if name == "seed" and isinstance(value, int) and value >= 1 << 64:
                raise AtomError(f"AtomConfig.seed is {value}; it takes at most {(1 << 64) - 1}")
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise AtomError(
                    f"AtomConfig.{name} is {value!r}; it takes a whole number of at least {least}"
                )
            if name == "num_inner_atoms" and value > MOST_INNER:
                raise AtomError(f"AtomConfig.{name} is {value}; it takes at most {MOST_INNER}")
        number = isinstance(self.sparsity, int | float) and not isinstance(self.sparsity, bool)
        if not number or not 0 < self.sparsity < 1:
            raise AtomError(
                f"AtomConfig.sparsity is {self.sparsity!r}; it takes a number above 0 and below 1"
            )
        self._check_share()
        self._check_form()
        for name in ("target_modules", "exclude_modules", "defaults"):
            self._set(name, check_words(name, getattr(self, name)))
        if self.target_modules == ():
            raise AtomError("AtomConfig.target_modules is empty; it takes at least one pattern")
        self._fill_defaults()

    def _fill_defaults(self) -> None:
        """Give the numbers that were not given, and keep their names."""
        numbers = LOWERED | (PRODUCT if self.block_form == "product" else {})
        if self.block_form == "shared" and self.may_lower("block_size"):
            self._set("block_size", LOWERED["block_size"])  # the form has none: any other's goes
        missing = [name for name in numbers if getattr(self, name) is None]
        for name in missing:
            self._set(name, numbers[name])
        named = missing if self.defaults is None else self.defaults
        for name in named:
            if name not in LOWERED:
                raise AtomError(
                    f"AtomConfig.defaults names {name!r}; it takes {', '.join(LOWERED)}"
                )
        # dataclasses.replace hands `defaults` on beside a number of the caller's: that one stands.
        kept = [name for name, number in numbers.items() if getattr(self, name) == number]
        self._set("defaults", tuple(name for name in kept if name in named))

    def _check_form(self) -> None:
        """Refuse what a product of two factors has no place for."""
        if self.block_form == "map" and self.block_factors != "shared":
            raise AtomError(
                "AtomConfig.block_factors is 'each', which block_form 'map' has no place for"
            )
        if self.block_form == "map":
            return
        if self.decomposition == "sparse":
            raise AtomError(
                f"AtomConfig.block_form is {self.block_form!r}, which has no codes; decomposition "
                "'sparse' takes block_form 'map'"
            )
        reasons = {
            "product": dict.fromkeys(
                ("block_atoms", "block_share"), "has two factors and no atoms to count"
            ),
            "shared": {
                "block_share": "shares its atoms between layers; block_atoms says how many",
                "block_size": "has filters as long as a layer's rows; block_atoms says how many",
            },
        }
        for name, reason in reasons[self.block_form].items():
            if getattr(self, name) is not None and not self.may_lower(name):
                raise AtomError(
                    f"AtomConfig.{name} is {getattr(self, name)!r}; block_form "
                    f"{self.block_form!r} {reason}"
                )

    def _check_share(self) -> None:
        share = self.block_share
        if share is None:
            return
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 < share <= 1:
            raise AtomError(
                f"AtomConfig.block_share is {share!r}; it takes a number above 0 and at most 1"
            )
        if self.block_atoms is not None:
            raise AtomError(
                f"AtomConfig.block_atoms is {self.block_atoms} beside a block_share of {share:g}; "
                "one of them is given"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def may_lower(self, name: str) -> bool:
        """Whether the budget rule may lower the number `name`."""
        return name in (self.defaults or ())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AtomConfig:
        """The inverse of `to_dict`.

        Raises:
            AtomError: a key is unknown (named, with the nearest known one) or a value is out of
                range.
        """
        if not isinstance(values, Mapping):
            raise AtomError(f"AtomConfig is made from a table of settings, not {values!r:.80}")
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(str(key)[:80], known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
                raise AtomError(f"AtomConfig has no setting {key!r}{hint}")
        return cls(**values)


OWN_FLAGS = ("seed", "defaults", "target_modules", "exclude_modules")
"""Settings that commands spell in ways of their own, or not at all."""
ATOM_FLAGS = {
    f"atom_{field.name}" if field.name in ("variant", "decomposition") else field.name: field.name
    for field in fields(AtomConfig)
    if field.name not in OWN_FLAGS
}
"""Flag → setting of `AtomConfig`, for every command that takes settings of atoms. `--variant` is
diffusers' own: which weight files to load."""


def read_atom_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `AtomConfig` among parsed flags; those absent or None are not given."""
    found = {setting: given.get(flag) for flag, setting in ATOM_FLAGS.items()}
    return {setting: value for setting, value in found.items() if value is not None}


def check_words(name: str, value: Any) -> tuple[str, ...] | None:
    """A string or strings as a tuple."""
    if value is None:
        return None
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, tuple | list | set) or not all(isinstance(w, str) for w in words):
        raise AtomError(f"AtomConfig.{name} is {value!r}; it takes patterns on module paths")
    return tuple(words)
