"""Settings files: YAML 1.2's scalars, and values of any kind and size end in one sentence."""

import json
from dataclasses import dataclass

import pytest

from sdatoms import AtomError
from sdatoms.settings import build_config, parse_config_file, quote_value, read_config_file


@dataclass(frozen=True)
class Settings:
    count: int = 1
    rate: float = 1.0
    name: str = ""
    words: tuple[str, ...] = ()


@pytest.fixture
def read(tmp_path):
    """What a file of this name and text holds."""

    def parse(text, name="own.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return parse_config_file(tmp_path / name)

    return parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0100", 100), ("08", 8), ("-010", -10), ("+7", 7), ("0", 0), ("00", 0)),
        *(("0o17", 15), ("0x1F", 31), ("0b11", "0b11"), ("1_000", "1_000"), ("1:30", "1:30")),
        *(("1e-4", 1e-4), ("010.5", 10.5), (".5", 0.5), ("-.inf", float("-inf"))),
        *(("no", "no"), ("off", "off"), ("true", True), ("~", None), ("", None)),
        *(("2024-01-02", "2024-01-02"), ("2024-13-99", "2024-13-99"), ("=", "=")),
        *(("!!int 010", 10), ("!!str 010", "010"), ("'010'", "010")),
    ],
)
def test_scalars_are_those_of_yaml_1_2(read, text, value):
    found = read(f"key: {text}")["key"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    "text",
    [
        *("!!bool maybe", "!!int x", "!!float x", '!!float ""', "!!timestamp x", "!!null [1]"),
        *("!!python/object:os.system x", "!!binary é", "!!set [1]", "[", "*none", "&a [*a"),
    ],
)
def test_what_is_no_yaml_is_refused_in_a_sentence(read, text):
    with pytest.raises(AtomError, match=r"'own.yaml' cannot be parsed: .") as error:
        read(f"key: {text}")
    assert "\n" not in str(error.value)


HUGE = "0x" + "F" * 6000
"""A whole number that Python does not write out."""


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", f"count = {HUGE}", "count is too long to be shown, more than any"),
        ("a.toml", f"rate = {HUGE}", "rate is too long to be shown, which no float holds"),
        ("a.toml", f"name = {HUGE}", "name is too long to be shown where str fits"),
        ("a.toml", f"words = [{HUGE}]", "words is too long to be shown where a list of texts"),
        ("a.yaml", f"? {HUGE}\n: 1", "unknown setting too long to be shown"),
        ("a.json", json.dumps({"count": 10**400}), "count is 1000.*…, more than any"),
        ("a.json", json.dumps({"rate": 10**400}), "rate is 1000.*…, which no float holds"),
        ("a.json", json.dumps({"count": 1 << 64}), "more than any setting takes"),
        ("a.json", json.dumps({"name": ["x" * 999] * 999}), r"name is \['xxx"),
        ("a.yaml", "count: &a [1, *a]", r"count is \[1, \[1"),
    ],
)
def test_values_of_any_size_are_refused_in_a_short_sentence(read, tmp_path, name, text, words):
    read(text, name)
    with pytest.raises(AtomError, match=words) as error:
        build_config(Settings, read_config_file(tmp_path / name), f"the file {name!r}")
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_lists_that_hold_each_other_many_times_are_quoted_in_short():
    held = ["x"]
    for _ in range(40):
        held = [held] * 9
    assert len(quote_value(held)) < 200


def test_whole_numbers_fit_where_a_float_does():
    assert build_config(Settings, {"rate": 10**30, "count": 2**64 - 1}, "x").rate == 1e30
