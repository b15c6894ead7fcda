"""The way of an event is timed from the append of its command until JetStream has it."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from bridge.nats import hops
from ports.log import Record
from streams.envelope import envelope

COMMAND_MS = 1_700_000_000_000


def record(value: bytes | None, timestamp: int = COMMAND_MS + 40) -> Record:
    return Record("c.events", 0, 7, timestamp, b"k", value)


def told() -> dict[str, tuple[float, float]]:
    found = {}
    for hop in ("fold", "nats", "whole"):
        count = REGISTRY.get_sample_value("ceremony_hop_seconds_count", {"hop": hop}) or 0
        total = REGISTRY.get_sample_value("ceremony_hop_seconds_sum", {"hop": hop}) or 0
        found[hop] = count, total
    return found


def test_each_hop_is_counted_for_all_events_of_a_turn() -> None:
    # specification 29.3
    event = envelope("ceremony.started", {"timestamp": "not this one"}, "k", "c", COMMAND_MS)
    before = told()
    hops.observe(record(event), 5, COMMAND_MS + 100)
    after = told()
    assert {hop: after[hop][0] - before[hop][0] for hop in after} == {"fold": 5, "nats": 5, "whole": 5}
    seconds = {hop: after[hop][1] - before[hop][1] for hop in after}
    assert seconds == pytest.approx({"fold": 5 * 0.04, "nats": 5 * 0.06, "whole": 5 * 0.1}, rel=1e-3)


@pytest.mark.parametrize("value", [None, b"", b"[]", b'{"timestamp": 7}', b'{"timestamp": "soon"}', b"\xff", b"{}"])
def test_a_record_that_is_no_event_is_not_timed(value: bytes | None) -> None:
    before = told()
    hops.observe(record(value), 5, COMMAND_MS)
    assert told() == before


def test_clocks_that_differ_never_make_a_duration_below_zero() -> None:
    before = told()
    hops.observe(record(envelope("ceremony.started", {}, "k", "c", COMMAND_MS)), 1, COMMAND_MS - 5000)
    after = told()
    assert after["whole"] == (before["whole"][0] + 1, before["whole"][1])
