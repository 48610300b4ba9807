"""Whether settings are of the kinds that their dataclass says, where nothing has read them."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from sdatoms.errors import AtomError
from sdatoms.settings import quote_value, unwrap

__all__ = ["check_kinds"]

KINDS: dict[Any, tuple[Any, str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "True or False"),
}


def check_kinds(config: Any) -> None:
    """Refuse settings of another kind, such as a text where a number fits.

    Raises:
        AtomError: names the setting, what came and what fits.
    """
    for name, hint in get_type_hints(type(config)).items():
        value, kind = getattr(config, name), unwrap(hint)
        if value is None and NoneType in get_args(hint):
            continue
        if get_origin(kind) is tuple:
            right = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
            fits = "a tuple of texts"
        elif kind in KINDS:
            known, fits = KINDS[kind]
            right = isinstance(value, known) and (kind is bool or not isinstance(value, bool))
        else:
            continue
        if not right:
            raise AtomError(f"--{name} is {quote_value(value)}; it takes {fits}")
