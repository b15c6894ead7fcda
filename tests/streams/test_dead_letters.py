"""Dead letters: written, read back and announced, byte for byte."""

from __future__ import annotations

import json

import pytest

from ports.log import Record
from streams import dead_letters, topics
from streams.transport.partition.dead_letters import dead_letter


@pytest.mark.parametrize(("size", "kept"), [(10, True), (256 * 1024, True), (256 * 1024 + 1, False)])
def test_a_dead_letter_keeps_its_value_up_to_256_kib(size: int, *, kept: bool) -> None:
    """Above that it has the size, and the value is found at the origin."""
    # specification 19.2
    key, value, headers = dead_letters.dead_letter_record(
        "AGENT_RESPONSES", 0, 17, "envelope_invalid", "no", key=b"k", value=b"x" * size, headers=[("subject", b"s")]
    )
    letter = dead_letters.decode_dead_letter(key, value, headers, 5)
    assert (letter.topic, letter.partition, letter.offset) == ("AGENT_RESPONSES", 0, 17)
    assert (letter.code, letter.message, letter.timestamp, letter.size) == ("envelope_invalid", "no", 5, size)
    assert letter.value == (b"x" * size if kept else None)
    assert letter.headers == (("subject", b"s"),)


def test_a_dead_letter_of_the_transport_is_read_in_the_same_way() -> None:
    """Batches of agents and bridges write the same format."""
    record = Record("t.commands", 3, 9, 1, b"key", b"y" * 300_000, [(topics.CORRELATION_ID, b"corr")])
    out = dead_letter(record, "command_undecodable", "why")
    letter = dead_letters.decode_dead_letter(out.key, out.value, out.headers)
    assert (letter.origin, letter.code, letter.size, letter.value) == (
        "t.commands/3/9",
        "command_undecodable",
        300_000,
        None,
    )


def test_the_key_of_an_announcement_is_the_origin_of_its_dead_letter() -> None:
    """So JetStream stores it once, however often it is announced."""
    # specification 16.3, 19.3
    letter = dead_letters.decode_dead_letter(
        *dead_letters.dead_letter_record("S", 0, 4, "c", "m", key=None, value=b"1", headers=[]), 1000
    )
    key, data = dead_letters.dead_letter_event(letter)
    assert key == "deadletter/S/0/4"
    envelope = json.loads(data)
    assert envelope["event_type"] == "ceremony.deadletter"
    assert envelope["correlation_id"] == key
    assert envelope["payload"] == {"origin": "S", "partition": 0, "offset": 4, "code": "c", "message": "m", "size": 1}


@pytest.mark.parametrize(
    ("message", "announced"),
    [
        ("the record has no value", "the record has no value"),
        ("x" * 600, "x" * 500),
        ("Traceback (most recent call last):\n  File\nValueError: secret", "the details are with the dead letter"),
        ("", "the details are with the dead letter"),
    ],
)
def test_a_traceback_stays_with_the_dead_letter(message: str, announced: str) -> None:
    """It may show internal values, so it is not announced."""
    # specification 19.3
    encoded = dead_letters.dead_letter_record("t.commands", 0, 4, "fold_failed", message, key=None, value=b"1")
    _, data = dead_letters.dead_letter_event(dead_letters.decode_dead_letter(*encoded, 1000))
    assert json.loads(data)["payload"]["message"] == announced


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 5000])
def test_numbers_beyond_64_bits_in_a_dead_letter_are_ignored(digits: str) -> None:
    """Another program may write them; the letter is listed and announced all the same."""
    headers = [(topics.ORIGIN, f"t/1/{digits}".encode()), (dead_letters.VALUE_SIZE, digits.encode())]
    letter = dead_letters.decode_dead_letter(None, b"?", headers, 0)
    assert (letter.partition, letter.offset, letter.size) == (-1, -1, 1)


def test_a_dead_letter_without_headers_is_still_read() -> None:
    """Records of other programs in the topic are listed and cause no failure."""
    letter = dead_letters.decode_dead_letter(None, b"?", [], 0)
    assert (letter.topic, letter.partition, letter.offset, letter.code) == ("unknown", -1, -1, "unknown")
