"""Records and messages of a ceremony are counted as the engine writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import pytest
from nats.aio.subscription import Subscription

from ports.log import Record
from streams.envelope import envelope
from tables.commands import AnyCommand, PutDefinition, StepOutcome
from tables.instance import TERMINAL, CeremonyStatus
from tests.benchmarks import preload, serial, throughput
from tests.benchmarks.sizes import NONE, Records, RecordSize, Weighed
from tests.benchmarks.workloads import MERGES, PUBLISHES, SAID, STEPS, Workload
from tests.streams.fakes import command_record
from tests.tables.world import KINDS, World


def test_records_are_counted_per_ceremony_with_their_average_size() -> None:
    weighed = Weighed()
    for number in range(4):
        weighed.add(Record("t", 0, 1, 2, b"key", b"v" * number, [("fold", b"1" * number)]))
    assert weighed.of(2) == Records(2, RecordSize(3, 2, (("fold", 2),)))
    assert Weighed().of(2) == NONE


def test_starts_and_outcomes_are_weighed_apart_and_definitions_not_at_all() -> None:
    pinned = MERGES.definition()
    outcome = StepOutcome(instance_id="c:S", step_id="s", attempt=1, outcome="completed")
    given: list[AnyCommand] = [
        PutDefinition(hash=pinned.hash, text=pinned.text),
        preload.start(pinned, "c"),
        outcome,
        outcome,
    ]
    starts, outcomes = Weighed(), Weighed()
    for command in given:
        throughput.weigh_command(command_record(0, command), starts, outcomes)
    assert (starts.of(1).each, outcomes.of(1).each) == (1, 2)
    assert starts.of(1).size.value > outcomes.of(1).size.value


@pytest.mark.parametrize(("workload", "commands"), [(MERGES, 1), (PUBLISHES, 6)])
def test_a_workload_publishes_its_declared_number_of_messages(workload: Workload, commands: int) -> None:
    """A run ends when so many messages are stored."""
    world = World(workload.definition(), KINDS)
    world.start(payload=preload.PAYLOAD)
    while world.live.status not in TERMINAL:
        world.done(world.requests()[-1].step_id, published={"stream": "CEREMONY", "sequence": 1})
    assert (world.live.status, len(world.executed())) == (CeremonyStatus.COMPLETED, STEPS)
    assert len(world.decisions) == commands
    assert len(world.events()) + len(world.requests()) == workload.messages


class _Message(NamedTuple):
    data: bytes


class _Stream:
    """A subscription that hands over given messages in order."""

    def __init__(self, messages: list[tuple[str, dict[str, Any], int]]) -> None:
        self._left: Iterator[_Message] = (
            _Message(envelope(subject, payload, "e", "c", at)) for subject, payload, at in messages
        )

    async def next_msg(self, **_: float) -> _Message:
        return next(self._left)


async def test_a_serial_ceremony_lasts_until_its_completed_event() -> None:
    ours = {"instance_id": "c:S"}
    messages: list[tuple[str, dict[str, Any], int]] = [
        ("ceremony.started", ours, 1_000),
        (SAID, {"said": 1}, 1_100),
        ("ceremony.completed", ours, 1_500),
    ]
    first, last = await serial.until_completed(cast(Subscription, _Stream(messages)), "c:S")
    assert (last - first).total_seconds() == pytest.approx(0.5)
