"""Events for people, on a narrow screen, without colours, and on a screen without UTF-8."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from rich.console import Console, RenderableType

from ceremony.cli.event_views import events_table, timeline

WHY = "the tasks fit the sprint, but the third one needs a design first, and somebody who knows the payment provider"


def event(name: str, at: str = "2026-03-01T10:00:00.000Z", metadata: Any = None, **payload: Any) -> pb.HistoryEvent:
    return pb.HistoryEvent(
        subject=f"ceremony.{name}", at=at, payload=json.dumps(payload), metadata=json.dumps(metadata or {})
    )


EVENTS = [
    event("started", definition_name="review", current_state="TALK", requested_by="planner"),
    event(
        "step.executed",
        step_id="talk",
        status="COMPLETED",
        attempt=2,
        output={"deliberations": [{"role": "DEV"}, {"role": "QA"}]},
    ),
    event("transition.applied", from_state="TALK", to_state="ASK", trigger="talked"),
    event("gate.opened", step_id="ask", role="PO", message="Take the tasks?", deadline="2026-03-02T10:00:00Z"),
    event(
        "gate.decided",
        "2026-03-02T09:30:00.000Z",
        gate="ask",
        approved=True,
        decided_by=["anna", "ben"],
        role="PO",
        comment=WHY,
    ),
    event(
        "transition.applied",
        "2026-03-02T09:30:00.000Z",
        {"actor": "zoe", "role": "LEAD", "reason": "late"},
        from_state="ASK",
        to_state="DONE",
        trigger="go",
    ),
    event("completed", "2026-03-02T09:30:00.000Z", status="COMPLETED", current_state="DONE"),
]


def drawn(view: RenderableType, width: int = 80, **options: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, **options).print(view)
    return out.getvalue()


def folded(text: str) -> str:
    """The words of a text in order, whatever its lines; columns to the left of a cell are left out."""
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def test_the_timeline_shows_actor_and_reason_whole_on_80_columns() -> None:
    # specification 26.4
    text = drawn(timeline("c:s", EVENTS, ""))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert f"ask approved by anna, ben (PO): {WHY}" in folded(text)
    assert "DONE → from ASK (go) by zoe (LEAD): late" in folded(text)
    assert "talk COMPLETED in attempt 2: 2 proposals of DEV, QA" in text
    assert "ask asks PO, until 2026-03-02 10:00:00: Take the tasks?" in folded(text)
    assert "23 h 30 min" in text and "2026-03-02" in text


def test_the_table_shows_actor_and_reason_whole_on_80_columns() -> None:
    # specification 26.4
    text = drawn(events_table(EVENTS))
    assert all(len(line) <= 80 for line in text.splitlines())
    column = "".join(line[text.splitlines()[0].index("why") :].strip() + " " for line in text.splitlines())
    assert WHY in folded(column)
    for name in ("anna, ben", "planner", "zoe (LEAD)"):
        assert name in text


def test_a_pipe_gets_one_line_for_each_event() -> None:
    # specification 26.4
    assert len(drawn(timeline("c:s", EVENTS, ""), 1000).splitlines()) == 1 + len(EVENTS) + 3
    assert len(drawn(events_table(EVENTS), 1000).splitlines()) == 2 + len(EVENTS)


def test_no_color_has_no_colours_and_a_screen_without_utf8_no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 26.4
    view = timeline("c:s", EVENTS, "gone")
    assert "\x1b[33m" in drawn(view, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in drawn(view, force_terminal=True, color_system="standard")
    assert drawn(timeline("c:s", EVENTS, "gone", plain=True)).isascii()


def test_missing_events_are_drawn_at_the_top() -> None:
    # specification 26.3, 26.4
    lines = drawn(timeline("c:s", [], "its events are not in the log"), 1000).splitlines()
    assert [line.strip() for line in lines] == ["c:s", "┊ its events are not in the log"]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            event(
                "step.retrying",
                step_id="a",
                attempt=1,
                next_attempt_at="2026-03-01T10:00:05Z",
                error_code="boom",
                error_message="bang",
            ),
            "a attempt 1 failed, again at 10:00:05: boom: bang",
        ),
        (event("step.executed", step_id="a", status="FAILED", error_code="x", error_message="y"), "a FAILED: x: y"),
        (event("step.ordered", step_id="a", operation="retry", actor="o", reason="r"), "retry of a ordered by o: r"),
        (event("paused", actor="o", role="OPS", reason="r"), "paused by o (OPS): r"),
        (event("gate.decided", gate="a", approved=False, decided_by=["x"], comment="no"), "a rejected by x: no"),
        (event("failed", status="FAILED", current_state="S", error_code="x", error_message="y"), "FAILED in S: x: y"),
        (
            event("publish.completed", step_id="a", subject="b", stream="C", sequence=3, duplicate=True, late=True),
            "a published late to b (C 3), which was there already",
        ),
        (event("something.new", number=7, text="\x1b[2J"), "something.new number=7 text=�[2J"),
    ],
    ids=lambda value: value.subject if isinstance(value, pb.HistoryEvent) else "",
)
def test_each_event_has_its_words(found: pb.HistoryEvent, text: str) -> None:
    # specification 23.11
    assert text in drawn(timeline("c:s", [found], ""), 1000)


def test_the_seam_between_two_sources_and_each_hole_stand_between_the_events() -> None:
    """As a line of its own, in the table and in the timeline, on a screen without UTF-8 too."""
    # specification 26.4
    events = [event("started"), event("paused"), event("resumed")]
    events[0].missing_before = "the log keeps events for 30 days, and valkey the newest 10,000"
    for one, source in zip(events, ("valkey", "valkey", "log"), strict=True):
        one.source = source
    expected = ("may be missing", "started", "paused", "above are from valkey", "resumed")
    for view in (events_table(events), timeline("c:s", events, "", plain=True)):
        lines = [line for line in drawn(view, width=160).splitlines() if any(word in line for word in expected)]
        assert len(lines) == len(expected)
        assert all(word in line for word, line in zip(expected, lines, strict=True))
    assert "--" not in drawn(timeline("c:s", [event("started")], ""))
