"""The envelope and the records of `events`, byte for byte."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from steps.secrets.redactor import TextRedactor
from steps.secrets.rules import RULES
from steps.secrets.search import RuleSearch
from streams import topics
from streams.envelope import (
    SEARCHED_TOGETHER_BYTES,
    EnvelopeInvalid,
    envelope,
    event_record,
    redacted_envelope,
    redacted_envelopes,
)
from tables.effects import Event
from tests.steps.secrets.planted import planted

EVENT = Event(
    id="c-1:s-1/3/0@1",
    subject="ceremony.transition.applied",
    instance_id="c-1:s-1",
    correlation_id="corr-1",
    at=1_769_860_800_007,
    payload={"instance_id": "c-1:s-1", "from_state": "A", "to_state": "B", "trigger": "go"},
)


def test_an_envelope_has_exactly_the_specified_fields() -> None:
    """`causation_id` only when it is set; metadata may be an empty object."""
    # specification 16.1
    data = json.loads(envelope("ceremony.started", {"a": 1}, "key", "corr", 1_769_860_800_007))
    assert data == {
        "event_type": "ceremony.started",
        "payload": {"a": 1},
        "idempotency_key": "key",
        "correlation_id": "corr",
        "timestamp": "2026-01-31T12:00:00.007Z",
        "producer": "ceremony-engine",
        "metadata": {},
    }
    caused = json.loads(envelope("ceremony.started", {}, "key", "corr", "2026-01-31T12:00:00Z", "cause"))
    assert caused["causation_id"] == "cause"
    assert caused["timestamp"] == "2026-01-31T12:00:00Z"


@pytest.mark.parametrize("empty", ["event_type", "key", "correlation_id"])
def test_an_empty_mandatory_field_is_refused_by_name(empty: str) -> None:
    """A bug of the caller is reported, and the envelope is never published."""
    given = {"event_type": "e", "key": "k", "correlation_id": "c"} | {empty: ""}
    with pytest.raises(EnvelopeInvalid, match="idempotency_key" if empty == "key" else empty):
        envelope(given["event_type"], {}, given["key"], given["correlation_id"], 0)


def test_the_metadata_of_an_event_is_the_metadata_of_its_envelope() -> None:
    # specification 13.11, 16.1
    metadata = {"actor": "ana", "role": "PO", "reason": "größer"}
    with_metadata = json.loads(event_record(replace(EVENT, metadata=metadata), 41, 2, 1)[1])
    without = json.loads(event_record(EVENT, 41, 2, 1)[1])
    assert (with_metadata["metadata"], without["metadata"]) == (metadata, {})
    assert with_metadata | {"metadata": {}} == without


def test_an_event_record_has_the_finished_envelope_and_the_headers_for_the_bridge() -> None:
    """Key: the instance, whose events keep their order. Headers: subject, ids, and the place among all effects."""
    key, value, headers = event_record(EVENT, command_offset=41, ordinal=2, fold=1)
    assert key == b"c-1:s-1"
    data = json.loads(value)
    assert data["idempotency_key"] == "c-1:s-1/3/0@1"
    assert data["event_type"] == "ceremony.transition.applied"
    assert data["timestamp"] == "2026-01-31T12:00:00.007Z"
    assert dict(headers) == {
        topics.SUBJECT: b"ceremony.transition.applied",
        topics.EFFECT_ID: b"c-1:s-1/3/0@1",
        topics.CORRELATION_ID: b"corr-1",
        topics.FOLD: b"1",
        topics.COMMAND_OFFSET: b"41",
        topics.ORDINAL: b"2",
    }


def test_a_redacted_envelope_keeps_its_identity_and_its_other_fields() -> None:
    # specification 27.8
    secret = next(planted()).secret
    data = envelope("a.b", {"x": [secret], "n": 2**60}, f"k/{secret}", "c", "2026", secret, {"reason": secret})
    marker = "[redacted:aws_access_key_id]"
    found = json.loads(redacted_envelope(data, TextRedactor()))
    assert found == json.loads(data) | {"payload": {"x": [marker], "n": 2**60}, "metadata": {"reason": marker}}
    assert list(found) == list(json.loads(data))


def test_a_clean_envelope_stays_the_same_bytes() -> None:
    data = envelope("a.b", {"x": "the password is secret"}, "k", "c", "2026")
    assert redacted_envelope(data, TextRedactor()) is data


@pytest.mark.parametrize(
    "form",
    [
        '{"payload": ' + "[" * 100_000 + '"%s"' + "]" * 100_000 + "}",
        '{"payload": {"n": ' + "9" * 5_000 + ', "x": "%s"}}',
        '["%s"]',
        "no JSON: %s",
    ],
    ids=["too deep", "a number of 5,000 digits", "a list", "a text"],
)
def test_bytes_that_cannot_be_decoded_as_an_object_are_redacted_as_a_text(form: str) -> None:
    secret = next(planted()).secret
    redacted = redacted_envelope((form % secret).encode(), TextRedactor())
    assert secret.encode() not in redacted and b"[redacted:" in redacted


def test_many_envelopes_are_searched_together_and_redacted_each() -> None:
    """Also across pieces: a secret in the last envelope of one, or in a lone one behind it."""
    redactor, secret = TextRedactor(), next(planted()).secret
    clean = envelope("ceremony.x", {"text": "y" * (SEARCHED_TOGETHER_BYTES // 3)}, "k", "c", 0)
    leaky = envelope("ceremony.x", {"text": secret}, "k", "c", 0)
    for sent in ([leaky], [clean, clean, clean, leaky], [clean, leaky, clean], [leaky, clean, clean, clean], []):
        redacted = redacted_envelopes(sent, redactor)
        assert len(redacted) == len(sent)
        assert not any(secret.encode() in one for one in redacted)
        assert [one for one in redacted if one is clean] == [one for one in sent if one is clean]


def test_clean_envelopes_of_a_piece_cost_one_search() -> None:
    search = RuleSearch(RULES)
    sent = [envelope("ceremony.x", {"text": f"number {number}"}, "k", "c", 0) for number in range(100)]
    redacted_envelopes(sent, TextRedactor(search))
    assert search.looked_at == len(b"\n".join(sent))
