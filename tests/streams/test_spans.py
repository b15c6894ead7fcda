"""Spans of folded batches: one for each attempt, with links to the attempts before, and the same after a crash."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from ports.provenance import TRACEPARENT
from ports.spans import SpanKind, TraceSpan
from ports.traces import parse_traceparent
from streams.spans import FoldedSpans
from streams.tracing import Tracing
from tables.commands import AnyCommand, Cancel, PutDefinition, StepOutcome, TimerFired
from tables.definitions.loader import load
from tests.streams.fakes import command_record
from tests.streams.test_ceremony_agent import KINDS, TEXT, Partition, start

TEXT_WITH_RETRY = TEXT.replace(
    "aggregation_type: list}", "aggregation_type: list}, retry: {max_attempts: 3, backoff_seconds: 1}"
)
DEFINITION = load(TEXT_WITH_RETRY, "probe.yaml", KINDS)
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"
BEGAN = 1_700_000_000_000


class Kept:
    """A sink that keeps all spans."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.spans: list[TraceSpan] = []
        self._sampled = sampled

    def sampled(self, _: str) -> bool:
        return self._sampled

    def has_room(self) -> bool:
        return True

    def export(self, spans: Sequence[TraceSpan]) -> None:
        self.spans += spans


def outcome(attempt: int, result: str, code: str = "") -> StepOutcome:
    return StepOutcome(
        instance_id="c1:s1", step_id="one", attempt=attempt, outcome=result, output=[1], size=3, error_code=code
    )


def played(commands: Sequence[AnyCommand], sink: Kept, *, headers: Sequence[tuple[str, bytes]] = ()) -> list[TraceSpan]:
    """Fold commands, one a second, and return the spans; the definition is there."""
    partition = Partition()
    partition.fold(command_record(0, PutDefinition(hash=DEFINITION.hash, text=DEFINITION.text)))
    spans = FoldedSpans(sink, Tracing(sink.sampled), partition.log_clock)
    for number, command in enumerate(commands, 1):
        # the fake adds the offset to the time
        record = command_record(number, command, BEGAN + 999 * number)._replace(headers=tuple(headers))
        spans.write(partition.fold(record).note.folded)
    return sink.spans


def begin(traceparent: str = "") -> AnyCommand:
    return start("c1", definition_hash=DEFINITION.hash, traceparent=traceparent)


def retried() -> list[AnyCommand]:
    return [
        begin(CALLER),
        outcome(1, "failed", "broken"),
        TimerFired(instance_id="c1:s1", timer_id="retry/one", attempt=1),
        outcome(2, "completed"),
    ]


def test_each_attempt_is_a_span_and_a_retry_is_linked_to_the_attempt_before() -> None:
    # specification 31.4
    first, second, root = played(retried(), Kept())
    assert [span.name for span in (first, second, root)] == ["step one", "step one", "ceremony probe"]
    assert (first.attributes["ceremony.status"], first.error_code) == ("RETRYING", "broken")
    assert (second.attributes["ceremony.status"], second.error_code) == ("COMPLETED", "")
    assert (first.links, second.links) == ((), [first.context])
    assert first.parent == second.parent == root.context
    assert root.parent == parse_traceparent(CALLER)
    assert [(span.start, span.end) for span in (first, second, root)] == [
        (BEGAN + 1000, BEGAN + 2000),
        (BEGAN + 3000, BEGAN + 4000),
        (BEGAN + 1000, BEGAN + 4000),
    ]


def test_a_batch_that_is_folded_again_gives_the_same_spans() -> None:
    # specification 31.3, 31.6
    once, again = played(retried(), Kept()), played(retried(), Kept())
    assert once == again
    assert len({span.context.span_id for span in once}) == len(once)


def test_a_repeated_command_gives_no_span() -> None:
    done = retried()
    assert played([*done, done[-1]], Kept()) == played(done, Kept())


def test_a_trace_that_is_not_sampled_has_no_spans() -> None:
    """The caller decides, and without one the sampler."""
    unsampled = [begin(CALLER[:-2] + "00"), *retried()[1:]]
    assert played(unsampled, Kept()) == []
    assert played([begin(), *retried()[1:]], Kept(sampled=False)) == []
    assert len(played(retried(), Kept(sampled=False))) == 3


def test_an_operation_of_a_client_in_another_trace_is_linked_to_it() -> None:
    # specification 31.5
    cancel = Cancel(instance_id="c1:s1", command_id="mine", actor="otto")
    spans = played([begin(CALLER), cancel], Kept(), headers=[(TRACEPARENT, OTHER.encode())])
    operation, attempt, root = spans
    assert (operation.name, operation.kind, operation.parent) == ("Cancel", SpanKind.SERVER, root.context)
    assert operation.links == [parse_traceparent(OTHER)]
    assert (attempt.error_code, root.error_code) == ("cancelled", "cancelled")


def test_an_error_of_the_exporter_is_logged_and_harms_nothing() -> None:
    class Broken(Kept):
        def export(self, spans: Sequence[TraceSpan]) -> None:
            raise RuntimeError("no exporter")

    with structlog.testing.capture_logs() as lines:
        assert played(retried(), Broken()) == []
    assert "spans_failed" in {line["event"] for line in lines}
