"""The exporter of spans: what leaves, what stays, and what is imported while it is off."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from bridge.clock import HostClock
from bridge.otel.exporter import MOST_SPANS_A_SECOND, REPORT_SECONDS, STOP_SECONDS, OtelSpans
from ceremony.build import span_exporter
from ceremony.errors import SettingsInvalid
from ceremony.settings import read_settings
from ports.spans import SpanKind, TraceSpan
from ports.traces import TraceContext
from steps.secrets.redactor import TextRedactor
from tests.steps.secrets.planted import planted
from tests.streams.fakes import HandClock

ROOT = Path(__file__).parents[3]
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = TraceContext(TRACE, "b7ad6b7169203331", sampled=True)
CONTEXT = TraceContext(TRACE, "00f067aa0ba902b7", sampled=True)


def span(**more: Any) -> TraceSpan:
    fields: dict[str, Any] = {
        "name": "step one",
        "kind": SpanKind.INTERNAL,
        "context": CONTEXT,
        "parent": PARENT,
        "start": 1_700_000_000_000,
        "end": 1_700_000_001_000,
        "attributes": {"ceremony.instance": "c1:s1", "ceremony.attempt": 2},
    }
    return TraceSpan(**{**fields, **more})


async def exported(*spans: TraceSpan) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    sink = OtelSpans(TextRedactor(), HostClock(), "1.0", exporter)
    sink.export(spans)
    await sink.stop()
    return exporter.get_finished_spans()


async def test_a_span_is_exported_with_its_own_ids_and_times() -> None:
    # specification 31.4
    (found,) = await exported(span(links=[PARENT], error_code="timeout"))
    assert found.context is not None and found.parent is not None
    assert (f"{found.context.trace_id:032x}", f"{found.context.span_id:016x}") == (TRACE, CONTEXT.span_id)
    assert f"{found.parent.span_id:016x}" == PARENT.span_id
    assert (found.start_time, found.end_time) == (1_700_000_000_000_000_000, 1_700_000_001_000_000_000)
    assert dict(found.attributes or {}) == {"ceremony.instance": "c1:s1", "ceremony.attempt": 2}
    assert [f"{link.context.span_id:016x}" for link in found.links] == [PARENT.span_id]
    assert (found.status.status_code, found.status.description) == (StatusCode.ERROR, "timeout")
    assert found.resource.attributes["service.name"] == "ceremony-engine"


async def test_a_span_that_is_not_sampled_stays() -> None:
    assert await exported(span(context=CONTEXT._replace(sampled=False))) == ()


async def test_secrets_are_redacted_on_their_way_out() -> None:
    # specification 27.8
    for secret in planted():
        told = f"answer of {secret.text}"
        (found,) = await exported(span(name=told, attributes={"ceremony.correlation_id": secret.text}))
        (failed,) = await exported(span(error_code=secret.text))
        texts = [found.name, str(dict(found.attributes or {})), failed.status.description or ""]
        assert not any(secret.secret in text for text in texts), secret
        assert all("[redacted:" in text for text in texts), secret


async def test_the_sampler_is_opentelemetrys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 31.7
    assert OtelSpans(TextRedactor(), HostClock(), "1.0", InMemorySpanExporter()).sampled(TRACE)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    sink = OtelSpans(TextRedactor(), HostClock(), "1.0", InMemorySpanExporter())
    assert not sink.sampled("f" * 32) and sink.sampled("1" + "0" * 31)


async def test_more_spans_than_a_tenth_of_a_core_can_send_are_left_out_and_counted() -> None:
    # specification 31.8
    clock, exporter = HandClock(), InMemorySpanExporter()
    sink = OtelSpans(TextRedactor(), clock, "1.0", exporter)
    with structlog.testing.capture_logs() as lines:
        for _ in range(MOST_SPANS_A_SECOND // 400 + 2):
            sink.export([span()] * 400)
        assert not sink.has_room()
        clock.seconds += REPORT_SECONDS
        assert sink.has_room()
        sink.export([span()])
    await sink.stop()
    assert len(exporter.get_finished_spans()) == MOST_SPANS_A_SECOND + 1
    assert [line["times"] for line in lines if line["event"] == "spans_left_out"] == [3]


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    taken: list[tuple[str, str | None, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append((self.path, self.headers["authorization"], body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, str | None, bytes]]]]:
    taken: list[tuple[str, str | None, bytes]] = []
    server = HTTPServer(("127.0.0.1", 0), type("Taking", (Collector,), {"taken": taken}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", taken
    server.shutdown()
    thread.join()
    server.server_close()


async def test_the_standard_variables_lead_to_a_collector(
    collector: tuple[str, list[tuple[str, str | None, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # specification 31.7
    address, taken = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20mine")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    sink = span_exporter(read_settings({}), TextRedactor(), HostClock())
    assert sink is not None
    sink.export([span()])
    await sink.stop()
    ((path, authorization, body),) = taken
    assert (path, authorization) == ("/v1/traces", "Bearer mine")
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert resource.scope_spans[0].spans[0].span_id.hex() == CONTEXT.span_id


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, STOP_SECONDS),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "7"}, 7.0),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "7", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "8"}, 8.0),
    ],
)
async def test_a_request_to_a_silent_collector_lasts_no_longer_than_a_stop_unless_a_variable_says_so(
    variables: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # specification 31.7
    asked: list[float] = []

    def silent(*_: Any, timeout: float, **__: Any) -> None:
        asked.append(timeout)
        raise requests.exceptions.ReadTimeout

    monkeypatch.setattr(requests.Session, "request", silent)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4318")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    sink = OtelSpans(TextRedactor(), HostClock(), "1.0")
    sink.export([span()])
    await sink.stop()
    assert asked and all(0 < timeout <= seconds for timeout in asked)


@pytest.mark.parametrize(
    ("variables", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://otel:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_spans_are_exported_only_where_an_exporter_is_set(
    variables: dict[str, str], *, is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # specification 31.7
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read_settings({}).exports_spans is is_on


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "otel:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_an_exporter_that_cannot_work_ends_the_start(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4318")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=name):
        read_settings({})


def test_nothing_of_opentelemetry_is_imported_while_no_exporter_is_set() -> None:
    # specification 31.7
    program = (
        "import sys; from ceremony import build, worker; from ceremony.settings import read_settings;"
        "assert build.span_exporter(read_settings({}), None, None) is None;"
        "print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
