"""Common behaviour of step agents: skipped requests, dead letters, held records, bounded calls."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import structlog

from steps.agent import AgentFunction, Calls, answering, calling
from steps.config import config_of
from steps.human_gate import HumanGateConfig
from steps.outcome import Outcome
from steps.publish import PublishConfig
from steps.reading import Asked, Served
from steps.registry import all_kinds
from tables.effects import REQUEST_FORMAT
from tables.errors import FormatTooNew
from tests.steps.fakes import CLOCK, MemoryBatch, definition, request, run, step, wiring

GATE = {"role": "PO", "message": "m"}


class Body(msgspec.Struct, frozen=True):
    n: int


def echo(now: int = 1000) -> AgentFunction:
    return answering("echo", wiring(now), Body, lambda body: Outcome("completed", body.n))


class Neighbour:
    """A neighbour that answers when it is released, and counts the calls inside."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.inside = self.most = self.served = 0
        self.bound: list[dict[str, Any]] = []

    async def perform(self, asked: Asked[Body]) -> Outcome:
        self.bound.append(structlog.contextvars.get_contextvars())
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.go.wait()
        finally:
            self.inside -= 1
        self.served += 1
        return Outcome("completed", asked.body.n)


def caller(neighbour: Neighbour, **options: Any) -> AgentFunction:
    return calling("caller", wiring(), Body, Calls(CLOCK, "nats", neighbour.perform, **options))


def numbers(*each: int) -> list[bytes]:
    return [request({"n": n}, number=n) for n in each]


async def test_a_broken_record_becomes_a_dead_letter_and_the_rest_is_served() -> None:
    broken = (None, b"{", b'{"id":"x"}', b'{"id":"\xff"}', request({"n": "text"}), request(None))
    batch = MemoryBatch(*broken, *numbers(7))
    await run(echo(), batch)
    assert batch.dead == [(offset, "request_undecodable") for offset in range(len(broken))]
    assert [outcome.output for outcome in batch.outcomes] == [7]


@pytest.mark.parametrize("change", [{}, {"attempt": "a word"}, {"id": None}])
async def test_a_record_of_a_newer_release_ends_the_agent(change: dict[str, Any]) -> None:
    """A record of which nothing but the format can be read ends it too."""
    newer = msgspec.json.decode(request({"n": 1})) | {"format": REQUEST_FORMAT + 1} | change
    batch = MemoryBatch(msgspec.json.encode(newer), *numbers(2))
    with pytest.raises(FormatTooNew):
        await run(echo(), batch)
    assert not batch.dead and not batch.outcomes


@pytest.mark.parametrize(
    ("deadline", "now", "served"), [(999, 1000, 0), (1000, 1000, 0), (1001, 1000, 1), (999, 0, 1), (0, 1000, 1)]
)
async def test_a_request_past_its_deadline_is_answered_without_being_served(
    deadline: int, now: int, served: int
) -> None:
    """The log's clock may have been ahead: a request that nobody answers would wait for its timeout in vain."""
    # specification 11.8
    batch = MemoryBatch(request({"n": 1}, deadline=deadline))
    await run(echo(now), batch)
    (outcome,) = batch.outcomes
    assert (outcome.outcome, outcome.error_code) == (("completed", "") if served else ("unreachable", "late"))
    assert batch.sent[0].headers == (("correlation-id", b"corr-1"),)
    assert batch.dead == []


async def test_a_second_copy_of_a_late_request_is_skipped() -> None:
    agent = echo(1000)
    first, copy = (MemoryBatch(request({"n": 1}, deadline=999), offset=offset) for offset in (10, 20))
    await run(agent, first, copy)
    assert [len(batch.outcomes) for batch in (first, copy)] == [1, 0]


async def test_a_second_copy_of_an_effect_is_skipped_and_the_same_record_read_again_is_not() -> None:
    agent = echo()
    first, again, copy = (MemoryBatch(*numbers(1), offset=offset) for offset in (10, 10, 20))
    await run(agent, first, again, copy)
    assert [len(batch.outcomes) for batch in (first, again, copy)] == [1, 1, 0]


def test_the_memory_of_served_effects_is_bounded() -> None:
    served = Served(kept=3)
    for number in range(10):
        assert not served.repeats(str(number), number)
    assert served.repeats("9", 99) and served.repeats("7", 99)
    assert not served.repeats("0", 99)
    assert len(served._new) + len(served._old) <= 6


async def test_an_unexpected_error_of_an_answer_fails_its_attempt_without_its_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # specification 1.9
    def broken(_body: Body) -> Outcome:
        raise RuntimeError("password=1234")

    batch = MemoryBatch(*numbers(1, 2))
    await run(answering("broken", wiring(), Body, broken), batch)
    assert [outcome.error_code for outcome in batch.outcomes] == ["internal_error"] * 2
    assert "1234" not in "".join(outcome.error_message for outcome in batch.outcomes)
    assert "RuntimeError" in capsys.readouterr().out


async def test_calls_run_side_by_side_up_to_a_bound_and_each_outcome_leaves_as_soon_as_it_is_known() -> None:
    neighbour = Neighbour()
    batch = MemoryBatch(*numbers(1, 2, 3, 4, 5))
    running = asyncio.ensure_future(run(caller(neighbour, concurrency=2), batch))
    while neighbour.inside < 2:
        await asyncio.sleep(0)
    assert (batch.held, batch.sent) == ([0, 1], [])
    neighbour.go.set()
    await running
    assert neighbour.most == 2 and neighbour.served == 5
    assert sorted(outcome.output for outcome in batch.outcomes) == [1, 2, 3, 4, 5]
    assert {sent.partition for sent in batch.sent} == {1} and batch.held == []


async def test_the_ids_of_the_attempt_are_bound_to_every_log_line_of_a_call() -> None:
    neighbour = Neighbour()
    neighbour.go.set()
    await run(caller(neighbour), MemoryBatch(*numbers(1)))
    assert neighbour.bound == [{"instance": "c1:s1", "step": "it", "attempt": 2, "correlation_id": "corr-1"}]


async def test_a_call_that_never_ends_is_given_up_and_counts_as_unreachable() -> None:
    batch = MemoryBatch(*numbers(1))
    await run(caller(Neighbour(), seconds=0.01), batch)
    (outcome,) = batch.outcomes
    assert (outcome.outcome, outcome.error_code) == ("unreachable", "nats_unreachable")


async def test_an_unexpected_error_of_a_call_fails_its_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(_asked: Asked[Body]) -> Outcome:
        raise RuntimeError("password=1234")

    batch = MemoryBatch(*numbers(1))
    await run(calling("broken", wiring(), Body, Calls(CLOCK, "nats", broken)), batch)
    (outcome,) = batch.outcomes
    assert (outcome.outcome, outcome.error_code) == ("failed", "internal_error")
    assert "1234" not in outcome.error_message and "RuntimeError" in capsys.readouterr().out


async def test_when_the_agent_ends_its_calls_are_cancelled_and_their_records_stay_held() -> None:
    neighbour = Neighbour()
    batch = MemoryBatch(*numbers(1, 2))
    await run(caller(neighbour), batch, until=lambda: neighbour.inside == 2)
    while neighbour.inside:
        await asyncio.sleep(0)
    assert (batch.held, batch.sent, neighbour.served) == ([0, 1], [], 0)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("submitted", deliberation_id="\x01" * 4_000_000),
        Outcome("failed", code="\x01" * 4_000_000, message="\x01" * 4_000_000),
        Outcome("completed", output={"not JSON": object()}),
    ],
    ids=["deliberation id", "texts", "output"],
)
async def test_an_outcome_of_any_size_leaves_and_its_record_is_released(outcome: Outcome) -> None:
    """A record above the limit could not be sent, and would be held until the worker ends."""

    async def perform(_asked: Asked[Body]) -> Outcome:
        return outcome

    batch = MemoryBatch(*numbers(1))
    await run(calling("caller", wiring(), Body, Calls(CLOCK, "nats", perform)), batch)
    (sent,) = batch.sent
    assert len(sent.value) < 20_000
    assert batch.held == []


async def test_an_outcome_that_cannot_be_sent_leaves_its_record_held(capsys: pytest.CaptureFixture[str]) -> None:
    class Closed(MemoryBatch):
        def hold(self, record: Any) -> Any:
            held = super().hold(record)
            held.send = lambda *_: (_ for _ in ()).throw(ConnectionError("gone"))  # type: ignore[method-assign]
            return held

    neighbour = Neighbour()
    neighbour.go.set()
    batch = Closed(*numbers(1))
    await run(caller(neighbour), batch, until=lambda: neighbour.served == 1 and "not_sent" in capsys.readouterr().out)
    assert (batch.held, batch.sent) == ([0], [])


def test_every_handler_has_its_kind_under_the_name_of_its_topic() -> None:
    assert {handler: kind.name for handler, kind in all_kinds().items()} == {
        "deliberation_step": "deliberation",
        "task_extraction_step": "task_extraction",
        "aggregation_step": "aggregation",
        "human_gate_step": "human_gate",
        "publish_step": "publish",
    }
    assert all(kind.config.model_json_schema()["additionalProperties"] is False for kind in all_kinds().values())


def test_agents_are_listed_under_the_name_of_their_kind() -> None:
    assert echo().__name__ == "echo_agent"


def test_reading_a_config_as_that_of_another_kind_raises() -> None:
    it = step("human_gate_step", GATE)
    assert config_of(it, HumanGateConfig).role == "PO"
    with pytest.raises(TypeError, match="HumanGateConfig, not a PublishConfig"):
        config_of(it, PublishConfig)


def test_a_template_may_name_any_step_of_the_definition() -> None:
    first = step("publish_step", {"subject": "a.b", "event_type": "e"}, "first")
    second = step(
        "publish_step",
        {"subject": "a.b", "event_type": "e", "payload_template": {"a": "${steps.first.payload}", "b": "${inputs.x}"}},
        "second",
    )
    assert list(all_kinds()["publish_step"].check(second, definition(first, second))) == []
    assert list(all_kinds()["human_gate_step"].check(step("human_gate_step", GATE), definition())) == []
