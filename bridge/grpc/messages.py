"""Builds the gRPC messages of ceremonies, histories and dead letters."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.dead_letters import DeadLetterDetails, Replay
from bridge.grpc.redaction import CleanBytes, encoded
from ports.redaction import Redactor
from streams import dead_letters
from streams.api import DeadLetterEntry
from streams.envelope import iso
from tables.definition import Definition, Gate
from tables.instance import CeremonyStatus, Instance, gate_message
from tables.open_gates import open_gate_steps, open_human_guards

# Messages of one answer together.
LARGEST_ANSWER_BYTES = 3 * 1024 * 1024
# Messages of a list that are made before other calls get the event loop.
MESSAGES_PER_PIECE = 25


def as_many_as_fit(messages: Iterable[Any], largest: int = LARGEST_ANSWER_BYTES) -> list[Any]:
    """The first messages that fit into `largest` bytes together; at least one, so that no page is empty."""
    taken: list[Any] = []
    size = 0
    for message in messages:
        size += message.ByteSize() + 8
        if taken and size > largest:
            break
        taken.append(message)
    return taken


def encoded_pieces(
    messages: Iterable[Any], redactor: Redactor, largest: int = LARGEST_ANSWER_BYTES
) -> Generator[None, None, list[CleanBytes]]:
    """`as_many_as_fit`, encoded; yields after each piece of the work."""
    taken: list[CleanBytes] = []
    size = 0
    for message in messages:
        data = encoded(message, redactor)
        size += len(data) + 8
        if taken and size > largest:
            break
        taken.append(data)
        if len(taken) % MESSAGES_PER_PIECE == 0:
            yield
    return taken


def json_text(value: Any) -> str:
    """JSON with sorted keys, the format of step outputs."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def ceremony(
    instance: Instance,
    definition: Definition | None,
    waiting_for: Sequence[str],
    position: tuple[int, int] | None = None,
) -> pb.PlanningCeremonyInstance:
    """The message of a ceremony. Completed steps have outputs, and so do gates that are open or were rejected."""
    steps = instance.steps
    return pb.PlanningCeremonyInstance(
        instance_id=instance.instance_id,
        ceremony_id=instance.ceremony_id,
        story_id=instance.story_id,
        definition_name=instance.definition_name,
        current_state=instance.state,
        status=instance.status,
        correlation_id=instance.correlation_id,
        step_status={step_id: state.status for step_id, state in steps.items()},
        step_outputs={step_id: json_text(state.output) for step_id, state in steps.items() if state.output is not None},
        created_at=iso(instance.created_at),
        updated_at=iso(instance.updated_at),
        definition_hash=instance.definition_hash,
        version=instance.version,
        position=None if position is None else pb.LogPosition(partition=position[0], offset=position[1]),
        open_gates=[] if definition is None else list(open_gates(instance, definition)),
        step_attempts={step_id: state.attempt for step_id, state in steps.items() if state.attempt},
        error_code=instance.error_code,
        error_message=instance.error_message,
        step_errors={
            step_id: f"{state.error_code}: {state.error_message}"
            for step_id, state in steps.items()
            if state.error_code
        },
        waiting_for=waiting_for,
    )


def open_gates(instance: Instance, definition: Definition) -> Iterator[pb.OpenGate]:
    """Open gate steps, then the unsatisfied human guards of transitions that leave the current state."""
    for step in open_gate_steps(instance, definition):
        if step.gate is not None:
            yield _gate_step(instance, step.id, step.gate)
    visit = instance.visits.get(instance.state, 0)
    for guard in open_human_guards(instance, definition):
        yield pb.OpenGate(guard=guard.name, role=guard.role or "", message=guard.check, visit=visit, quorum=1)


def _gate_step(instance: Instance, step_id: str, gate: Gate) -> pb.OpenGate:
    state = instance.steps[step_id]
    deadline = instance.timers.get(f"gate/{step_id}")
    running = deadline is not None and instance.status is not CeremonyStatus.PAUSED
    return pb.OpenGate(
        step_id=step_id,
        role=gate.role,
        message=gate_message(state, gate.message),
        visit=instance.visits.get(instance.state, 0),
        approvals=len(state.approvals),
        quorum=gate.quorum,
        deadline=iso(deadline.due) if deadline is not None and running else "",
    )


def dead_letter(letter: DeadLetterEntry | dead_letters.DeadLetterRecord) -> pb.DeadLetter:
    return pb.DeadLetter(
        origin=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        code=letter.code,
        message=letter.message,
        timestamp=iso(letter.timestamp),
        size=letter.size,
        key=(letter.key or b"").decode(errors="backslashreplace"),
    )


def dead_letter_details(found: DeadLetterDetails) -> pb.ShowDeadLetterResponse:
    letter = found.letter
    return pb.ShowDeadLetterResponse(
        dead_letter=dead_letter(letter),
        headers=[pb.RecordHeader(name=name, value=value) for name, value in letter.headers],
        body=found.body,
        body_from=found.body_from,
        replays=map(replay, found.replays),
    )


def replay(done: Replay) -> pb.Replay:
    return pb.Replay(
        at=iso(done.at),
        actor=done.entry.actor,
        reason=done.entry.reason,
        request_id=done.entry.request_id,
        sent_to=done.sent_to,
    )
