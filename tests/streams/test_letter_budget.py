"""The dead letters of an hour are bounded in number and bytes; the rest is counted, and named by the diagnosis."""

from __future__ import annotations

from typing import Any

import pytest

from ports.log import Record
from streams.dead_letters import decode_dead_letter
from streams.letter_budget import HOUR_SECONDS, NOT_KEPT, LetterBudget, Room
from streams.transport.partition.dead_letters import DeadLetterTopic
from tests.streams.fakes import HandClock


def counted(code: str) -> float:
    value: float = NOT_KEPT.labels(code)._value.get()
    return value


def test_letters_above_the_number_of_an_hour_are_counted_until_the_next_hour() -> None:
    # specification 19.7
    clock, before = HandClock(), counted("boom")
    budget = LetterBudget(clock, most=3, most_bytes=1000)
    assert [budget.take("boom", 1) for _ in range(5)] == [Room.WHOLE] * 3 + [Room.NONE] * 2
    assert budget.shortage == "2 dead letters of this hour were not written, being more than 3"
    assert counted("boom") - before == 2
    clock.seconds += HOUR_SECONDS
    assert (budget.shortage, budget.take("boom", 1)) == ("", Room.WHOLE)


def test_letters_above_the_bytes_of_an_hour_only_refer_to_their_origin() -> None:
    # specification 19.7
    budget = LetterBudget(HandClock(), most=100, most_bytes=10)
    assert [budget.take("boom", size) for size in (6, 6, 4, 1)] == [
        Room.WHOLE,
        Room.REFERENCE,
        Room.WHOLE,
        Room.REFERENCE,
    ]


@pytest.mark.parametrize("headers", [(), (("big", b"x" * 5000),)])
def test_a_letter_without_room_leaves_value_and_large_headers_at_the_origin(headers: Any) -> None:
    record = Record("t.commands", 2, 7, 0, b"key", b"value", headers)
    letters = DeadLetterTopic("t.deadletters", 3, LetterBudget(HandClock(), most=1, most_bytes=3))
    made = letters.letter(record, "boom", "it broke")
    assert made is not None
    found = decode_dead_letter(made.key, made.value, made.headers)
    assert (found.origin, found.code, found.size, found.value, found.headers) == (
        "t.commands/2/7",
        "boom",
        5,
        None,
        (),
    )
    assert letters.letter(record, "boom", "it broke") is None
