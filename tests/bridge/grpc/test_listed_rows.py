"""The rows of a list are encoded once per version, in pieces of bounded work between two turns of the event loop."""

from __future__ import annotations

from typing import Any

import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from msgspec.structs import replace

from bridge.clock import HostClock
from bridge.grpc.listed_rows import BYTES_OF_WORK, WORK_IF_KEPT, WORK_PER_TURN, ListedRows, RowsAnswer
from bridge.grpc.messages import LARGEST_ANSWER_BYTES
from steps.secrets.redactor import TextRedactor
from streams.turns import Turns
from tables.instance import Instance
from tests.loop_turns import LoopTurns
from tests.streams.test_timers import row

ROWS, CALLERS = 300, 4


class Site:
    """Rows in memory; counts the messages that are made, and the rows that are read, between two turns."""

    def __init__(self, count: int = ROWS, size: int = 0, kept_bytes: int = 1024 * 1024) -> None:
        self.table = {f"c{number}:s1": replace(row(f"c{number}"), size=size) for number in range(count)}
        self.offset = 1
        self.losses = 0
        self.made, self.read = LoopTurns(), LoopTurns()
        reads: Any = self
        self.listed = ListedRows(reads, self.message, TextRedactor(), kept_bytes)

    def get(self, instance_id: str) -> Instance | None:
        self.read.work()
        return self.table.get(instance_id)

    def position_of(self, instance_id: str) -> tuple[int, int]:
        return 3, self.offset

    def message(self, one: Instance) -> pb.PlanningCeremonyInstance:
        self.made.work()
        return pb.PlanningCeremonyInstance(
            instance_id=one.instance_id, version=one.version, error_message="x" * one.size
        )

    def answer(self) -> RowsAnswer:
        return run(self.listed.answer(list(self.table)))


def run(pieces: Any) -> RowsAnswer:
    try:
        while True:
            next(pieces)
    except StopIteration as end:
        found: RowsAnswer = end.value
        return found


def decoded(answer: RowsAnswer) -> list[pb.PlanningCeremonyInstance]:
    return [pb.PlanningCeremonyInstance.FromString(data) for data in answer.rows.values()]


def test_a_row_is_encoded_once_per_version_with_the_position_of_each_answer() -> None:
    # specification 14.20
    site = Site()
    first = decoded(site.answer())
    changed = next(iter(site.table))
    site.table[changed] = replace(site.table[changed], version=9)
    site.offset = 77
    second = decoded(site.answer())
    assert site.made.all == ROWS + 1
    assert [one.instance_id for one in second] == list(site.table)
    assert {one.position.offset for one in first} == {1} and {one.position.offset for one in second} == {77}
    assert [one.version for one in second if one.instance_id == changed] == [9]


def test_a_substitute_and_a_row_of_a_new_owner_are_encoded_anew() -> None:
    """A row of the same version may be another one: the stub of one that cannot be written, or another release's."""
    site = Site(count=1)
    site.answer()
    name, one = next(iter(site.table.items()))
    site.table[name] = replace(one, expired=True)
    site.answer()
    assert site.made.all == 2
    site.losses += 1
    site.answer()
    assert site.made.all == 3


def test_few_bytes_of_messages_are_kept() -> None:
    site = Site(size=1000, kept_bytes=50_000)
    for _ in range(3):
        assert len(site.answer().rows) == ROWS
    kept = {**site.listed._old, **site.listed._young}
    assert 0 < sum(len(one.data) for one in kept.values()) <= 50_000 + 2000


def test_an_answer_ends_where_it_is_full_and_has_one_row_at_least() -> None:
    # specification 14.9
    site = Site(count=5, size=LARGEST_ANSWER_BYTES // 2 - 1000)
    answer = site.answer()
    assert (len(answer.rows), answer.complete) == (2, False)
    larger = Site(count=2, size=LARGEST_ANSWER_BYTES)
    assert (len(larger.answer().rows), larger.answer().complete) == (1, False)


@pytest.mark.asyncio
async def test_four_lists_encode_few_rows_in_a_turn() -> None:
    # specification 14.20
    site, turns = Site(), Turns(HostClock())
    answers = await site.made.during(*(turns.run(site.listed.answer(list(site.table))) for _ in range(CALLERS)))
    assert all(len(answer.rows) == ROWS for answer in answers)
    assert site.made.most <= WORK_PER_TURN * CALLERS
    assert site.made.often <= WORK_PER_TURN


@pytest.mark.asyncio
async def test_large_rows_have_a_turn_each_and_known_ones_share_it() -> None:
    # specification 14.20
    site, turns = Site(count=20, size=4 * BYTES_OF_WORK), Turns(HostClock())
    await site.made.during(turns.run(site.listed.answer(list(site.table))))
    assert site.made.most == 1
    known, turns = Site(), Turns(HostClock())
    known.answer()
    known.read.turns = [0]
    await known.read.during(turns.run(known.listed.answer(list(known.table))))
    assert 1 < known.read.most <= WORK_PER_TURN / WORK_IF_KEPT + 1


def test_a_row_that_is_gone_is_left_out() -> None:
    site = Site(count=3)
    answer = run(site.listed.answer([*site.table, "gone:s1"]))
    assert (list(answer.rows), answer.complete) == (list(site.table), True)
