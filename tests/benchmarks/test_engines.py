"""A command can measure another engine: its figures are checked, its failures named, its processes ended."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import comparison, engines
from tests.benchmarks.engines import Figures, OtherEngine, parse_engine
from tests.benchmarks.processes import BenchmarkFailed

GOOD = '{"steps_per_s": 1900, "serial_p50_ms": 15.5, "note": "an fsync per step"}'


def engine(tmp_path: Path, program: str) -> OtherEngine:
    file = tmp_path / "measure it.py"
    file.write_text(program)
    return parse_engine(f"peer={shlex.join([sys.executable, str(file)])}")


def test_the_figures_that_a_command_prints_are_read(tmp_path: Path) -> None:
    peer = engine(tmp_path, f"import sys; print('working', file=sys.stderr); print('''{GOOD}''')")
    assert engines.measure(peer) == Figures(steps_per_s=1900, serial_p50_ms=15.5, note="an fsync per step")


def test_a_command_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    peer = engine(tmp_path, "import sys; sys.exit('no server there')")
    with pytest.raises(BenchmarkFailed, match="--engine peer: ended with 1: no server there"):
        engines.measure(peer)


def test_a_command_that_cannot_run_is_named() -> None:
    with pytest.raises(BenchmarkFailed, match=r"--engine peer: cannot be run: .*no-such-program"):
        engines.measure(OtherEngine("peer", "./no-such-program"))


def test_a_command_that_takes_too_long_is_ended_with_its_processes(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    peer = engine(
        tmp_path,
        "import pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(told)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)",
    )
    with pytest.raises(BenchmarkFailed, match="--engine peer: not done after 3 s"):
        engines.measure(peer, seconds=3)
    assert ends(int(told.read_text()))


def ends(pid: int) -> bool:
    """Return whether a process ends soon; init may reap it only after a moment."""
    deadline = time.monotonic() + 10
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("printed", "wrong"),
    [
        ("", "truncated"),
        ("1900 steps/s", "Expected `object`, got `int`"),
        ('{"serial_p50_ms": 15}', "missing required field `steps_per_s`"),
        ('{"steps_per_s": "many"}', r"Expected `float`, got `str` - at `\$.steps_per_s`"),
        ('{"steps_per_s": 0}', r"Expected `float` > 0.0 - at `\$.steps_per_s`"),
        ('{"steps_per_s": 1, "steps_per_m": 60}', "unknown field `steps_per_m`"),
    ],
)
def test_wrong_figures_are_explained(printed: str, wrong: str) -> None:
    with pytest.raises(BenchmarkFailed, match=f"--engine peer: prints no figures.*{wrong}"):
        engines.read("peer", printed.encode())


@pytest.mark.parametrize("text", ["peer", "=command", "peer=", "peer=sh -c 'open"])
def test_the_option_needs_a_name_and_a_command(text: str) -> None:
    with pytest.raises(ValueError, match=r"peer|command"):
        parse_engine(text)


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    ours = {"steps_per_s": 15_000, "serial_p50_ms": 30.0, "recovery_rows_per_s": None}
    theirs = Figures(steps_per_s=1_500, serial_p50_ms=15.0, recovery_rows_per_s=9, starts_per_s=7, note="as it came")
    compared = comparison.compared(ours, {"peer": theirs})
    assert compared["peer"]["ratios"] == {"steps_per_s": 10.0, "serial_p50_ms": 0.5}
    rows = {row.what: row for row in comparison.rows({"other_engines": compared})}
    assert rows["peer: steps/s"] == ("peer: steps/s", "1,500", "ours is 10.0 times as good; as it came")
    assert rows["peer: starts/s"] == ("peer: starts/s", "7.00", "as it came")
    assert "peer: serial p99, ms" not in rows


def test_every_process_of_a_measured_engine_is_ended(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    peer = engine(
        tmp_path,
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        f"pathlib.Path({str(told)!r}).write_text(str(child.pid))\n"
        f"print('''{GOOD}''')",
    )
    engines.measure(peer)
    assert ends(int(told.read_text()))
