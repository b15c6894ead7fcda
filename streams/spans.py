"""The spans of a folded batch: of ceremonies, attempts, answers of agents and operations of people.

They are read from rows and effects after the fold, so the fold knows nothing of them. All ids are derived: a batch that
is folded again after a crash gives the same spans with the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import structlog

from ports.log import Record
from ports.provenance import TRACEPARENT
from ports.spans import SpanKind, SpanSink, TraceSpan
from ports.traces import TraceContext, parse_traceparent
from streams.folded import Folded
from streams.log_clock import LogClock
from streams.tracing import Tracing
from tables.commands import AgentResult, AnyCommand
from tables.effects import Event
from tables.fold.step_life import STEP_EXECUTED, STEP_RETRYING
from tables.instance import CeremonyStatus, Instance, StepStatus

log = structlog.get_logger(__name__)

_OPENED, _COMPLETED = StepStatus.WAITING_FOR_HUMAN.value, StepStatus.COMPLETED.value


class FoldedSpans:
    """Makes the spans of batches and hands them to the exporter."""

    def __init__(self, sink: SpanSink, tracing: Tracing, log_clock: LogClock) -> None:
        self._sink = sink
        self._tracing = tracing
        self._log_clock = log_clock

    def write(self, batch: Sequence[Folded]) -> None:
        """Export the spans of one batch. It is folded already, so an error is only logged."""
        try:
            for folded in batch:
                if self._sink.has_room() and (spans := list(self._of(folded))):
                    self._sink.export(spans)
        except MemoryError:
            raise
        except Exception:
            log.exception("spans_failed")

    def _of(self, folded: Folded) -> Iterator[TraceSpan]:
        before, row = folded.before, folded.after
        if row is None or row is before or row.expired:
            return
        root = self._tracing.root(row)
        if not root.sampled:
            return
        if folded.record is not None and folded.command is not None:
            yield from self._of_command(folded.command, folded.record, row, root)
        for effect in folded.effects:
            if isinstance(effect, Event) and effect.subject in (STEP_EXECUTED, STEP_RETRYING):
                yield from self._of_attempt(effect, folded, row, root)
        if row.ended_at and (before is None or row.ended_at != before.ended_at):
            yield self._of_ceremony(row, root)

    def _of_ceremony(self, row: Instance, root: TraceContext) -> TraceSpan:
        """The ceremony from its start to its end. A ceremony that was reopened has it again, with a later end."""
        return TraceSpan(
            f"ceremony {row.definition_name}",
            SpanKind.SERVER,
            root,
            parse_traceparent(row.traceparent),
            row.created_at,
            row.ended_at,
            {
                **_attributes(row),
                "ceremony.id": row.ceremony_id,
                "ceremony.story_id": row.story_id,
                "ceremony.definition_hash": row.definition_hash,
                "ceremony.status": row.status.value,
            },
            error_code="" if row.status is CeremonyStatus.COMPLETED else row.error_code or row.status.value.lower(),
        )

    def _of_attempt(self, event: Event, folded: Folded, row: Instance, root: TraceContext) -> Iterator[TraceSpan]:
        """One attempt from its start to its end; that of a gate is the time in which people were awaited."""
        payload = event.payload
        step_id, attempt, status = payload["step_id"], payload["attempt"], payload.get("status", "RETRYING")
        if status == _OPENED:
            return
        step = None if folded.definition is None else folded.definition.steps.get(step_id)
        yield TraceSpan(
            f"step {step_id}",
            SpanKind.INTERNAL,
            self._tracing.attempt(row, step_id, attempt),
            root,
            folded.began(step_id, attempt) or event.at,
            event.at,
            {
                **_attributes(row),
                "ceremony.state": payload.get("current_state", row.state),
                "ceremony.step": step_id,
                "ceremony.attempt": attempt,
                "ceremony.handler": "" if step is None else step.handler,
                "ceremony.status": status,
            },
            [self._tracing.attempt(row, step_id, attempt - 1)] if attempt > 1 else (),
            "" if status == _COMPLETED else payload.get("error_code") or status.lower(),
        )

    def _of_command(
        self, command: AnyCommand, record: Record, row: Instance, root: TraceContext
    ) -> Iterator[TraceSpan]:
        """An agent's answer, or an operation of a client, from its append until it is folded."""
        more: dict[str, str | int] = {}
        sent = parse_traceparent(dict(record.headers).get(TRACEPARENT, b"").decode(errors="replace"))
        if isinstance(command, AgentResult):
            parent = self._tracing.attempt(row, command.step_id, command.attempt)
            name, kind, at = f"answer of {command.agent_id}", SpanKind.CONSUMER, parent
            context = parent.child(f"answer/{command.agent_id}")
            more = {"ceremony.step": command.step_id, "ceremony.attempt": command.attempt}
        elif command.expects_answer:
            name, kind, at = type(command).__name__, SpanKind.SERVER, root
            context = root.child(f"command/{command.command_id}")
        else:
            return
        is_ours = sent is not None and sent.trace_id == root.trace_id
        end = max(record.timestamp, self._log_clock.now())
        links = [sent] if sent is not None and not is_ours else ()
        yield TraceSpan(
            name, kind, context, sent if is_ours else at, record.timestamp, end, {**_attributes(row), **more}, links
        )


def _attributes(row: Instance) -> dict[str, str | int]:
    return {
        "ceremony.instance": row.instance_id,
        "ceremony.definition": row.definition_name,
        "ceremony.correlation_id": row.correlation_id,
    }
