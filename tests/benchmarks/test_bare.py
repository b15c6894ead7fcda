"""Bare loops read and write as many records as the engine, and are timed together."""

from __future__ import annotations

import pytest

from ports.log import Record
from tests.benchmarks import bare_figures
from tests.benchmarks.bare import Measured, together
from tests.benchmarks.bare_figures import BareRun, Kind, kinds
from tests.benchmarks.bare_work import Options, Output, ceremonies_of
from tests.benchmarks.sizes import NONE, CeremonyRecords, Records, RecordSize

SIZE = RecordSize(1, 1, ())
AT_ONCE = CeremonyRecords(Records(1, SIZE), NONE, NONE, Records(8, SIZE))
ASKED = CeremonyRecords(Records(1, SIZE), Records(5, SIZE), Records(5, SIZE), Records(18, SIZE))


def options(share: int | None, processes: int, records: CeremonyRecords = AT_ONCE) -> Options:
    return Options(
        bootstrap="",
        name="b",
        ceremonies=103,
        partitions=5,
        batches=False,
        records=records,
        processes=processes,
        share=share,
    )


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_loops_share_all_ceremonies(processes: int) -> None:
    read = [
        ceremony
        for share in range(processes)
        for partition in options(share, processes).mine
        for ceremony in ceremonies_of(partition, options(share, processes))
    ]
    assert sorted(read) == list(range(103))


def test_a_loop_reads_and_writes_the_records_of_the_engine() -> None:
    assert (AT_ONCE.read, AT_ONCE.written, ASKED.read, ASKED.written) == (1, 8, 11, 28)
    assert [given.topic for given in options(None, 1).inputs] == ["b.in.commands"]
    assert options(None, 1).outputs == ["b.out.events"]
    commands, requests = options(None, 1, ASKED).inputs
    assert (commands.each, requests.each) == (6, 5)
    assert options(None, 1, ASKED).outputs == ["b.out.events", "b.out.requests", "b.out.outcomes"]
    assert str(AT_ONCE) == "per ceremony 1 record read, a row replaced, 8 written"
    assert str(ASKED) == "per ceremony 11 records read, a row replaced 6 times, 28 written"


@pytest.mark.parametrize("fetched", [1, 4, 6, 30])
def test_writes_are_spread_over_the_reads_and_none_is_missing(fetched: int) -> None:
    requests, records = Output("t", 6, Records(5, SIZE)), [Record("t", 0, n, 0, b"%d" % n, b"") for n in range(60)]
    written = [
        len(requests.caused_by(records[begin : begin + fetched], begin)) for begin in range(0, len(records), fetched)
    ]
    assert sum(written) == 50
    assert max(written) <= fetched


def test_the_time_of_several_loops_runs_from_the_first_begin_to_the_last_end() -> None:
    both = together([Measured(10.0, 12.0, 1.0), Measured(10.5, 13.0, 1.5)])
    assert (both.seconds, both.cpu_seconds) == (3.0, 2.5)


def test_loops_run_once_alone_and_once_per_number_of_workers() -> None:
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
    assert bare_figures.summary(bare, AT_ONCE)["bare_loop_records_per_s"] == 36_000
