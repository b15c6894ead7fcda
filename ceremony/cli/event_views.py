"""Events of one ceremony for people: in words, as a table, and as a timeline; actor and reason are never cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ceremony.cli.display import STYLES, local, local_time, table
from ceremony.cli.output import clean
from ceremony.cli.views import in_words, summary

if TYPE_CHECKING:
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

PREFIX = "ceremony."
# Fields that have a place of their own, or would repeat themselves on every line.
PLACED = frozenset(
    {"instance_id", "definition_name", "output", "actor", "role", "reason", "comment", "decided_by", "requested_by"}
)
# Seconds without an event that the timeline draws as a gap.
GAP_SECONDS = 60
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


class Marks(NamedTuple):
    """The characters of a timeline."""

    line: str
    gap: str
    step: str
    person: str
    state: str
    end: str
    arrow: str


DRAWN = Marks("│", "┊", "●", "◆", "▼", "■", "→")
PLAIN = Marks("|", ":", "*", "+", "v", "#", "->")


def who(fields: Mapping[str, Any]) -> str:
    """Return the actors of an event with their role: `anna, ben (PRODUCT_OWNER)`; empty where nobody acted."""
    decided = fields.get("decided_by")
    actors = decided if isinstance(decided, list) else [fields.get("actor") or fields.get("requested_by")]
    names = ", ".join(str(actor) for actor in actors if actor)
    role = fields.get("role") if names else ""
    return f"{names} ({role})" if role else names


def why(fields: Mapping[str, Any]) -> str:
    """Return the comment of a decision, or the reason of an operation."""
    return " ".join(str(fields.get("comment") or fields.get("reason") or "").split())


def fields_of(event: pb.HistoryEvent) -> dict[str, Any]:
    """Payload and metadata of an event together."""
    return {**json.loads(event.payload or "{}"), **json.loads(event.metadata or "{}")}


# -- the table


def events_table(events: Sequence[pb.HistoryEvent]) -> RenderableType:
    rows = []
    source = ""
    for event in events:
        rows += [("", "", "", Text(clean(note), style="yellow", overflow="fold")) for note in _notes(source, event)]
        source = event.source
        fields = fields_of(event)
        reason = why(fields)
        details = Text(clean(f"{reason}  " if reason else ""), style="bold", overflow="fold")
        details.append(clean(summary(_rest(fields))), style=STYLES.get(str(fields.get("status")), ""))
        rows.append((local(event.at), event.subject.removeprefix(PREFIX), who(fields), details))
    return table(("at", "event", "by", "why and details"), rows)


def _notes(source: str, event: pb.HistoryEvent) -> Iterator[str]:
    """Yield the lines before an event: where it comes from, if not from the source before, and what may be missing."""
    if source and source != event.source:
        yield f"-- those above are from {source}, those below from the {event.source} --"
    if event.missing_before:
        yield f"-- events may be missing here: {event.missing_before} --"


def _rest(fields: Mapping[str, Any]) -> str:
    """The remaining fields, on one line."""
    return " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in fields.items()
        if name not in PLACED and value not in ("", None)
    )


# -- the timeline


def timeline(instance_id: str, events: Sequence[pb.HistoryEvent], note: str, *, plain: bool = False) -> RenderableType:
    """A line per event down the time, with the states it passed and the gaps between. `note`: events that are missing.

    `plain`: with ASCII characters only.
    """
    marks = PLAIN if plain else DRAWN
    drawn = Table.grid(padding=(0, 1))
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    if note:
        drawn.add_row("", marks.gap, Text(clean(note), style="yellow"))
    before: datetime | None = None
    source = ""
    for event in events:
        for text in _notes(source, event):
            drawn.add_row("", marks.gap, Text(clean(text), style="yellow"))
        source = event.source
        now = _moment(event.at)
        for stamp, text in _between(before, now):
            drawn.add_row(Text(stamp, style="bold"), marks.gap, Text(text, style="bright_black"))
        before = now or before
        line = words(event, marks)
        drawn.add_row(local_time(event.at), Text(line.mark, style=line.style), line.text)
    return Group(Text(clean(instance_id), style="bold"), drawn)


class Line(NamedTuple):
    """One event in words."""

    mark: str
    style: str
    text: Text


def words(event: pb.HistoryEvent, marks: Marks) -> Line:
    """Return an event in words; actor and reason end the line."""
    fields = fields_of(event)
    name = event.subject.removeprefix(PREFIX)
    mark, style, said = _said(name, fields, marks)
    text = Text(clean(said), style=style, overflow="fold")
    actors, reason = who(fields), why(fields)
    if actors:
        text.append(clean(f" by {actors}"), style="bold")
    if reason:
        text.append(clean(f": {reason}"), style="italic")
    return Line(mark, style, text)


def _said(name: str, fields: Mapping[str, Any], marks: Marks) -> tuple[str, str, str]:
    """Return mark, style and words of an event, without its actor."""
    known = _WORDS.get(name)
    if known is None:
        return marks.step, "", f"{name} {summary(_rest(fields))}"
    mark, style, said = known
    style = STYLES.get(str(fields.get("status")), "") if style == _BY_STATUS else style
    return getattr(marks, mark), style, said(fields, marks)


def _transition(fields: Mapping[str, Any], marks: Marks) -> str:
    past = f", past failed {fields['past_failed_steps']}" if fields.get("past_failed_steps") else ""
    return f"{fields.get('to_state')}  {marks.arrow} from {fields.get('from_state')} ({fields.get('trigger')}){past}"


def _retrying(fields: Mapping[str, Any], _: Marks) -> str:
    again = f"attempt {fields.get('attempt')} failed, again at {local_time(str(fields.get('next_attempt_at')))}"
    return f"{fields.get('step_id')} {again}: {_error(fields)}"


def _opened(fields: Mapping[str, Any], _: Marks) -> str:
    deadline = f", until {local(str(fields['deadline']))}" if fields.get("deadline") else ""
    return f"{fields.get('step_id')} asks {fields.get('role')}{deadline}: {summary(str(fields.get('message')))}"


def _published(fields: Mapping[str, Any], _: Marks) -> str:
    late = " late" if fields.get("late") else ""
    twice = ", which was there already" if fields.get("duplicate") else ""
    where = f"{fields.get('subject')} ({fields.get('stream')} {fields.get('sequence')}){twice}"
    return f"{fields.get('step_id')} published{late} to {where}"


def _ended(fields: Mapping[str, Any], _: Marks) -> str:
    error = f": {_error(fields)}" if fields.get("error_code") else ""
    return f"{fields.get('status')} in {fields.get('current_state')}{error}"


def _executed(fields: Mapping[str, Any], _: Marks) -> str:
    attempt = fields.get("attempt")
    said = f"{fields.get('step_id')} {fields.get('status')}"
    if isinstance(attempt, int) and attempt > 1:
        said += f" in attempt {attempt}"
    if fields.get("error_code"):
        return f"{said}: {_error(fields)}"
    if fields.get("status") != "COMPLETED" or not fields.get("output"):
        return said
    output = json.dumps(fields["output"], ensure_ascii=False)
    short = in_words(output)
    return said if short is output else f"{said}: {summary(short)}"


def _error(fields: Mapping[str, Any]) -> str:
    return f"{fields.get('error_code')}: {summary(str(fields.get('error_message') or ''))}"


_BY_STATUS = "by status"
# By the last part of the subject: mark, style and words.
_WORDS: Mapping[str, tuple[str, str, Callable[[Mapping[str, Any], Marks], str]]] = {
    "started": ("state", "bold", lambda f, _: f"{f.get('current_state')}  {f.get('definition_name')} started"),
    "transition.applied": ("state", "bold", _transition),
    "step.executed": ("step", _BY_STATUS, _executed),
    "step.retrying": ("step", "yellow", _retrying),
    "step.ordered": ("person", "magenta", lambda f, _: f"{f.get('operation')} of {f.get('step_id')} ordered"),
    "gate.opened": ("person", "yellow", _opened),
    "gate.decided": (
        "person",
        "bold",
        lambda f, _: f"{f.get('gate')} {'approved' if f.get('approved') else 'rejected'}",
    ),
    "publish.requested": ("step", "", lambda f, _: f"{f.get('step_id')} publishes to {f.get('subject')}"),
    "publish.completed": ("step", "", _published),
    "paused": ("person", "magenta", lambda _, __: "paused"),
    "resumed": ("person", "magenta", lambda _, __: "resumed"),
    **dict.fromkeys(("completed", "failed", "timed_out", "cancelled"), ("end", _BY_STATUS, _ended)),
}


def _between(before: datetime | None, now: datetime | None) -> Iterator[tuple[str, str]]:
    """Yield what stands between two events: the date where it changes, and how long nothing happened."""
    if now is None:
        return
    if before is None or before.date() != now.date():
        yield now.date().isoformat(), ""
    if before is not None and (seconds := int((now - before).total_seconds())) >= GAP_SECONDS:
        yield "", _duration(seconds)


def _duration(seconds: int) -> str:
    """A duration in its two largest units: `2 h 5 min`."""
    parts = []
    for size, unit in UNITS:
        if seconds >= size:
            parts.append(f"{seconds // size} {unit}")
            seconds %= size
    return " ".join(parts[:2])


def _moment(iso: str) -> datetime | None:
    try:
        return datetime.fromisoformat(iso).astimezone()
    except ValueError:
        return None
