"""Figures and table of a whole benchmark, and of one in which parts are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import figures, report, throughput_figures
from tests.benchmarks.bare_figures import BareRun, kinds
from tests.benchmarks.bench import Found
from tests.benchmarks.engines import Figures
from tests.benchmarks.layouts import ONE, parse_layouts
from tests.benchmarks.plan import PARTS, parsed, plan_of
from tests.benchmarks.recovery import RecoveryRun
from tests.benchmarks.report import spread
from tests.benchmarks.serial import SerialRun
from tests.benchmarks.sizes import NONE, CeremonyRecords, Records, RecordSize
from tests.benchmarks.throughput import Checkpoints, EngineRun

PLAN = plan_of(parsed([], ""))
TWO = parse_layouts("2")[0]
SOME = Checkpoints(1, 100, 0.1)
LOAD = (0.1, 0.2, 0.3)


def engine_run(steps_per_s: float, checkpoints: Checkpoints = SOME) -> EngineRun:
    """A run of a thousand steps."""
    size = RecordSize(3, 5, ())
    records = CeremonyRecords(Records(1, size), NONE, NONE, Records(8, size))
    return EngineRun(1000, steps_per_s, steps_per_s, 100.0, 60.0, 20.0, 0.0, [4], checkpoints, records)


def with_throughput() -> Found:
    found = Found(engine={ONE: [engine_run(7000)], TWO: [engine_run(9000), engine_run(11_000)]})
    found.bare = {kind: [BareRun(20_000, 40.0)] for kind in kinds([1, 2])}
    found.synced = [engine_run(1000)]
    found.asked = [engine_run(2000)]
    found.asked_bare = {kind: [BareRun(8000, 90.0)] for kind in kinds([1])}
    return found


def test_the_best_layout_is_the_headline() -> None:
    found = with_throughput()
    summary = figures.summary(found, PLAN, LOAD)
    assert (summary["steps_per_s"], summary["workers"]) == (10_000, "2")
    assert summary["ratio_to_bare_loop"] == summary["ratio_to_as_many_bare_loops"] == 0.5
    rows = {row.what: row for row in figures.rows(found, summary)}
    assert rows["engine, 2 workers: steps/s until on NATS"].how.startswith(
        "the headline; five merges, settled in one command; 0.50 of one bare loop"
    )
    assert not rows["engine, 1 worker: steps/s until on NATS"].how.startswith("the headline")
    assert figures.line(found, summary).startswith(
        "10,000 steps/s until all events are on NATS, five merges, settled in one command, 2 workers"
    )


def test_steps_that_ask_their_agent_are_compared_with_loops_of_their_own() -> None:
    found = with_throughput()
    summary = figures.summary(found, PLAN, LOAD)
    assert (summary["asked_steps_per_s"], summary["asked_ratio_to_bare_loop"]) == (2000, 0.25)
    rows = {row.what: row for row in figures.rows(found, summary)}
    how = rows["engine, 1 worker, publish steps: steps/s until on NATS"].how
    assert how.startswith("five publish steps, each asks its agent; 0.25 of one bare loop")
    assert "2,000 steps/s that ask their agent (0.25 of such a loop" in figures.line(found, summary)


def test_another_engine_is_compared_with_steps_that_ask_their_agent_too() -> None:
    found = with_throughput()
    found.others["peer"] = Figures(steps_per_s=1000)
    rows = {row.what: row for row in figures.rows(found, figures.summary(found, PLAN, LOAD))}
    assert rows["peer: steps/s"].how == "ours is 10.0 times as good, 2.0 where each step asks its agent"


def test_without_bare_loops_only_the_headline_is_shown() -> None:
    found = with_throughput()
    found.asked_bare.clear()
    summary = figures.summary(found, PLAN, LOAD)
    assert "asked_steps_per_s" not in summary
    assert not [row for row in figures.rows(found, summary) if "publish" in row.what]


def test_checkpoints_are_averaged_over_all_runs() -> None:
    runs = [engine_run(1000, Checkpoints(3, 300, 0.3)), engine_run(1000, Checkpoints(1, 100, 0.5))]
    saved = throughput_figures._of_checkpoints(runs)
    assert saved == pytest.approx({"ms": 200, "rows": 100, "per_s": 2, "rows_per_step": 0.2})


def test_measurements_before_a_failed_part_are_shown(tmp_path: Path) -> None:
    found = with_throughput()
    del found.bare[kinds([2])[-1]]  # the last loop failed: there is no ratio
    found.serial["kafka"] = SerialRun(200, 28.0, 60.0, 9.0, 15.0, 30.0)
    found.others["peer"] = Figures(steps_per_s=1800, serial_p50_ms=14.0)
    summary = figures.summary(found, PLAN, LOAD)
    assert "steps_per_s" not in summary
    assert summary["other_engines"]["peer"]["ratios"] == {"serial_p50_ms": 0.5}
    assert [row.what for row in figures.rows(found, summary)] == [
        "serial, kafka: ms p50 / p99",
        "peer: steps/s",
        "peer: serial p50, ms",
    ]
    assert figures.line(found, summary).startswith("one ceremony of five steps alone 28.0 ms p50 and 60.0 p99 (kafka)")
    report.plot(tmp_path / "some.svg", summary)
    drawn = (tmp_path / "some.svg").read_text()
    assert "serial, Kafka, p50" in drawn
    assert "a start at half load" not in drawn


def test_recovery_can_be_shown_alone() -> None:
    empty, full, taken, driver = (spread([seconds]) for seconds in (2.0, 3.0, 0.5, 0.4))
    found = Found(recovery=RecoveryRun(100_000, 900, empty, full, taken, driver, 9.0, 2000.0))
    summary = figures.summary(found, PLAN, LOAD)
    assert summary["recovery_rows_per_s"] == 200_000
    assert figures.line(found, summary).startswith("recovery 200,000 rows/s; ")


def test_the_chosen_parts_are_measured_in_a_fixed_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert PLAN.parts == PARTS
    assert plan_of(parsed(["--only", "starts, serial"], "")).parts == ["serial", "starts"]
    with pytest.raises(SystemExit):
        parsed(["--only", "serial,stops"], "")
    assert "stops: some of live, throughput, serial, recovery, starts are wanted" in capsys.readouterr().err
