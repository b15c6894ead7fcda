"""What is counted of the bare loops that the engine is compared with."""

from __future__ import annotations

import pytest

from tests.benchmarks import bare_figures
from tests.benchmarks.bare import Measured, Options, steps_of, together
from tests.benchmarks.bare_figures import BareRun, Kind, kinds
from tests.benchmarks.sizes import RecordSize, StepRecords

SIZE = RecordSize(1, 1, ())


def options(share: int | None, processes: int) -> Options:
    return Options(
        bootstrap="",
        name="b",
        steps=103,
        partitions=5,
        batches=False,
        records=StepRecords(SIZE, SIZE, SIZE),
        processes=processes,
        share=share,
    )


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_loops_share_all_steps_among_them(processes: int) -> None:
    read = [
        step
        for share in range(processes)
        for partition in options(share, processes).mine
        for step in steps_of(partition, options(share, processes))
    ]
    assert sorted(read) == list(range(103))


def test_several_loops_take_from_the_first_begin_to_the_last_end() -> None:
    both = together([Measured(10.0, 12.0, 1.0), Measured(10.5, 13.0, 1.5)])
    assert (both.seconds, both.cpu_seconds) == (3.0, 2.5)


def test_there_is_one_loop_and_as_many_as_any_layout_has_workers() -> None:
    assert kinds([2, 2]) == [Kind(count, batches) for count in (1, 2) for batches in (False, True)]
    assert [str(kind) for kind in kinds([2])][:3] == [
        "bare loop, one send a record",
        "bare loop, one future a batch",
        "2 bare loops, one send a record",
    ]


def test_the_engine_is_compared_with_one_loop_and_with_as_many_as_it_has_workers() -> None:
    rates = (20_000, 40_000, 25_000, 50_000)
    bare = {kind: [BareRun(rate, 30.0)] for kind, rate in zip(kinds([2]), rates, strict=True)}
    found = bare_figures.ratios(bare, 10_000, workers=2)
    assert list(found.values()) == [0.5, 0.25, 0.4, 0.2]
    assert bare_figures.shares(found, 2) == "0.50 of one bare loop (0.25 of one in batches), 0.40 of 2 (0.20)"
    assert bare_figures.shares(found, 1) == "0.50 of one bare loop (0.25 of one in batches)"
    assert bare_figures.summary(bare)["bare_loop_records_per_s"] == 100_000
