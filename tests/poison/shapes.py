"""Shapes of bad records that a bug, an operator or another program may write into any topic of the engine."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from bridge.dead_letters import DONE, AuditEntry
from ports.log import LARGEST_RECORD_BYTES, Header
from streams import topics
from streams.dead_letters import dead_letter_record
from streams.envelope import event_record
from streams.worker_directory import Heartbeat
from tables.commands import Cancel, encode_command
from tables.effects import FOLD, Event, StepRequested, encode_request

# Bytes of a record of the largest size that are left for the log's own additions.
ROOM = 200


class Written(NamedTuple):
    """A record to write."""

    key: bytes | None
    value: bytes
    headers: tuple[Header, ...] = ()


class Shape(NamedTuple):
    """One kind of bad record."""

    name: str
    spoil: Callable[[Written], Written]
    """Makes the bad record from a good one of the same topic."""


def good(topic: str, instance_id: str) -> Written:
    """Return a record that the readers of `topic` accept; a bad record differs from it in one thing only."""
    key = instance_id.encode()
    if topic == topics.COMMANDS:
        return Written(key, encode_command(Cancel(instance_id=instance_id, command_id="c", actor="a")))
    if topic == topics.EVENTS:
        event = Event(
            id=f"{instance_id}/1/0@{FOLD}",
            subject="ceremony.paused",
            instance_id=instance_id,
            correlation_id=instance_id,
            at=1,
            payload={"instance_id": instance_id},
        )
        # Without its place in the fold: the bridge skips events that are not above the highest place it has sent.
        found, value, headers = event_record(event, 0, 0, FOLD)
        places = {topics.FOLD, topics.COMMAND_OFFSET, topics.ORDINAL}
        return Written(found, value, tuple(one for one in headers if one[0] not in places))
    if topic == topics.DEADLETTERS:
        letter = dead_letter_record(f"of-{instance_id}", 0, 0, "unknown", "m", key=key, value=b"{}")
        return Written(letter[0], letter[1], tuple(letter[2]))
    if topic == topics.AUDIT:
        return Written(key, msgspec.json.encode(AuditEntry(DONE, "a", "r", instance_id, "t.commands", 0, 0)))
    if topic == topics.OWNERS:
        return Written(key, msgspec.json.encode(Heartbeat(instance_id, "127.0.0.1:1", [], 0)))
    request = StepRequested(
        id=f"{instance_id}/1/0@{FOLD}",
        kind=topic.removeprefix("steps."),
        instance_id=instance_id,
        step_id="s",
        attempt=1,
        visit=1,
        deadline=0,
        correlation_id=instance_id,
        body={},
    )
    return Written(key, encode_request(request))


def _value(name: str, make: Callable[[bytes], bytes]) -> Shape:
    return Shape(name, lambda record: record._replace(value=make(record.value)))


def _always(name: str, value: bytes) -> Shape:
    return _value(name, lambda _: value)


def _json(name: str, change: Callable[[dict[str, Any]], object]) -> Shape:
    def make(value: bytes) -> bytes:
        return json.dumps(change(json.loads(value))).encode()

    return _value(name, make)


# Bad as a value of any topic.
VALUES = (
    _always("empty", b""),
    _always("text", b"hello"),
    _always("null", b"null"),
    _always("true", b"true"),
    _always("number", b"17"),
    _always("string", b'"cancel"'),
    _always("array", b"[]"),
    _json("array_of_good", lambda good: [good]),
    _always("nul_bytes", bytes(64)),
    _always("all_bytes", bytes(range(256))),
    _always("xml", b"<command type='cancel'/>"),
    _always("pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00."),
    _always("msgpack", b"\x82\xa4type\xa6cancel\xabinstance_id\xa1x"),
    _always("only_a_brace", b"{"),
    _always("deep_arrays", b"[" * 200_000),
    _always("deep_objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    _always("megabyte_of_text", b"x" * 1_000_000),
    _always("largest", b"[" + b"1," * ((LARGEST_RECORD_BYTES - 4 * ROOM) // 2) + b"1]"),
    _value("cut_off", lambda value: value[: len(value) // 2]),
    _value("cut_by_one", lambda value: value[:-1]),
    _value("something_behind", lambda value: value + b"x"),
    _value("twice", lambda value: value * 2),
    _value("byte_order_mark", lambda value: b"\xef\xbb\xbf" + value),
    _value("utf_16", lambda value: value.decode().encode("utf-16")),
    _value("gzip", lambda value: gzip.compress(value, mtime=0)),
    _value("single_quotes", lambda value: value.replace(b'"', b"'")),
    _value("no_utf_8", lambda value: value.replace(b"poisoned", b"poisoned\xff")),
    _value("lone_surrogate", lambda value: value.replace(b"{", b'{"x":"\\ud800",', 1)),
    _value("not_a_number", lambda value: value.replace(b"{", b'{"x":NaN,', 1)),
    _value("comment", lambda value: b"/* a */" + value),
    _value("deep_within", lambda value: value.replace(b"{", b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b",", 1)),
)

# Bad as a command and as a step request.
FIELDS = (
    _always("empty_object", b"{}"),
    _json("unknown_type", lambda good: {**good, "type": "explode", "attempt": "one"}),
    _json("type_is_a_number", lambda good: {**good, "type": 5, "attempt": None}),
    _json("id_is_null", lambda good: {**good, "instance_id": None}),
    _json("id_is_an_object", lambda good: {**good, "instance_id": {"a": 1}}),
    _json("format_is_text", lambda good: {**good, "format": "one"}),
    _json("format_is_a_fraction", lambda good: {**good, "format": 1.5}),
    _value("number_beyond_all", lambda value: value.replace(b"{", b'{"format":1e999,', 1)),
    _value("integer_beyond_all", lambda value: value.replace(b"{", b'{"format":-1' + b"0" * 5000 + b",", 1)),
    _always("of_another_topic", b'{"event_type":"ceremony.started","payload":{},"metadata":{}}'),
)

COMMANDS = (
    Shape("key_of_another", lambda record: record._replace(key=b"another:S1")),
    Shape("no_key", lambda record: record._replace(key=None)),
    Shape("empty_key", lambda record: record._replace(key=b"")),
    Shape("key_no_utf_8", lambda record: record._replace(key=b"\xff\xfe\x00")),
    _always("put_definition_of_another_hash", b'{"type":"put_definition","hash":"abc","text":"version: 1"}'),
    _always("start_without_fields", b'{"type":"start","instance_id":"x"}'),
)
STEPS = (
    _json("body_is_text", lambda good: {**good, "body": "do it"}),
    _json("body_is_missing", lambda good: {name: value for name, value in good.items() if name != "body"}),
    _json("body_is_an_array", lambda good: {**good, "body": [[]]}),
    _json("attempt_is_missing", lambda good: {name: value for name, value in good.items() if name != "attempt"}),
)


def _bare(shape: Shape) -> Shape:
    """The same without headers: a dead letter may hold anything, but must name its origin."""
    return Shape(shape.name, lambda record: shape.spoil(record)._replace(headers=()))


def _header(name: str, header: str, value: bytes | None) -> Shape:
    def spoil(record: Written) -> Written:
        kept = tuple(one for one in record.headers if one[0] != header)
        return record._replace(headers=kept if value is None else (*kept, (header, value)))

    return Shape(name, spoil)


EVENTS = (
    _header("no_subject", topics.SUBJECT, None),
    _header("empty_subject", topics.SUBJECT, b""),
    _header("foreign_subject", topics.SUBJECT, b"$JS.API.STREAM.DELETE.CEREMONY"),
    _header("subject_with_wildcard", topics.SUBJECT, b"ceremony.>"),
    _header("subject_with_space", topics.SUBJECT, b"ceremony.a b"),
    _header("subject_with_line", topics.SUBJECT, b"ceremony.a\r\nPUB x 0\r\n"),
    _header("subject_too_long", topics.SUBJECT, b"ceremony." + b"x" * 5000),
    _header("subject_no_utf_8", topics.SUBJECT, b"ceremony.\xff"),
    _header("no_id", topics.EFFECT_ID, None),
    _header("id_no_utf_8", topics.EFFECT_ID, b"\xff\xfe"),
    _header("id_with_line", topics.EFFECT_ID, b"i\r\nNats-Rollup: all"),
    _header("id_of_two_megabytes", topics.EFFECT_ID, b"i" * 2_000_000),
    _value("too_large_for_nats", lambda value: value[:-1] + b',"x":"' + b"x" * 2_000_000 + b'"}'),
)
DEADLETTERS = (
    _header("no_origin", topics.ORIGIN, None),
    _header("origin_without_numbers", topics.ORIGIN, b"nowhere"),
    _header("origin_with_letters", topics.ORIGIN, b"t.commands/one/two"),
    _header("origin_beyond_all", topics.ORIGIN, b"t.commands/0/" + b"9" * 4000),
    _header("origin_with_other_digits", topics.ORIGIN, "t.commands/0/\u0665\u00b2".encode()),
    _header("origin_no_utf_8", topics.ORIGIN, b"\xff/0/1"),
    _header("origin_with_line", topics.ORIGIN, b"a\r\nb/0/1"),
    _header("origin_of_two_megabytes", topics.ORIGIN, b"o" * 2_000_000 + b"/0/1"),
    _header("no_code", topics.ERROR_CODE, None),
    _header("code_no_utf_8", topics.ERROR_CODE, b"\xff"),
    _header("message_no_utf_8", topics.ERROR_MESSAGE, b"\xff\n\xfe"),
    _header("message_of_two_megabytes", topics.ERROR_MESSAGE, b"m" * 2_000_000),
    _header("correlation_no_utf_8", topics.CORRELATION_ID, b"\xff"),
    _header("size_with_letters", "value-size", b"many"),
    _header("size_beyond_all", "value-size", b"9" * 4000),
)
AUDIT = (
    _always("empty_object", b"{}"),
    _json("operation_of_another", lambda good: {**good, "operation": "explode"}),
    _json("sent_elsewhere", lambda good: {**good, "topic": "elsewhere"}),
    _json("sent_to_no_partition", lambda good: {**good, "partition": 99}),
    _json("sent_before_all", lambda good: {**good, "offset": -1}),
    _json("offset_is_text", lambda good: {**good, "offset": "last"}),
    _json("actor_is_null", lambda good: {**good, "actor": None}),
)
OWNERS = (
    _always("empty_object", b"{}"),
    _json("worker_is_a_number", lambda good: {**good, "worker": 7}),
    _json("partitions_are_text", lambda good: {**good, "partitions": "all"}),
    _json("partition_is_null", lambda good: {**good, "partitions": [None]}),
    _json("generation_is_missing", lambda good: {name: value for name, value in good.items() if name != "generation"}),
)
# A dead letter about them has no room left for its own fields.
LARGE = (
    Shape(
        "key_of_the_largest_size",
        lambda record: record._replace(key=b"k" * (LARGEST_RECORD_BYTES - ROOM), value=b"", headers=()),
    ),
    Shape(
        "headers_of_the_largest_size",
        lambda record: record._replace(value=b"", headers=(("x", b"h" * (LARGEST_RECORD_BYTES - ROOM)),)),
    ),
    Shape("many_headers", lambda record: record._replace(value=b"", headers=(("x", b""),) * 20_000)),
)


def shapes(topic: str) -> tuple[Shape, ...]:
    """Return every shape of a bad record of this topic (without prefix)."""
    if topic == topics.COMMANDS:
        return (*VALUES, *FIELDS, *COMMANDS, *LARGE)
    if topic == topics.EVENTS:
        return (*VALUES, *EVENTS, *LARGE)
    if topic == topics.DEADLETTERS:
        return (*map(_bare, VALUES), *DEADLETTERS, *LARGE)
    if topic in (topics.AUDIT, topics.OWNERS):
        return (*VALUES, *(AUDIT if topic == topics.AUDIT else OWNERS), *LARGE)
    return (*VALUES, *FIELDS, *STEPS, *LARGE)
