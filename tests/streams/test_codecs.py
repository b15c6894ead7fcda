"""The envelope, the records of `events` and dead letters, byte for byte."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from ports.log import Record
from streams import codecs, topics
from streams.transport.partition.dead_letters import dead_letter
from tables.effects import Event

EVENT = Event(
    id="c-1:s-1/3/0@1",
    subject="ceremony.transition.applied",
    instance_id="c-1:s-1",
    correlation_id="corr-1",
    at=1_769_860_800_007,
    payload={"instance_id": "c-1:s-1", "from_state": "A", "to_state": "B", "trigger": "go"},
)


def test_an_envelope_has_exactly_the_fields_of_the_contract() -> None:
    """No field more or less; `causation_id` only when set; metadata is an empty object."""
    # specification 16.1
    data = json.loads(codecs.envelope("ceremony.started", {"a": 1}, "key", "corr", 1_769_860_800_007))
    assert data == {
        "event_type": "ceremony.started",
        "payload": {"a": 1},
        "idempotency_key": "key",
        "correlation_id": "corr",
        "timestamp": "2026-01-31T12:00:00.007Z",
        "producer": "ceremony-engine",
        "metadata": {},
    }
    caused = json.loads(codecs.envelope("ceremony.started", {}, "key", "corr", "2026-01-31T12:00:00Z", "cause"))
    assert caused["causation_id"] == "cause"
    assert caused["timestamp"] == "2026-01-31T12:00:00Z"


@pytest.mark.parametrize("empty", ["event_type", "key", "correlation_id"])
def test_an_empty_mandatory_field_is_refused_by_name(empty: str) -> None:
    """A bug of the caller is named, and never published."""
    given = {"event_type": "e", "key": "k", "correlation_id": "c"} | {empty: ""}
    with pytest.raises(codecs.EnvelopeInvalid, match="idempotency_key" if empty == "key" else empty):
        codecs.envelope(given["event_type"], {}, given["key"], given["correlation_id"], 0)


def test_what_an_event_says_beside_its_payload_is_the_envelopes_metadata() -> None:
    # specification 13.11, 16.1
    who = {"actor": "ana", "role": "PO", "reason": "größer"}
    told = json.loads(codecs.event_record(replace(EVENT, metadata=who), 41, 2, 1)[1])
    untold = json.loads(codecs.event_record(EVENT, 41, 2, 1)[1])
    assert (told["metadata"], untold["metadata"]) == (who, {})
    assert told | {"metadata": {}} == untold


def test_an_event_record_carries_the_finished_envelope_and_what_the_bridge_reads() -> None:
    """Key: the instance, whose order holds. Headers: subject, id, correlation, and how far a partition was sent."""
    key, value, headers = codecs.event_record(EVENT, command_offset=41, ordinal=2, fold=1)
    assert key == b"c-1:s-1"
    envelope = json.loads(value)
    assert envelope["idempotency_key"] == "c-1:s-1/3/0@1"
    assert envelope["event_type"] == "ceremony.transition.applied"
    assert envelope["timestamp"] == "2026-01-31T12:00:00.007Z"
    assert dict(headers) == {
        topics.SUBJECT: b"ceremony.transition.applied",
        topics.EFFECT_ID: b"c-1:s-1/3/0@1",
        topics.CORRELATION_ID: b"corr-1",
        topics.FOLD: b"1",
        topics.COMMAND_OFFSET: b"41",
        topics.ORDINAL: b"2",
    }


@pytest.mark.parametrize(("size", "kept"), [(10, True), (256 * 1024, True), (256 * 1024 + 1, False)])
def test_a_dead_letter_keeps_its_value_up_to_256_kib(size: int, *, kept: bool) -> None:
    """Above it there is the size, and the origin says where to find the value."""
    # specification 19.2
    key, value, headers = codecs.dead_letter_record(
        "AGENT_RESPONSES", 0, 17, "envelope_invalid", "no", key=b"k", value=b"x" * size, headers=[("subject", b"s")]
    )
    letter = codecs.decode_dead_letter(key, value, headers, 5)
    assert (letter.topic, letter.partition, letter.offset) == ("AGENT_RESPONSES", 0, 17)
    assert (letter.code, letter.message, letter.timestamp, letter.size) == ("envelope_invalid", "no", 5, size)
    assert letter.value == (b"x" * size if kept else None)
    assert letter.headers == (("subject", b"s"),)


def test_a_dead_letter_of_the_transport_is_read_alike() -> None:
    """Agents' batches and bridges write the same form."""
    record = Record("t.commands", 3, 9, 1, b"key", b"y" * 300_000, [(topics.CORRELATION_ID, b"corr")])
    out = dead_letter(record, "command_undecodable", "why")
    letter = codecs.decode_dead_letter(out.key, out.value, out.headers)
    assert (letter.origin, letter.code, letter.size, letter.value) == (
        "t.commands/3/9",
        "command_undecodable",
        300_000,
        None,
    )


def test_the_announcement_of_a_dead_letter_is_keyed_by_its_origin() -> None:
    """So it is stored once, however often it is announced."""
    # specification 16.3, 19.3
    letter = codecs.decode_dead_letter(
        *codecs.dead_letter_record("S", 0, 4, "c", "m", key=None, value=b"1", headers=[]), 1000
    )
    key, data = codecs.dead_letter_event(letter)
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
    """It may show what nobody outside should see."""
    # specification 19.3
    encoded = codecs.dead_letter_record("t.commands", 0, 4, "fold_failed", message, key=None, value=b"1")
    _, data = codecs.dead_letter_event(codecs.decode_dead_letter(*encoded, 1000))
    assert json.loads(data)["payload"]["message"] == announced


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 5000])
def test_numbers_beyond_64_bits_in_a_dead_letter_are_none(digits: str) -> None:
    """Whoever wrote them: the letter is listed and announced, and nobody trips over them."""
    headers = [(topics.ORIGIN, f"t/1/{digits}".encode()), (codecs.VALUE_SIZE, digits.encode())]
    letter = codecs.decode_dead_letter(None, b"?", headers, 0)
    assert (letter.partition, letter.offset, letter.size) == (-1, -1, 1)


def test_a_dead_letter_without_headers_is_still_read() -> None:
    """What others wrote to the topic is listed, not a crash."""
    letter = codecs.decode_dead_letter(None, b"?", [], 0)
    assert (letter.topic, letter.partition, letter.offset, letter.code) == ("unknown", -1, -1, "unknown")
