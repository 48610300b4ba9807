"""A schedule reads what it writes, holds what it says, and refuses the rest in one sentence."""

import pytest

from sdatoms import AtomError
from sdatoms.atoms.schedules import Piece, Schedule, parse_schedule


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("0.7", [0.7] * 10),
        ("0.0 until 0.2, then 1", [0, 0] + [1] * 8),
        ("0 UNTIL .2 then 1 until 0.5, then -0.5", [0, 0, 1, 1, 1] + [-0.5] * 5),
        ("1 until 0.3, 0", [1] * 3 + [0] * 7),
        ("0 to 1 until 0.5, then 1", [0, 0.2, 0.4, 0.6, 0.8] + [1] * 5),
        ("1 until 1", [1] * 10),
    ],
)
def test_steps_have_the_factor_of_their_piece(text, factors):
    schedule = parse_schedule(text)
    assert [schedule.at(k / 10) for k in range(10)] == pytest.approx(factors, abs=1e-15)
    assert parse_schedule(str(schedule)) == schedule


def test_what_is_written_is_read_to_the_bit():
    pieces = (Piece(1 / 3, 2 / 3, 1 / 7), Piece(-1e-5, -1e-5, 0.9), Piece(0.1 + 0.2, 0, 1.0))
    assert parse_schedule(str(Schedule(pieces))).pieces == pieces
    assert Schedule(pieces).peak == 2 / 3
    assert parse_schedule("0.3").at(0.123) == 0.3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no piece"),
        ("a", "is no piece"),
        ("1; 2", "is no piece"),
        ("nan", "is no piece"),
        ("0 until 0.2", "ends at 0.2; say what follows"),
        ("0, then 1", "does not say until when"),
        ("0 until 0.5, then 1 until 0.4, then 1", "ends rise"),
        ("0 until 0, then 1", "ends rise"),
        ("0 until 2, then 1", "ends rise"),
        ("0 until 1, then 1", "ends rise"),
        ("1e9", "goes from"),
        ("1, " * 900, "characters"),
        (" until ".join("1" * 3), "is no piece"),
        ("".join(f"1 until {k / 64}, " for k in range(1, 64)) + "1", "pieces"),
    ],
)
def test_what_is_no_schedule_is_refused_in_one_sentence(text, said):
    with pytest.raises(AtomError, match=said) as caught:
        parse_schedule(text)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
