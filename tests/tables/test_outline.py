"""An outline has fields of the row, decoded without the others."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from tables.errors import FormatTooNew, Undecodable
from tables.instance import (
    Instance,
    Outline,
    Timer,
    decode_instance,
    decode_outline,
    encode_instance,
    next_due,
)

ROW = decode_instance(
    b'{"instance_id": "c1:s1", "ceremony_id": "c1", "story_id": "s1", "definition_name": "d", "definition_hash": "h",'
    b' "correlation_id": "x", "requested_by": "anna", "start_digest": "y", "state": "OPEN", "status": "RUNNING",'
    b' "created_at": 5, "updated_at": 9, "timers": {"retry/a": {"due": 70, "attempt": 2}, "gate/b": {"due": 60,'
    b' "attempt": 1}}, "inputs": {"a": {"text": "long"}}}'
)


def test_an_outline_has_the_fields_of_the_row_under_their_names() -> None:
    whole, outline = get_type_hints(Instance), get_type_hints(Outline)
    assert outline.items() <= whole.items()
    read = decode_outline(encode_instance(ROW))
    assert {name: getattr(read, name) for name in outline} == {name: getattr(ROW, name) for name in outline}
    assert read.timers["retry/a"] == Timer(due=70, attempt=2)


def test_the_outline_gives_the_next_due_time_of_the_row() -> None:
    assert next_due(decode_outline(encode_instance(ROW))) == next_due(ROW) == 60


def test_bytes_that_are_no_row_have_no_outline() -> None:
    with pytest.raises(Undecodable, match="row_undecodable"):
        decode_outline(b'{"instance_id": 7}')
    with pytest.raises(FormatTooNew):
        decode_outline(encode_instance(ROW).replace(b"{", b'{"format": 99,', 1))
