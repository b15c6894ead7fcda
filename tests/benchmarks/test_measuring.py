"""Percentiles, spreads, profiles, CPU times, layouts, options and metrics of the benchmark."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tables.instance import CeremonyStatus, StepStatus, decode_instance
from tests.benchmarks import recovery, report
from tests.benchmarks.layouts import ALL_ROLES, Layout, parse_layouts
from tests.benchmarks.meter import CpuMeter, cpu_seconds
from tests.benchmarks.plan import parsed, plan_of
from tests.benchmarks.processes import summed
from tests.benchmarks.profiler import read_profile
from tests.benchmarks.serial import percentile

LOOP = "run (uvloop/__init__.py:92);Runner.run (asyncio/runners.py:118)"


@pytest.mark.parametrize(("count", "percent", "expected"), [(1, 99, 1), (100, 99, 99), (100, 50, 50), (200, 99, 198)])
def test_a_percentile_is_the_value_of_the_nearest_rank(count: int, percent: int, expected: int) -> None:
    assert percentile([float(value) for value in range(count, 0, -1)], percent) == expected


def test_a_spread_has_the_median_and_both_ends() -> None:
    assert report.spread([3.0, 9.0, 4.0]) == (4.0, 3.0, 9.0, 3)
    assert str(report.spread([3000.0, 9000.0, 4000.0])) == "4,000  (3,000 to 9,000, 3 runs)"
    assert str(report.spread([4000.0])) == "4,000  (1 run)"


def test_a_profile_counts_the_event_loop_by_function_and_by_owner(tmp_path: Path) -> None:
    file = tmp_path / "profile.raw"
    file.write_text(
        f"main (x.py:1);{LOOP};decide (tables/fold/decide.py:60);settle (tables/fold/transitions.py:33) 3\n"
        f"main (x.py:1);{LOOP};decide (tables/fold/decide.py:61) 1\n"
        f"main (x.py:1);{LOOP};send (aiokafka/client.py:474);write (asyncio/streams.py:3) 4\n"
        f"main (x.py:1);{LOOP} 2\n"
        "Thread._bootstrap (threading.py:1002);Thread.run (threading.py:982) 90\n"
    )
    profile = read_profile(file)
    assert profile.samples == 10
    assert profile.by_owner == {
        "tables (the fold)": 0.4,
        "asyncio": 0.4,
        "uvloop and the kernel: sockets, callbacks": 0.2,
    }
    assert profile.self_time["settle (tables/fold/transitions.py)"] == 0.3
    assert profile.total_time["decide (tables/fold/decide.py)"] == 0.4


def test_the_meter_returns_the_cpu_time_of_a_span() -> None:
    with CpuMeter({"us": os.getpid()}).running() as meter:
        idle = time.time()
        time.sleep(0.2)
        began = time.time()
        busy_until = cpu_seconds(os.getpid()) + 0.3
        while cpu_seconds(os.getpid()) < busy_until:
            pass
        ended = time.time()
        time.sleep(0.1)
    assert meter.between(began, ended)["us"] == pytest.approx(0.3, abs=0.15)
    assert meter.between(idle, began)["us"] < 0.15


def test_a_layout_is_a_number_of_workers_or_roles_apart() -> None:
    two, apart = parse_layouts("2,engine+bridge+bridge")
    assert two == Layout("2", (ALL_ROLES, ALL_ROLES))
    assert (two.members("engine"), two.members("bridge"), str(two)) == (2, 2, "2 workers")
    assert apart.roles == ("engine", "bridge", "bridge")
    assert (apart.members("engine"), apart.members("bridge")) == (1, 2)
    assert str(apart) == "3 workers (engine+bridge+bridge)"
    assert str(parse_layouts("1")[0]) == "1 worker"


@pytest.mark.parametrize("text", ["", "0", "17", "two", "engine", "bridge+bridge", "engine+projector", "1,1"])
def test_a_layout_that_could_not_finish_a_ceremony_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text or "''")):
        parse_layouts(text)


def test_without_options_one_and_two_workers_are_measured_with_every_append_synced() -> None:
    plan = plan_of(parsed([], ""))
    assert [layout.name for layout in plan.layouts] == ["1", "2"]
    assert plan.flush
    assert not plan_of(parsed(["--no-flush"], "")).flush


def test_a_wrong_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(["--workers", "engine"], "")
    assert "'engine': a number of workers up to 16, or roles such as engine+bridge" in capsys.readouterr().err


def test_more_engines_than_partitions_are_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(["--workers", "2,3", "--partitions", "2"], "")
    assert "3 engines cannot share 2 partitions" in capsys.readouterr().err


def test_metrics_are_summed_over_their_labels() -> None:
    text = """# TYPE steps counter
steps_total{status="COMPLETED"} 40
steps_total{status="FAILED"} 2
steps_created{status="FAILED"} 1.7e9
# TYPE seconds histogram
seconds_bucket{le="1.0"} 3
seconds_bucket{le="+Inf"} 4
seconds_count 4
seconds_sum 2.5
# TYPE owned gauge
owned 3
"""
    assert summed(text) == {"steps_total": 42, "seconds_count": 4, "seconds_sum": 2.5, "owned": 3}


def test_recovered_rows_belong_to_ceremonies_whose_first_step_is_requested() -> None:
    one, other = recovery.running_rows("r", 2)
    row = decode_instance(one.value)
    assert (one.key, row.instance_id, row.status) == (b"r-0:S", "r-0:S", CeremonyStatus.RUNNING)
    assert row.steps["say_1"].status is StepStatus.IN_PROGRESS
    assert row.timers.keys() == {"ceremony_max", "timeout/say_1"}
    assert other.key == b"r-1:S"


def test_recovery_lasts_from_the_assignment_until_the_last_partition_is_at_hand() -> None:
    seconds = ([2.0], [3.0], [0.9, 1.0, 5.0], [0.4])
    empty, full, taken, driver = (report.spread(values) for values in seconds)
    run = recovery.RecoveryRun(100_000, 900, empty, full, taken, driver, 9.0, 2000.0)
    assert run.rows_per_s == pytest.approx(100_000)
    assert run.driver_rows_per_s == pytest.approx(250_000)
