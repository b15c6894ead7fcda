"""The long form continues after its last finished run, and its table shows all runs kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.faults import long, report
from tests.faults.plan import LONG, RUNS, Fault
from tests.faults.run import Struck, Verdict


def result(fault: Fault, seed: int, *, lost: int = 0) -> dict[str, Any]:
    verdict = Verdict(
        fault=fault,
        struck=[Struck(1.0, 2.0, 3.0 + seed), Struck(1.0, None, 1.0)],
        starts=100,
        ended={"COMPLETED": 100},
        messages=1000,
        longest_start_pause=1.0,
        longest_event_pause=1.0,
        drain=1.0,
        repeated_calls=0,
        lost=lost,
        doubled=0,
        violations=["one was lost"] * lost,
    )
    return {**report.data(LONG, [verdict], 0.0), "fault": fault.name}


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Fault, int]]:
    """Runs that are recorded instead of done for hours; the fourth is broken off."""
    done: list[tuple[Fault, int]] = []

    def one(fault: Fault, seed: int, *_: Any) -> dict[str, Any]:
        done.append((fault, seed))
        if len(done) == 4:
            raise KeyboardInterrupt
        return result(fault, seed - long.FIRST_SEED)

    monkeypatch.setattr(long, "one", one)
    return done


def test_a_second_call_does_only_the_missing_runs(done: list[tuple[Fault, int]], tmp_path: Path) -> None:
    """After a break in the fourth run, it repeats that run and no other."""
    faults, seed = [Fault.KILL, Fault.NATS], long.FIRST_SEED
    with pytest.raises(KeyboardInterrupt):
        long.run_missing(tmp_path, faults, 3, None, print)
    assert len(list(tmp_path.glob("*.json"))) == 3
    long.run_missing(tmp_path, faults, 3, None, print)
    assert done[:4] == [(fault, seed + n) for n in (0, 1) for fault in faults]
    assert done[4:] == [(Fault.NATS, seed + 1), *((fault, seed + 2) for fault in faults)]
    long.run_missing(tmp_path, faults, 3, None, print)
    assert len(done) == 7


def test_kills_come_at_fifty_moments() -> None:
    assert RUNS[Fault.KILL] * LONG.kills >= 50


def test_the_table_adds_up_the_runs_kept(tmp_path: Path) -> None:
    """Recovery times are of blows with a recovery; one unsound run shows, with its seed."""
    for n in range(3):
        (tmp_path / f"nats-{n}.json").write_text(json.dumps(result(Fault.NATS, n, lost=n // 2)))
    found = long.read(tmp_path)
    assert long.recoveries(found[Fault.NATS]) == [3.0, 4.0, 5.0]
    console = Console(record=True, width=200)
    long.show(console, found)
    said = console.export_text()
    row = next(line for line in said.splitlines() if str(Fault.NATS) in line)
    cells = [cell.strip() for cell in row.replace("│", "|").strip("| ").split("|")]
    assert cells == [str(Fault.NATS), "3", "6", "300", "1", "0", "4.0", "5.0", "2 of 3"]
    assert "seed 0: one was lost" in said
    long.plot(tmp_path / "plot.svg", found)
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_the_verdict_is_sound_only_when_all_runs_are_there_and_sound() -> None:
    """A missing run and an unsound one are named with their fault."""
    sound = [result(Fault.NATS, n) for n in range(3)]
    assert long.verdict({Fault.NATS: sound}, [Fault.NATS], None) == (
        "SOUND: 3 runs of 1 faults, 300 starts, none lost, none doubled"
    )
    assert long.verdict({}, [Fault.NATS], 2).startswith("NOT COMPLETE: 2 of 'NATS down'")
    assert long.verdict({Fault.NATS: sound}, [Fault.NATS, Fault.RAY], None).startswith("NOT COMPLETE: 3 of 'Ray")
    wrong = [*sound[:2], result(Fault.NATS, 2, lost=1)]
    assert long.verdict({Fault.NATS: wrong}, [Fault.NATS], None) == "NOT SOUND: 1 of 'NATS down'"


def test_logs_are_kept_if_a_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each run has its own folder, without files of an earlier try of the same run."""

    def one(fault: Fault, seed: int, *rest: Any) -> dict[str, Any]:
        folder = rest[-1]
        assert not list(folder.iterdir())
        (folder / "log").write_text(fault.name)
        return result(fault, seed - long.FIRST_SEED)

    monkeypatch.setattr(long, "one", one)
    left = tmp_path / "kept" / "nats-0" / "left"
    left.mkdir(parents=True)
    long.run_missing(tmp_path / "results", [Fault.NATS], 2, None, print, tmp_path / "kept")
    assert [log.relative_to(tmp_path) for log in sorted(tmp_path.rglob("log"))] == [
        Path("kept/nats-0/log"),
        Path("kept/nats-1/log"),
    ]
