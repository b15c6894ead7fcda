"""A world whose worker exports its spans into memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bridge.otel.exporter import OtelSpans
from ceremony import build
from ceremony.version import VERSION
from tests.e2e.world import INPUTS, World


@asynccontextmanager
async def traced_world(folder: Path, exporter: InMemorySpanExporter, **options: Any) -> AsyncIterator[World]:
    """A world; `exporter` has every span once it has ended."""

    def made(_settings: Any, redactor: Any, clock: Any) -> OtelSpans:
        return OtelSpans(redactor, clock, VERSION, exporter)

    with mock.patch.object(build, "span_exporter", made):
        async with World(folder, f"sqlite://{folder / 'log.db'}", **options) as world:
            yield world


async def start_traced(world: World, definition: str, ceremony_id: str, traceparent: str) -> str:
    """Start a ceremony as a caller does that is in a trace."""
    inputs = {name: str(value) for name, value in INPUTS[definition].items()}
    request = pb.StartPlanningCeremonyRequest(
        ceremony_id=ceremony_id, story_id="S1", definition_name=definition, requested_by="anna", inputs=inputs
    )
    answer = await world.stub.StartPlanningCeremony(request, metadata=(("traceparent", traceparent),))
    return str(answer.instance_id)


def span_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def parent_id(span: ReadableSpan) -> str:
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})
