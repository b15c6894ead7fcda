"""Trace contexts: read from the caller, else derived from the ceremony, and passed on by records."""

from __future__ import annotations

import pytest

from ports.provenance import DEFINITION, TRACEPARENT
from ports.traces import TraceContext, derived_context, parse_traceparent
from streams.tracing import Tracing
from tables.instance import Instance
from tests.streams.fakes import command_record
from tests.streams.test_ceremony_agent import Partition, start

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = f"00-{TRACE}-{SPAN}-01"


def row(traceparent: str = "") -> Instance:
    partition = Partition()
    partition.begin()
    partition.fold(command_record(1, start("c1", traceparent=traceparent)))
    found: Instance = partition.row("c1")
    return found


@pytest.mark.parametrize(
    ("text", "sampled"),
    [(CALLER, True), (CALLER[:-2] + "00", False), (CALLER[:-2] + "03", True), (f"cc-{TRACE}-{SPAN}-01-more", True)],
)
def test_a_valid_traceparent_is_read(text: str, *, sampled: bool) -> None:
    """A later version may have more fields; only the flag `sampled` is known."""
    assert parse_traceparent(text) == TraceContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        CALLER.upper(),
        CALLER + "\n",
        CALLER + "-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 512,
    ],
)
def test_a_malformed_traceparent_is_ignored(text: str) -> None:
    # specification 31.1
    assert parse_traceparent(text) is None


def test_the_row_keeps_the_trace_of_the_caller() -> None:
    # specification 31.1
    assert row(CALLER).traceparent == CALLER
    assert row("x" * 1000).traceparent == "x" * 55  # only a forged command; it is no trace


def test_without_spans_of_its_own_a_worker_passes_on_the_trace_of_the_caller() -> None:
    # specification 31.2
    tracing = Tracing()
    assert tracing.root(row(CALLER)).traceparent == CALLER
    assert tracing.attempt(row(CALLER), "one", 1).traceparent == CALLER
    derived = tracing.root(row())
    assert derived == derived_context("c1:s1", row().created_at, sampled=False)
    assert tracing.root(row("x" * 55)) == derived


def test_a_worker_with_spans_passes_on_its_own_in_the_trace_of_the_caller() -> None:
    tracing = Tracing(lambda _: False)
    root, attempt = tracing.root(row(CALLER)), tracing.attempt(row(CALLER), "one", 1)
    assert (root.trace_id, root.sampled) == (attempt.trace_id, attempt.sampled) == (TRACE, True)
    spans = {SPAN, root.span_id, attempt.span_id, tracing.attempt(row(CALLER), "one", 2).span_id}
    assert len(spans) == 4


def test_ids_are_the_same_in_every_worker_and_sampling_follows_the_trace() -> None:
    # specification 31.3
    one, other = Tracing(lambda _: True), Tracing(lambda _: False)
    assert one.root(row())[:2] == other.root(row())[:2]
    assert one.root(row()).sampled and not other.root(row()).sampled
    assert one.attempt(row(), "one", 1)[:2] == other.attempt(row(), "one", 1)[:2]


def test_events_and_requests_carry_definition_and_trace() -> None:
    batch = Partition().begin("c1")
    assert {sent.topic for sent in batch.sent} == {"t.events", "t.steps.aggregation"}
    for sent in batch.sent:
        headers = dict(sent.headers)
        assert headers[DEFINITION] == b"probe"
        assert parse_traceparent(headers[TRACEPARENT].decode()) is not None


def test_a_start_that_was_refused_without_a_row_belongs_to_no_trace() -> None:
    partition = Partition()
    partition.begin()
    batch = partition.fold(command_record(1, start("c1", requested_by=" ")))
    (refused,) = batch.sent
    headers = dict(refused.headers)
    assert headers[DEFINITION] == b"probe" and TRACEPARENT not in headers
