"""Whatever a program sends to an endpoint, the answer is a result or a sentence, never nothing."""

import json
import math
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import gradio as gr
import orjson
import pytest
from gradio.data_classes import FileData
from sdatoms_app.shared.values import check_values, clean_answer

from sdatoms import AtomError

pytestmark = pytest.mark.filterwarnings("default")  # gradio's own warnings
ENDPOINTS = Path(__file__).parents[2] / "app_endpoints.json"
FILE = {"path": "x.png", "meta": {"_type": "gradio.FileData"}}
HUGE = 10**400
RIGHT = {str: "x", int: 1, float: 1.0, bool: True, list: [], dict: {}, FileData: FILE, Any: 1}
WRONG = {
    str: (5, 1.5, True, None, ["a"], {"a": 1}, "\ud800"),
    int: ("5", "abc", 1.5, math.nan, math.inf, HUGE, -HUGE, 10**18, True, None, [1], {}),
    float: ("5", "x", math.nan, -math.inf, HUGE, True, None, [1.0], {"a": 1.0}),
    bool: ("true", 1, 0.0, None, []),
    list: ("x", 5, None, {"0": "x"}),
    dict: ("x", 5, None, [1], [["a", 1]]),
    FileData: ("x.png", 5, None, {}, {"path": "x.png"}, {"path": "x", "meta": 5}, [FILE]),
    Any: ("\ud800", ["\udfff"], {"a": {"\ud800": 1}}),
}


def read_kind(kind):
    """Kind, kinds inside it, and whether it may be missing."""
    optional = get_origin(kind) in (Union, UnionType)
    if optional:
        kind = next(inner for inner in get_args(kind) if inner is not NoneType)
    return get_origin(kind) or kind, get_args(kind), optional


def list_wrong(kind):
    """Values that are not of an annotated kind, or hold one that is not of the kind inside it."""
    kind, inner, optional = read_kind(kind)
    yield from (value for value in WRONG[kind] if not (optional and value is None))
    if kind is list:
        yield from ([value] for value in list_wrong(inner[0]))
    if kind is dict:
        yield from ({"a": value} for value in list_wrong(inner[1]))
        yield {"\ud800": RIGHT[read_kind(inner[1])[0]]}


def test_every_endpoint_refuses_values_of_the_wrong_kind_by_name(endpoints):
    assert set(endpoints) == set(json.loads(ENDPOINTS.read_text(encoding="utf-8")))
    tried = 0
    for name, endpoint in endpoints.items():
        kinds = get_type_hints(endpoint)
        kinds = {key: kinds[key] for key in kinds if key not in ("return", "request")}
        right = {key: RIGHT[read_kind(kind)[0]] for key, kind in kinds.items()}
        for parameter, kind in kinds.items():
            for value in list_wrong(kind):
                with pytest.raises(gr.Error) as caught:
                    endpoint(**(right | {parameter: value}))
                said = caught.value.message
                named = rf"(a name in )?{parameter}\b.* is .*(; it takes |, which holds bytes)"
                assert re.fullmatch(f"{named}.*", said) and len(said) < 200, (name, value, said)
                said.encode()
                tried += 1
    assert tried > 300


def ask(a: str, b: float = 1.0, c: int = 0, d: dict[str, list[int]] | None = None) -> None:
    """An endpoint."""


def test_values_that_fit_come_as_the_signature_has_them():
    given = check_values(ask, ["x", 2, 3.0], {"d": {"k": [1.0, 2]}}).arguments
    assert given == {"a": "x", "b": 2.0, "c": 3, "d": {"k": [1, 2]}}
    assert type(given["b"]) is float and type(given["c"]) is int and type(given["d"]["k"][0]) is int
    assert check_values(ask, ["x"], {"d": None}).arguments == {"a": "x", "d": None}


def test_a_refusal_says_where_in_a_value_it_is():
    with pytest.raises(AtomError, match=r"^d\['k'\]\[1\] is 'y'; it takes a whole number"):
        check_values(ask, ["x"], {"d": {"k": [1, "y"]}})


@pytest.mark.parametrize(
    "value", ["a\ud800b", {"\ud800": ["\udfff", ("\ud800", 1)]}, [2**63, -(10**400)], {"a": 1.5}]
)
def test_every_answer_is_one_that_json_holds(value):
    assert orjson.dumps(clean_answer(value))
    assert clean_answer({"a": [1, True, None, "x", 2**63 - 1]}) == {
        "a": [1, True, None, "x", 2**63 - 1]
    }
