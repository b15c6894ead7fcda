"""The two forms of a step agent: one computes its answer, one calls a neighbour from bounded tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from msgspec.structs import replace

from ports.clock import Clock
from ports.errors import Unreachable
from ports.log import Batch, Held
from ports.outbound import Outbound
from ports.ray import RayExecutor
from ports.spans import SpanKind, SpanSink, TraceSpan
from ports.traces import TraceContext, parse_traceparent
from steps.outcome import INTERNAL_ERROR, Outcome, encode_outcome
from steps.reading import Asked, RequestReader, Wiring
from steps.subjects import DEFAULT_ALLOWLIST
from tables.effects import StepRequested

B = TypeVar("B")
# An agent over batches; `app.agent(topic)` takes it.
AgentFunction = Callable[[AsyncIterable[Batch]], Coroutine[Any, Any, None]]
# A call to the neighbour. Raises Unreachable.
Perform = Callable[[Asked[B]], Awaitable[Outcome]]
BACKSTOP_SECONDS = 30.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Model:
    """The language model of the agents, from the settings of this server."""

    url: str
    """VLLM_URL"""
    name: str
    """VLLM_MODEL"""


@dataclass(frozen=True, slots=True)
class AgentPorts:
    """The ports and settings of step agents. The program makes one for all kinds; each agent uses its part."""

    wiring: Wiring
    clock: Clock
    ray: RayExecutor
    outbound: Outbound
    model: Model
    publish_subjects: tuple[str, ...] = DEFAULT_ALLOWLIST
    """Patterns of PUBLISH_SUBJECTS: the subjects that publish steps may use."""
    concurrency: int = 32
    """Most calls of one kind under way."""
    ray_call_seconds: float = BACKSTOP_SECONDS
    """Backstop in seconds, above the Ray executor's own deadline."""
    spans: SpanSink | None = None
    """Takes a span of each call to a neighbour."""


def answering(name: str, wiring: Wiring, body: type[B], answer: Callable[[B], Outcome]) -> AgentFunction:
    """Return an agent that computes its answers: a batch in one loop, without a task or a log line per record."""
    reader = RequestReader(wiring, body)

    async def agent(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for asked in reader.requests(batch):
                request = asked.request
                value = _encoded(request, asked.body, answer)
                batch.send(wiring.commands, request.instance_id.encode(), value, wiring.headers(request))

    return _named(agent, name)


def calling(name: str, wiring: Wiring, body: type[B], calls: Calls[B]) -> AgentFunction:
    """Return an agent that calls a neighbour: it holds each record until it has sent the outcome."""
    reader = RequestReader(wiring, body)

    async def agent(stream: AsyncIterable[Batch]) -> None:
        running = _Running(wiring, calls)
        try:
            async for batch in stream:
                for asked in reader.requests(batch):
                    await running.start(asked, batch)
        finally:
            running.cancel()

    return _named(agent, name)


@dataclass(frozen=True, slots=True)
class Calls(Generic[B]):
    """The calls to a neighbour, and their bounds."""

    clock: Clock
    neighbour: str
    perform: Perform[B]
    concurrency: int = 16
    """Most calls under way."""
    seconds: float = BACKSTOP_SECONDS
    """Backstop above the neighbour's own deadline, so that every call ends."""
    spans: SpanSink | None = None
    """Takes a span of each call."""


class _Running(Generic[B]):
    """The calls under way of one run of an agent."""

    def __init__(self, wiring: Wiring, calls: Calls[B]) -> None:
        self._wiring = wiring
        self._calls = calls
        self._free = asyncio.Semaphore(calls.concurrency)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, asked: Asked[B], batch: Batch) -> None:
        """Start a call as soon as there is room; hold its record until the outcome is sent."""
        await self._free.acquire()
        served = self._serve(asked, batch.hold(asked.record))
        task = self._calls.clock.spawn(served, name=f"{asked.request.kind} {asked.request.id}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Cancel the calls under way. Their records stay held, and the next owner of the partition reads them again."""
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._free.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The record stays held: its offset is never committed, and a restart serves it again.
            log.error("step_outcome_not_sent", task=task.get_name(), exc_info=error)

    async def _serve(self, asked: Asked[B], held: Held) -> None:
        request = asked.request
        with structlog.contextvars.bound_contextvars(
            instance=request.instance_id,
            step=request.step_id,
            attempt=request.attempt,
            correlation_id=request.correlation_id,
        ):
            outcome = await self._traced(asked)
            log.debug("step_outcome", outcome=outcome.outcome, code=outcome.code, reason=outcome.message)
            key, value = request.instance_id.encode(), _encoded_or_failed(request, outcome)
            held.send(self._wiring.commands, key, value, self._wiring.headers(request), asked.record.partition)
            held.release()

    async def _traced(self, asked: Asked[B]) -> Outcome:
        """Make the call, with a span of it where spans are exported. Its times are those of the log's clock."""
        attempt = None if self._calls.spans is None else parse_traceparent(asked.provenance.traceparent)
        began = self._wiring.log_now()  # 0: not known yet
        if self._calls.spans is None or attempt is None or not attempt.sampled or not began:
            return await self._outcome(asked)
        context = attempt.child(f"call/{asked.request.id}")
        outcome = await self._outcome(replace(asked, traceparent=context.traceparent))
        span = _span_of_call(asked.request, outcome, self._calls.neighbour, (attempt, context))
        self._calls.spans.export([span._replace(start=began, end=max(began, self._wiring.log_now()))])
        return outcome

    async def _outcome(self, asked: Asked[B]) -> Outcome:
        neighbour = self._calls.neighbour
        try:
            async with self._calls.clock.timeout(self._calls.seconds):
                return await self._calls.perform(asked)
        except Unreachable as error:
            return Outcome("unreachable", code=f"{error.neighbour}_unreachable", message=error.reason)
        except TimeoutError:
            reason = f"no answer within {self._calls.seconds:g} s"
            return Outcome("unreachable", code=f"{neighbour}_unreachable", message=reason)
        except Exception:
            log.exception("step_agent_failed")
            return INTERNAL_ERROR


def _span_of_call(
    request: StepRequested, outcome: Outcome, neighbour: str, contexts: tuple[TraceContext, TraceContext]
) -> TraceSpan:
    """Return the span of a call, without its times; `contexts` are those of its attempt and of itself."""
    return TraceSpan(
        f"{neighbour} {request.kind}",
        SpanKind.PRODUCER if request.kind == "publish" else SpanKind.CLIENT,
        contexts[1],
        contexts[0],
        0,
        0,
        {
            "ceremony.instance": request.instance_id,
            "ceremony.step": request.step_id,
            "ceremony.attempt": request.attempt,
            "ceremony.effect": request.id,
            "ceremony.outcome": outcome.outcome,
        },
        error_code=outcome.code,
    )


def _encoded_or_failed(request: StepRequested, outcome: Outcome) -> bytes:
    """Encode the outcome; one that cannot be encoded fails its attempt, for its record would be held for ever."""
    try:
        return encode_outcome(request, outcome)
    except Exception:
        log.exception("step_outcome_unencodable")
        return encode_outcome(request, INTERNAL_ERROR)


def _encoded(request: StepRequested, body: B, answer: Callable[[B], Outcome]) -> bytes:
    try:
        return encode_outcome(request, answer(body))
    except Exception:
        log.exception("step_agent_failed", instance=request.instance_id, step=request.step_id, attempt=request.attempt)
        return encode_outcome(request, INTERNAL_ERROR)


def _named(agent: AgentFunction, name: str) -> AgentFunction:
    """Name the agent after its kind, as `faust agents` lists it."""
    agent.__name__ = agent.__qualname__ = f"{name}_agent"
    return agent
