"""The script of the outside world for one ceremony: a client starts it, agents answer or do not, a person decides.

Each scene begins at the next tick of the log's clock, and ends when its result is durable and everything is at rest. So
the order of events in the world does not depend on the time of a death.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from bridge.grpc.start_request import start_pieces
from bridge.nats.response_messages import BACKLOG_REVIEW, COMPLETED, FAILED, TASK_EXTRACTION
from bridge.nats.responses import DURABLE
from bridge.nats.streams import AGENT_RESPONSES
from steps.registry import all_kinds
from streams.api import Reply, Unavailable
from streams.topics import CEREMONIES, COMMANDS, DEADLETTERS, EVENTS, STEP_KINDS, prefixed, step_topic
from tables.commands import GateDecision, StepOutcome, decode_command
from tables.definition import Definition
from tables.definitions.loader import load
from tables.instance import CeremonyStatus, Instance, Phase, StepStatus, decode_instance
from tests.crash.process import GROUP, PREFIX, Process, Surroundings
from tests.pieces import in_one_go

INSTANCE = "c1:s1"
KEY = INSTANCE.encode()
# Longest scene, including crashes and a long outage. After an hour the log's clock would show them.
PATIENCE_SECONDS = 1800.0
TASK = "ceremony-c1:story-s1:{subject}:step-{step}:attempt-{attempt}"
REVIEW = "role-ARCHITECT"

Call = Callable[[Process], Awaitable[Reply]]


@dataclass(frozen=True)
class Scene:
    """One action of the world, and the durable result of the engine's reaction."""

    name: str
    leads_to: Callable[[Surroundings], bool]
    does: Callable[[Surroundings], None] = lambda _: None
    call: Call | None = None
    """A client's call, repeated with the same id until it is answered."""
    ticks: int = 1
    """Ticks of the log's clock since the beginning of the scene before."""


@cache
def definition() -> Definition:
    path = Path(__file__).with_name("crash.yaml")
    return load(path.read_text(), path.name, all_kinds())


def row(around: Surroundings) -> Instance | None:
    """The ceremony's row in the changelog."""
    encoded = around.broker.rows[CEREMONIES, around.broker.partitions - 1].get(KEY)
    return None if encoded is None else _decoded(encoded)


# Called at every step of every play, a hundred times with the same row.
_decoded = lru_cache(maxsize=16)(decode_instance)


def at_rest(around: Surroundings) -> bool:
    """True if every record of the log is folded, served, published and committed, and every message acknowledged."""
    broker = around.broker
    for number in range(broker.partitions):
        commands = prefixed(PREFIX, COMMANDS)
        position = broker.positions.get((commands, number))
        if (position.next if position else 0) != broker.end(commands, number):
            return False
        for kind in STEP_KINDS:
            topic = prefixed(PREFIX, step_topic(kind))
            if broker.committed.get((GROUP, topic, number), 0) != broker.end(topic, number):
                return False
        for name in (EVENTS, DEADLETTERS):
            topic, group = prefixed(PREFIX, name), prefixed(PREFIX, f"nats-out.{name}")
            if broker.committed.get((group, topic, number), 0) != broker.end(topic, number):
                return False
    durable = around.nats.durables.get((AGENT_RESPONSES, DURABLE))
    return durable is not None and durable.settled


def _step(around: Surroundings, step: str, attempt: int, phase: Phase) -> bool:
    found = row(around)
    if found is None:
        return False
    state = found.steps[step]
    return (state.attempt, state.phase) == (attempt, phase)


def submitted(step: str, attempt: int) -> Callable[[Surroundings], bool]:
    return lambda around: _step(around, step, attempt, Phase.SUBMITTED)


def backing_off(step: str, attempt: int) -> Callable[[Surroundings], bool]:
    return lambda around: _step(around, step, attempt, Phase.BACKOFF)


def waiting(around: Surroundings) -> bool:
    found = row(around)
    return found is not None and found.steps["decide"].status is StepStatus.WAITING_FOR_HUMAN


def completed(around: Surroundings) -> bool:
    found = row(around)
    return found is not None and found.status is CeremonyStatus.COMPLETED


def acknowledged(around: Surroundings) -> bool:
    """Return whether the log has the outcome of the publish step, or the store its acknowledgement."""
    if around.marks is not None and around.marks.completed:
        return True
    commands = prefixed(PREFIX, COMMANDS)
    return any(
        isinstance(command, StepOutcome) and command.outcome == "completed" and bool(command.published)
        for number in range(around.broker.partitions)
        for record in around.broker.records[commands, number]
        for command in [decode_command(record.value)]
    )


# ---- answers of agents


def _says(around: Surroundings, subject: str, payload: dict[str, Any]) -> None:
    envelope = {
        "event_type": subject,
        "payload": payload,
        "idempotency_key": "shared",
        "correlation_id": "random",
        "timestamp": "2026-01-01T00:00:00Z",
        "producer": "agents",
    }
    around.nats.store(subject, json.dumps(envelope).encode(), {})


def _task(attempt: int) -> str:
    return TASK.format(subject=REVIEW, step="review", attempt=attempt)


def _proposes(around: Surroundings, attempt: int, agent: int) -> None:
    told = {"task_id": _task(attempt), "agent_id": f"agent-architect-{agent:03}", "role": "ARCHITECT"}
    _says(around, BACKLOG_REVIEW, {**told, "status": "completed", "proposal": f"proposal {agent} of {attempt}"})


def one_agent_fails(around: Surroundings) -> None:
    _proposes(around, 1, 1)
    failed = {"task_id": _task(1), "agent_id": "agent-architect-002", "role": "ARCHITECT"}
    _says(around, FAILED, {**failed, "status": "failed", "error": "out of ideas", "error_type": "Empty"})


def both_agents_propose(around: Surroundings) -> None:
    """Both agents answer. An answer to an old attempt, a repeated one and a foreign message come too."""
    _proposes(around, 2, 1)
    _proposes(around, 3, 1)
    _proposes(around, 3, 1)
    _says(around, COMPLETED, {"task_id": "somebody-elses", "agent_id": "x", "status": "completed", "proposal": "y"})
    _proposes(around, 3, 2)


def tasks_are_extracted(around: Surroundings) -> None:
    task_id = TASK.format(subject="task-extraction", step="extract", attempt=1)
    tasks = [{"title": "one", "estimated_hours": 2}, {"title": "two", "estimated_hours": 3}]
    _says(around, TASK_EXTRACTION, {"task_id": task_id, "story_id": "s1", "ceremony_id": "c1", "tasks": tasks})


# ---- calls of clients


async def _starts(process: Process) -> Reply:
    pieces = start_pieces(
        definition(),
        ceremony_id="c1",
        story_id="s1",
        correlation_id="corr-1",
        inputs={"title": "Crash safely"},
        rich_inputs={},
        step_ids=[],
        requested_by="ana",
        command_id="start-1",
    )
    command = in_one_go(pieces)
    return await process.pipeline.engine.commands.start(definition(), command)


async def _approves(process: Process) -> Reply:
    decision = GateDecision(
        instance_id=INSTANCE,
        command_id="decide-1",
        gate="decide",
        approved=True,
        actor="olga",
        role="PRODUCT_OWNER",
        visit=1,
    )
    return await process.pipeline.engine.commands.operate(decision)


def begun(around: Surroundings) -> None:
    """Make the stream AGENT_RESPONSES, as a neighbour does."""
    around.nats._api(f"STREAM.CREATE.{AGENT_RESPONSES}", json.dumps(_RESPONSES).encode())


_RESPONSES = {"name": AGENT_RESPONSES, "subjects": ["agent.response.>"]}

SCRIPT: Sequence[Scene] = (
    Scene("the start", submitted("review", 1), begun, _starts),
    Scene("an agent fails", backing_off("review", 1), one_agent_fails),
    Scene("the retry, which nobody answers", submitted("review", 2)),
    Scene("its timeout", backing_off("review", 2), ticks=2),
    Scene("the second retry", submitted("review", 3)),
    Scene("proposals", submitted("extract", 1), both_agents_propose),
    Scene("tasks", waiting, tasks_are_extracted),
    Scene("the decision", completed, call=_approves),
)


async def asks(process: Process, name: str, call: Call) -> None:
    """Call until there is a reply. A client repeats its call to each new process."""
    while True:
        try:
            process.around.answers[name] = await call(process)
            return
        except Unavailable:
            await process.clock.sleep(0.2)
