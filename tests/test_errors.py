"""One line of ours about whatever text and errors came in."""

import pytest

from sdatoms import AtomError
from sdatoms.errors import clip, first_line
from sdatoms.settings import read_config_file


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such file\nTraceback follows"), "no such file"),
        (ValueError("\n\n  after empty lines  \nmore"), "after empty lines"),
        (OSError(), "OSError"),
        (RuntimeError(" \n\t\n"), "RuntimeError"),
        (ValueError("a\x1b[31mred\x07"), "a [31mred "),
    ],
)
def test_the_first_line_of_an_error_is_one_line_and_never_empty(error, line):
    assert first_line(error) == line


def test_long_lines_are_cut():
    assert first_line(ValueError("x" * 1000)) == "x" * 199 + "…"
    assert clip("y" * 121) == "y" * 119 + "…"


@pytest.mark.parametrize("name", ["a.toml", "a.json", "a.yaml"])
def test_a_config_file_that_cannot_be_parsed_is_named_in_one_line(tmp_path, name):
    (tmp_path / name).write_text("[: {\n\t-")
    with pytest.raises(AtomError, match=name) as caught:
        read_config_file(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
