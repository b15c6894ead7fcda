"""The parts of the demo one by one: its starts, its counts, and verdicts of failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ceremony.definition_files import check
from ceremony.demo.plan import PlannedStart, inputs_for, plan
from ceremony.demo.report import DemoReport, Missing, percentile
from ceremony.demo.stream import Seen, Tally
from ceremony.dev.stack import locked, port_of, read_file
from ceremony.errors import DevError
from steps.registry import all_kinds
from tables.definition import Definition
from tests.dev_process import CEREMONIES

RUN = "demo-1-"
ONE = f"{RUN}00001:story-1"


def definitions() -> list[Definition]:
    return [found.definition for found in check([CEREMONIES], all_kinds()) if found.definition is not None]


def seen(subject: str, sequence: int, *, instance: str = ONE, key: str | None = None, **payload: Any) -> Seen:
    return Seen(
        sequence=sequence,
        subject=subject,
        message_id=key or f"{instance}/{sequence}",
        at_ms=1000.0 * sequence,
        envelope={"correlation_id": instance, "payload": payload},
    )


def whole_run() -> list[Seen]:
    """Messages of one ceremony from its start to its end."""
    return [
        seen("ceremony.started", 1),
        seen("ceremony.step.executed", 2),
        seen("ceremony.gate.opened", 3, step_id="gate"),
        seen("ceremony.gate.decided", 4, step_id="gate"),
        seen("ceremony.step.executed", 5),
        seen("ceremony.completed", 6),
    ]


def report(messages: Iterable[Seen], **changed: Any) -> DemoReport:
    tally = Tally(RUN)
    for message in messages:
        tally.add(message)
    given: dict[str, Any] = {
        "count": 1,
        "accepted": [PlannedStart("review", f"{RUN}00001", "story-1", {})],
        "refused": {},
        "tally": tally,
        "missing": [],
        "seconds": 2.0,
        "log": "sqlite:///x",
        "folder": "/x",
        "kept": False,
        "decisions": 1,
        "triggers": 0,
    }
    return DemoReport(**{**given, **changed})


def test_half_of_a_mix_is_the_backlog_review() -> None:
    """The other half is spread evenly, and every id is unique."""
    starts = plan(80, definitions(), RUN)
    names = Counter(start.definition for start in starts)
    assert names.pop("backlog_review") == 40
    assert len(names) == len(definitions()) - 1
    assert max(names.values()) - min(names.values()) <= 1
    assert len({start.instance_id for start in starts}) == 80


def test_named_definitions_get_equal_shares() -> None:
    """Without the backlog review no definition is preferred."""
    wanted = [one for one in definitions() if one.name in ("approval", "planning")]
    names = Counter(start.definition for start in plan(10, wanted, RUN))
    assert names == {"approval": 5, "planning": 5}


def test_every_required_input_is_given(tmp_path: Path) -> None:
    """An input of an unknown definition is a text."""
    for definition in definitions():
        own = {"story_id", "ceremony_id"}
        assert set(definition.required_inputs) - own <= inputs_for(definition, 3).keys()
    text = (CEREMONIES / "approval.yaml").read_text().replace("name: approval", "name: unforeseen")
    (tmp_path / "unforeseen.yaml").write_text(text + "\ninputs: {required: [who_knows]}\n")
    (found,) = check([tmp_path], all_kinds())
    assert found.definition is not None, found.problems
    assert isinstance(inputs_for(found.definition, 0)["who_knows"], str)


def test_a_whole_run_adds_up() -> None:
    """The report has the steps, the events and the time from start to end, as in the stream."""
    found = report(whole_run())
    assert found.ok
    row = found.definitions["review"]
    assert (row.started, row.ends["completed"], row.steps, row.p50_ms) == (1, 1, 2, 5000.0)
    assert found.data()["events"]["ceremony.step.executed"] == 2
    assert found.tally.waiting == {}


def test_messages_of_other_runs_are_not_counted() -> None:
    """A used folder holds messages of earlier runs."""
    found = report([*whole_run(), seen("ceremony.completed", 7, instance="demo-0-00001:story-1")])
    assert found.ok
    assert (found.tally.foreign, found.tally.events["ceremony.completed"]) == (1, 1)


@pytest.mark.parametrize(
    ("messages", "changed", "where"),
    [
        ([*whole_run(), seen("ceremony.completed", 7)], {}, "ended_twice"),
        ([*whole_run(), seen("ceremony.failed", 7)], {}, "ended_twice"),
        ([*whole_run(), seen("ceremony.step.executed", 7, key=f"{ONE}/2")], {}, "message_ids_twice"),
        (whole_run()[:5], {"missing": [Missing(ONE, "review", "RUNNING", ["step x: asked"])]}, "missing"),
        (whole_run(), {"refused": {"demo-1-00002:story-2": "already_exists: other content"}}, "refused"),
        (whole_run(), {"complaints": ["the engine ended too early"]}, "complaints"),
    ],
    ids=["ended twice", "ended otherwise too", "an id twice", "missing", "refused", "a complaint"],
)
def test_each_discrepancy_is_found(messages: list[Seen], changed: dict[str, Any], where: str) -> None:
    """The run failed, and the report names the place."""
    found = report(messages, **changed)
    assert not found.ok
    assert found.data()["ok"] is False
    assert found.data()[where]


def test_fewer_starts_than_requested_are_a_failure() -> None:
    """This is so even if none was refused, because the engine ended before they were made."""
    assert not report(whole_run(), count=2).ok


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentiles_are_nearest_ranks(share: float, expected: float) -> None:
    """Each is a measured value, or None without values."""
    assert percentile(range(1, 101), share) == expected
    assert percentile([7.0], share) == 7.0
    assert percentile([], share) is None


def test_a_folder_is_locked_until_it_is_released(tmp_path: Path) -> None:
    """It is a lock of the system, which no crash leaves behind."""
    with locked(tmp_path / "a"), pytest.raises(DevError, match="folder_in_use"), locked(tmp_path / "a"):
        pass
    with locked(tmp_path / "a"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(DevError, match="folder_unusable"), locked(tmp_path / "file"):
        pass


def test_a_broken_dev_file_counts_as_missing(tmp_path: Path) -> None:
    """It only holds the ports of the last run."""
    assert read_file(tmp_path) == {}
    for text in ("", "[]", "{"):
        (tmp_path / "dev.json").write_text(text)
        assert read_file(tmp_path) == {}
    assert [port_of(address) for address in ("http://127.0.0.1:80", "nats://h:4222", "", None, "h:99999")] == [
        80,
        4222,
        0,
        0,
        0,
    ]
