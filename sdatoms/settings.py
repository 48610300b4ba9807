"""Flags and settings files from one dataclass, whose names, types, defaults and texts they take."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import reprlib
import textwrap
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from sdatoms.errors import AtomError, clip, first_line, is_finite
from sdatoms.storage import decode_text

__all__ = [
    "add_flags",
    "build_config",
    "check_values",
    "list_flags",
    "parse_config_file",
    "quote_value",
    "read_config_file",
    "read_field_help",
    "unwrap",
]

T = TypeVar("T")
TRUTHS = {"yes": True, "on": True, "no": False, "off": False}
"""Words that YAML files say for a truth."""
REPLACED = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp", "value")}
WORD = 64
"""Bits that a whole number of any setting fits into."""


def list_flags(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag of a parser and of its subcommands."""
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= list_flags(child)
    return found


def read_field_help(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def add_flags(
    parser: argparse.ArgumentParser, cls: type, flags: Mapping[str, str] | None = None
) -> None:
    """One flag a field; a flag that is not given is absent from the parsed namespace.

    Args:
        flags: flag → field, for some of the fields under names of the command's own; None takes all
            under theirs.
    """
    hints, texts = get_type_hints(cls), read_field_help(cls)
    known = {field.name: field for field in fields(cls)}
    for flag, name in (flags or dict(zip(known, known, strict=True))).items():
        field = known[name]
        kind = unwrap(hints[field.name])
        shown = "" if field.default in (None, "", (), MISSING) else f" (default: {field.default})"
        options: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": (texts.get(field.name, "") + shown).replace("%", "%%"),
        }
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        elif get_origin(kind) is tuple:
            options |= {"nargs": "+", "metavar": "TEXT"}
        else:
            options["type"] = kind
            options["metavar"] = {int: "N", float: "X"}.get(kind, "TEXT")
        parser.add_argument(f"--{flag}", **options)


def unwrap(hint: Any) -> Any:
    """`X | None` → `X`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(a for a in get_args(hint) if a is not type(None))
    return hint


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings from a `.toml`, `.yaml`, `.yml` or `.json` file.

    Raises:
        AtomError: the file is missing, of another kind, cannot be parsed, or holds no table.
    """
    values = parse_config_file(path)
    if not isinstance(values, dict):
        raise AtomError(f"the config file {path.name!r} holds no table of settings")
    return values


def parse_config_file(path: Path) -> Any:
    """Whatever such a file holds.

    Raises:
        AtomError: the file is missing, of another kind, or cannot be parsed.
    """
    parsers = {
        ".toml": tomllib.loads,
        ".yaml": read_yaml,
        ".yml": read_yaml,
        ".json": read_json,
    }
    if path.suffix not in parsers:
        raise AtomError(f"the config file {path.name!r} is no {', '.join(parsers)} file")
    try:
        return parsers[path.suffix](decode_text(path.read_bytes())[0])
    except OSError as error:
        raise AtomError(f"the config file {str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise AtomError(
            f"the config file {path.name!r} cannot be parsed: {first_line(error)}"
        ) from None
    except (AttributeError, LookupError, TypeError):  # PyYAML of `!!bool maybe` and the like
        raise AtomError(
            f"the config file {path.name!r} cannot be parsed: a value does not fit its !!tag"
        ) from None


def read_json(text: str) -> Any:
    """JSON in which no table names a key twice."""
    return json.loads(text, object_pairs_hook=fill_table)


def fill_table(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A table of these keys and values.

    Raises:
        ValueError: a key stands there twice.
    """
    table: dict[Any, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"{key!r} stands there twice")
        table[key] = value
    return table


class PlainLoader(yaml.SafeLoader):
    """YAML 1.2's scalars, of which PyYAML knows 1.1's: `1e-4` is a number, `010` is ten and `0o10`
    eight, `no`, `off` and dates are texts; and no table names a key twice."""

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0 if text.startswith(("0o", "0x")) else 10)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        plain = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        fill_table((key.value, None) for key in plain if key.value != "<<")
        return super().construct_mapping(node, deep=deep)


PlainLoader.yaml_implicit_resolvers = {
    mark: [(tag, pattern) for tag, pattern in resolvers if tag not in REPLACED]
    for mark, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    list("-+0123456789"),
)
PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_whole)
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    return yaml.load(text, PlainLoader)


def quote_value(value: Any) -> str:
    """A value of any kind and size, as a message quotes it."""
    try:
        return clip(reprlib.repr(value) if isinstance(value, dict | list) else repr(value))
    except (ValueError, RecursionError):  # Python writes out no number of thousands of digits
        return "too long to be shown"


def build_config(cls: type[T], values: dict[str, Any], where: str) -> T:
    """An instance of dataclass `cls`; as `check_values`."""
    return cls(**check_values(cls, values, where))


def check_values(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values as the fields of dataclass `cls` take them; those that say nothing are left out.

    Raises:
        AtomError: a key is unknown, whose nearest known one is named, or a value is of another
            type.
    """
    named: Any = fields(cls)  # pyright: ignore[reportArgumentType]
    hints = get_type_hints(cls)
    known = {field.name: unwrap(hints[field.name]) for field in named}
    # Nothing, where something has to be, is the default.
    values = {
        key: value
        for key, value in values.items()
        if value is not None or key not in known or type(None) in get_args(hints[key])
    }
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(key, known, 1) if isinstance(key, str) else []
            raise AtomError(
                f"{where} has an unknown setting {quote_value(key)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        kind = known[key]
        if value is None or get_origin(kind) is Literal:
            continue
        if get_origin(kind) is tuple:
            words = [value] if isinstance(value, str) else value
            if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
                raise AtomError(
                    f"{where}: {key} is {quote_value(value)} where a list of texts fits"
                )
            values = values | {key: tuple(words)}
            continue
        if kind is bool and isinstance(value, str) and value.lower() in TRUTHS:
            values = values | {key: TRUTHS[value.lower()]}
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            if not is_finite(value):
                raise AtomError(f"{where}: {key} is {quote_value(value)}, which no float holds")
            values = values | {key: float(value)}
        elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise AtomError(f"{where}: {key} is {quote_value(value)} where {kind.__name__} fits")
        elif isinstance(value, int) and value.bit_length() > WORD:
            raise AtomError(f"{where}: {key} is {quote_value(value)}, more than any setting takes")
    return values
