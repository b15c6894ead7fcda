"""Fakes for the tests of step kinds: a ceremony and batches in memory, neighbours that record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import ValidationError

from bridge.clock import HostClock
from ports.log import Header, Record
from ports.outbound import Published
from ports.provenance import NOWHERE, Provenance
from ports.ray import RayAnswer, RayTask
from steps.agent import AgentFunction, AgentPorts, Model
from steps.reading import Wiring
from steps.registry import all_kinds
from tables.commands import StepOutcome, decode_command
from tables.definition import Definition, Output, RetryPolicy, State, Step, Timeouts
from tables.effects import StepRequested, encode_request
from tables.instance import CeremonyStatus, Instance, StepState, StepStatus
from tables.kinds import Failed, StepContext, StepKind, with_facts

STATE = "WORK"


def step(handler: str, config: Mapping[str, Any], step_id: str = "it") -> Step:
    """Return a step with the config and facts of its kind, as the loader makes it."""
    kind = all_kinds()[handler]
    model = kind.config.model_validate(config)
    return with_facts(Step(step_id, STATE, handler, model, RetryPolicy(), timeout_seconds=60), kind)


def wrong(handler: str, config: Mapping[str, Any]) -> list[str]:
    """List the types of the errors of a config, each as `<path>:<type>`."""
    try:
        all_kinds()[handler].config.model_validate(config)
    except ValidationError as error:
        return [".".join(map(str, e["loc"])) + ":" + e["type"] for e in error.errors()]
    return []


def definition(*steps: Step, outputs: Sequence[Output] = ()) -> Definition:
    return Definition(
        name="review",
        description="A review.",
        hash="h",
        text="",
        required_inputs=(),
        optional_inputs=(),
        searchable_inputs=(),
        outputs={output.name: output for output in outputs},
        states={STATE: State(STATE, "Work.", initial=True)},
        transitions=(),
        steps={s.id: s for s in steps},
        guards={},
        roles={},
        timeouts=Timeouts(),
    )


def context(
    it: Step,
    *,
    inputs: Mapping[str, Any] | None = None,
    done: Mapping[str, Any] | None = None,
    outputs: Sequence[Output] = (),
    **state: Any,
) -> StepContext:
    """Return the second attempt of `it` in the third visit; `done` has outputs of COMPLETED steps."""
    finished = {name: StepState(status=StepStatus.COMPLETED, output=value) for name, value in (done or {}).items()}
    instance = Instance(
        instance_id="c1:s1",
        ceremony_id="c1",
        story_id="s1",
        definition_name="review",
        definition_hash="h",
        correlation_id="corr-1",
        requested_by="ana",
        start_digest="d",
        state=STATE,
        status=CeremonyStatus.RUNNING,
        created_at=1,
        updated_at=1,
        inputs={"ceremony_id": "c1", "story_id": "s1", **(inputs or {})},
        steps={it.id: StepState(**{"status": StepStatus.IN_PROGRESS, "attempt": 2, **state}), **finished},
        visits={STATE: 3},
    )
    return StepContext(instance, definition(it, outputs=outputs), it, now=1)


def body_of(kind: StepKind, asked: StepContext) -> dict[str, Any]:
    """Return the body of the request of a kind, which must not fail."""
    found = kind.request(asked)
    assert not isinstance(found, Failed), found
    assert isinstance(found, dict)
    return found


class Sent(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes
    headers: Sequence[Header]
    partition: int | None


class MemoryHeld:
    def __init__(self, batch: MemoryBatch, record: Record) -> None:
        self._batch, self.record = batch, record

    def send(
        self, topic: str, key: bytes, value: bytes, headers: Sequence[Header] = (), partition: int | None = None
    ) -> None:
        self._batch.sent.append(Sent(topic, key, value, headers, partition))

    def release(self) -> None:
        self._batch.held.remove(self.record.offset)


class MemoryBatch:
    """A batch of a stateless agent; it records every call."""

    partition = 1
    note: Any = None

    def __init__(self, *values: bytes | None, offset: int = 0) -> None:
        self.records = [
            Record("x.steps.k", self.partition, offset + index, 0, None, value) for index, value in enumerate(values)
        ]
        self.sent: list[Sent] = []
        self.held: list[int] = []
        """Offsets held and not released."""
        self.dead: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def get(self, table: str, key: bytes) -> Any | None:
        raise AssertionError("a step agent has no table")

    def put(self, table: str, key: bytes, row: Any | None) -> None:
        raise AssertionError("a step agent has no table")

    def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Sequence[Header] = (), partition: int | None = None
    ) -> None:
        self.sent.append(Sent(topic, key, value, headers, partition))

    def hold(self, record: Record) -> MemoryHeld:
        self.held.append(record.offset)
        return MemoryHeld(self, record)

    def dead_letter(self, record: Record, code: str, message: str) -> None:
        self.dead.append((record.offset, code))

    @property
    def outcomes(self) -> list[StepOutcome]:
        found = [decode_command(sent.value) for sent in self.sent]
        return [outcome for outcome in found if isinstance(outcome, StepOutcome)]


def request(body: Any, *, number: int = 1, kind: str = "k", deadline: int = 0) -> bytes:
    return encode_request(
        StepRequested(
            id=f"c1:s1/{number}/1@1",
            kind=kind,
            instance_id="c1:s1",
            step_id="it",
            attempt=2,
            visit=3,
            deadline=deadline,
            correlation_id="corr-1",
            body=body,
        )
    )


def wiring(now: int = 1000) -> Wiring:
    return Wiring("x.commands", "correlation-id", lambda: now)


CLOCK = HostClock()


async def run(agent: AgentFunction, *batches: MemoryBatch, until: Callable[[], bool] | None = None) -> None:
    """Hand the batches over, and keep the agent alive until nothing is held (or until `until` is true)."""

    def settled() -> bool:
        return not any(batch.held for batch in batches)

    async def stream() -> AsyncIterator[MemoryBatch]:
        for batch in batches:
            yield batch
        async with asyncio.timeout(5):
            while not (until or settled)():
                await asyncio.sleep(0.001)

    await agent(stream())


@dataclass
class RecordingRay:
    """A Ray executor in memory."""

    answer: RayAnswer | Exception = field(default_factory=lambda: RayAnswer("submitted", "d-1"))
    tasks: list[RayTask] = field(default_factory=list)

    async def execute(self, task: RayTask) -> RayAnswer:
        self.tasks.append(task)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@dataclass
class RecordingOutbound:
    """An outlet in memory; it raises an `answer` that is an error."""

    answer: Published | Exception = field(default_factory=lambda: Published("CEREMONY", 7, duplicate=False))
    messages: list[dict[str, Any]] = field(default_factory=list)

    async def publish(
        self,
        subject: str,
        event_type: str,
        payload: Mapping[str, Any],
        *,
        key: str,
        correlation_id: str,
        causation_id: str | None = None,
        provenance: Provenance = NOWHERE,
    ) -> Published:
        self.messages.append(
            {
                "subject": subject,
                "event_type": event_type,
                "payload": payload,
                "key": key,
                "correlation": correlation_id,
                "provenance": provenance,
            }
        )
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def agent_ports(
    ray: RecordingRay | None = None,
    outbound: RecordingOutbound | None = None,
    **options: Any,
) -> AgentPorts:
    """Return ports of an agent whose neighbours record; options as of AgentPorts."""
    return AgentPorts(
        **{
            "wiring": wiring(),
            "clock": CLOCK,
            "ray": ray or RecordingRay(),
            "outbound": outbound or RecordingOutbound(),
            "model": Model("http://vllm", "llama"),
            **options,
        }
    )
