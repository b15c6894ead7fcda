"""Records of a newer release are distinguished from broken ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tables.commands import decode_command
from tables.effects import decode_request
from tables.errors import FormatTooNew, Undecodable

DECODERS = [decode_command, decode_request]


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("value", [b'{"format": 2}', b'{"format": 9, "type": "of_tomorrow", "id": 5, "attempt": "a"}'])
def test_a_newer_record_is_never_taken_for_a_broken_one(decode: Callable[[bytes], Any], value: bytes) -> None:
    # specification 24.1
    with pytest.raises(FormatTooNew, match="format_too_new"):
        decode(value)


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b'{"format": 1}',
        b'{"format": "2"}',
        b'{"format": 1.5}',
        b'{"format": -1}',
        b"[" * 100_000,
        b'{"type": "noop", "id": "\xff", "instance_id": "\xff"}',
        b'{"type": "\\ud800"}',
    ],
)
def test_a_broken_record_is_undecodable_and_nothing_else(decode: Callable[[bytes], Any], value: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(value)
