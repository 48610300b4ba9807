"""Values from programs: of the kinds that an endpoint's signature names, or refused by name.

JSON brings any value for any parameter, and Gradio passes it on as it came. The signature is the
one place that says what fits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from gradio.data_classes import FileData
from gradio_client.utils import is_file_obj_with_meta

from sdatoms import AtomError
from sdatoms.errors import check_text, clip, is_finite, mark_bytes

__all__ = [
    "check_values",
    "clean_answer",
]

DIGITS = 18
"""Of a whole number, which a machine word then holds."""
SAID: dict[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    list: "a list",
    dict: "a table of values by name",
    FileData: "an upload; send it by gradio_client.handle_file",
}
"""Kind → what fits, as refusals say it."""


def check_values(
    endpoint: Callable[..., Any], values: Sequence[Any], named: Mapping[str, Any]
) -> inspect.BoundArguments:
    """The values of one call, each of the kind that the endpoint's signature names.

    A whole number may come as 3.0, and any number for one with a fraction; what is annotated with
    no kind of `SAID`, such as Gradio's request, is passed on.

    Raises:
        AtomError: a value is of another kind.
    """
    given, kinds = inspect.signature(endpoint).bind(*values, **named), get_type_hints(endpoint)
    for name, value in given.arguments.items():
        given.arguments[name] = check_value(value, kinds.get(name), name)
    return given


def check_value(value: Any, kind: Any, what: str) -> Any:
    """One value as its kind has it.

    Args:
        kind: an annotation.
        what: the parameter, and where in it the value stands.

    Raises:
        AtomError: it does not fit.
    """
    if get_origin(kind) in (Union, UnionType):
        known = next(inner for inner in get_args(kind) if inner is not NoneType)
        missing = value is None and NoneType in get_args(kind)
        return None if missing else check_value(value, known, what)
    inner, kind = get_args(kind), get_origin(kind) or kind
    if kind is Any:
        return check_texts(value, what)
    if kind not in SAID:
        return value
    if not fits(value, kind):
        raise AtomError(f"{what} is {clip(repr(value), 60)}; it takes {say_kind(kind, value)}")
    if kind is str:
        return check_text(value, what)
    if kind in (int, float):
        return kind(value)
    if kind is list:
        return [check_value(one, inner[0], f"{what}[{k}]") for k, one in enumerate(value)]
    if kind is dict:
        return {
            check_text(name, f"a name in {what}"): check_value(
                one, inner[1], f"{what}[{clip(name, 60)!r}]"
            )
            for name, one in value.items()
        }
    return value


def say_kind(kind: Any, value: Any) -> str:
    """What fits in place of a value that does not."""
    long = kind is int and isinstance(value, int) and not isinstance(value, bool)
    return f"{SAID[kind]} of at most {DIGITS} digits" if long else SAID[kind]


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a kind of `SAID`; truth values are no numbers."""
    if kind is FileData:
        known = isinstance(value, dict) and isinstance(value.get("meta"), dict)
        return known and is_file_obj_with_meta(value)
    if kind is int:
        return is_finite(value) and abs(value) < 10**DIGITS and value == int(value)
    return is_finite(value) if kind is float else isinstance(value, kind)


def check_texts(value: Any, what: str) -> Any:
    """A value of any kind, as it came.

    Raises:
        AtomError: a text in it holds half a character.
    """
    if isinstance(value, str):
        check_text(value, what)
    elif isinstance(value, list):
        check_value(value, list[Any], what)
    elif isinstance(value, dict):
        check_value(value, dict[str, Any], what)
    return value


def clean_answer(value: Any) -> Any:
    """What an endpoint gives, without what the JSON that Gradio writes cannot hold: halves of
    characters become question marks, whole numbers that no machine word holds texts."""
    if isinstance(value, str):
        return mark_bytes(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return str(value)
    if isinstance(value, list):
        return [clean_answer(one) for one in value]
    if type(value) is tuple:  # not one with names
        return tuple(clean_answer(one) for one in value)
    if isinstance(value, dict):
        return {clean_answer(name): clean_answer(one) for name, one in value.items()}
    return value
