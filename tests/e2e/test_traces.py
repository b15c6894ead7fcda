"""One trace per ceremony, end to end: from the caller through the Ray executor and NATS, and back."""

from __future__ import annotations

from pathlib import Path

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tests.e2e.traces import attributes, parent_id, span_id, start_traced, trace_id, traced_world
from tests.e2e.world import World, until

TRACE, CALLER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = f"00-{TRACE}-{CALLER_SPAN}-01"


async def test_a_backlog_review_is_one_trace(tmp_path: Path) -> None:
    # specification 31.1, 31.2, 31.4, 31.5
    exporter = InMemorySpanExporter()
    async with traced_world(tmp_path, exporter) as world:
        await until(lambda: world.ok("ray_executor"), "the executor is there")
        instance_id = await start_traced(world, "backlog_review", "C-trace", CALLER)
        await world.finish(instance_id)
        await until(lambda: _completed(world, instance_id), "all events are on NATS")
        calls = {dict(request.constraints.metadata)["step_id"]: metadata for metadata, request in world.ray.calls}
        messages = await world.messages(instance_id)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    ours = list(exporter.get_finished_spans())
    assert {trace_id(span) for span in ours} == {TRACE}
    assert len({span_id(span) for span in ours}) == len(ours)

    root = spans["ceremony backlog_review"]
    assert parent_id(root) == CALLER_SPAN and root.kind is SpanKind.SERVER
    steps = [span for span in ours if span.name.startswith("step ")]
    assert len(steps) == 7
    assert {parent_id(span) for span in steps} == {span_id(root)}
    assert all(attributes(span)["ceremony.status"] == "COMPLETED" for span in steps)
    assert all((root.start_time or 0) <= (span.start_time or 0) <= (span.end_time or 0) for span in steps)

    # each call of the executor is a span below its attempt, and the executor was told that span
    tasks = [span for span in ours if span.name.startswith("ray_executor ")]
    assert {attributes(span)["ceremony.step"] for span in tasks} == calls.keys()
    for span in tasks:
        step = attributes(span)["ceremony.step"]
        assert parent_id(span) == span_id(spans[f"step {step}"])
        assert calls[step]["traceparent"] == f"00-{TRACE}-{span_id(span)}-01"
    # answers come back with the trace that the executor was given
    answers = [span for span in ours if span.name.startswith("answer of ")]
    assert len(answers) == 9
    assert {parent_id(span) for span in answers} == {span_id(span) for span in tasks}

    assert spans["GateDecision"].kind is SpanKind.SERVER and parent_id(spans["GateDecision"]) == span_id(root)
    published = spans["nats publish"]
    assert published.kind is SpanKind.PRODUCER
    for message in messages:
        is_event = message.headers["Nats-Msg-Id"].startswith(instance_id)
        sender = root if is_event else published
        assert message.headers["traceparent"] == f"00-{TRACE}-{span_id(sender)}-01"


async def _completed(world: World, instance_id: str) -> bool:
    return any(message.subject == "ceremony.completed" for message in await world.messages(instance_id))
