"""Marks of the effects that are sent: notes, and skipping."""

from __future__ import annotations

import pytest

from bridge.nats.progress import FOLDS_KEPT, SentMarks, place_of
from streams import topics


def record(offset: int, ordinal: int = 0, fold: int = 1) -> dict[str, bytes]:
    """Headers of a record with this place."""
    return {
        topics.FOLD: b"%d" % fold,
        topics.COMMAND_OFFSET: b"%d" % offset,
        topics.ORDINAL: b"%d" % ordinal,
    }


def test_places_up_to_the_highest_of_their_fold_were_sent() -> None:
    """A new fold starts without marks: after an upgrade an effect may be sent twice, but is never lost."""
    # specification 16.7, 24.2
    marks = SentMarks()
    assert [marks.already_sent(record(*place)) for place in ((3, 0), (3, 1), (3, 0), (2, 9), (4, 0))] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert not marks.already_sent(record(1, fold=2))


def test_a_note_keeps_the_marks() -> None:
    marks = SentMarks()
    for fold in range(FOLDS_KEPT + 5):
        marks.already_sent(record(10 + fold, 2, fold))
    again = SentMarks.from_note(marks.note)
    assert again.already_sent(record(10 + FOLDS_KEPT, 2, FOLDS_KEPT))
    assert not again.already_sent(record(11 + FOLDS_KEPT, 0, FOLDS_KEPT))
    assert not again.already_sent(record(10, 2, 0)), "folds that old are not kept"
    assert len(marks.note) < 4096


def test_a_copy_is_independent() -> None:
    marks = SentMarks()
    marks.copy().already_sent(record(1))
    assert not marks.already_sent(record(1))


@pytest.mark.parametrize("note", ["", "junk", '{"a": 1}', "[]", '{"1": [1]}'])
def test_a_note_in_another_format_is_ignored(note: str) -> None:
    assert not SentMarks.from_note(note).already_sent(record(0))


@pytest.mark.parametrize("value", [b"", b"-1", b"x", b"9" * 30])
def test_a_record_without_a_place_is_never_skipped(value: bytes) -> None:
    one = record(1) | {topics.COMMAND_OFFSET: value}
    assert place_of(one) is None
    marks = SentMarks()
    assert not marks.already_sent(one) and not marks.already_sent(one)
