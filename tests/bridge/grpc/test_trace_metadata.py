"""The trace in gRPC metadata: read from a caller as far as the standard allows, and sent to the Ray executor."""

from __future__ import annotations

import pytest

from bridge.grpc.metadata import trace_in, trace_metadata

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ([("x-correlation-id", "c"), ("traceparent", f" {TRACE} ")], TRACE),
        ([("traceparent", f"cc{TRACE[2:]}-more")], TRACE),  # a later version, kept as the version that we speak
        ([("traceparent", "00-1-2-01"), ("traceparent", TRACE)], TRACE),
        ([("traceparent", "00-1-2-01")], ""),
        ([("traceparent", TRACE.encode())], ""),
        ([], ""),
    ],
)
def test_a_trace_is_read_from_the_metadata_of_a_call(metadata: list[tuple[str, str | bytes]], found: str) -> None:
    # specification 31.1
    assert trace_in(metadata) == found


def test_only_a_trace_goes_into_the_metadata_of_a_call() -> None:
    assert trace_metadata(TRACE) == (("traceparent", TRACE),)
    assert trace_metadata("") == trace_metadata("two\r\nlines") == ()
