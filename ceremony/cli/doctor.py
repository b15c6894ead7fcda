"""The verb `doctor`: stuck and waiting ceremonies, each with reason and remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from ceremony.cli.connection import ServerOption, call
from ceremony.cli.display import console, local, pairs, table
from ceremony.cli.display import status as coloured
from ceremony.cli.errors import CommandFailed
from ceremony.cli.output import Format, OutputOption, clean, emit_data

if TYPE_CHECKING:
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

STYLES = {
    "stuck": "bold red",
    "overdue": "bold red",
    "failed": "red",
    "paused": "magenta",
    "waiting_for_human": "yellow",
    "moving": "cyan",
    "ended": "green",
    "error": "bold red",
    "warning": "yellow",
    "ok": "green",
}
# Verdicts whose ceremonies are reported in full also when no ID was given.
IN_FULL = frozenset({"stuck", "overdue"})


def doctor(
    instance_id: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="One ceremony. Default: all, and the engine.", show_default=False),
    ] = None,
    server: ServerOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show stuck and waiting ceremonies, with remedies. Exit 1 if one is stuck or not served."""
    found = call(server, lambda client: client.diagnose(instance_id))
    if output is not Format.TABLE:
        emit_data(diagnosis_data(found), output)
    elif instance_id:
        console().print(Group(*ceremony_report(found.ceremonies[0])))
    else:
        console().print(Group(*engine_report(found)))
    if not found.healthy:
        raise CommandFailed


def diagnosis_data(found: pb.DiagnoseResponse) -> dict[str, Any]:
    """The whole response, with the names of the proto."""
    from google.protobuf.json_format import MessageToDict

    data: dict[str, Any] = MessageToDict(
        found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return data


def engine_report(found: pb.DiagnoseResponse) -> Iterator[RenderableType]:
    """Report on the engine: verdict, neighbours, findings, and the ceremonies worth a look."""
    errors = sum(finding.severity == "error" for finding in found.findings)
    warnings = len(found.findings) - errors
    if errors:
        yield Text(f"{errors} thing{'s stand' if errors > 1 else ' stands'} still", style="bold red")
    else:
        more = f"; {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
        yield Text(f"nothing is stuck{more}", style="bold green")
    yield ""
    yield pairs(
        {
            "neighbours": _neighbours(found.neighbours),
            "partitions": _partitions(found),
            "ceremonies": _counts(found.verdicts, STYLES) or "none",
            "by status": _counts(found.statuses, {}),
            "dead letters": _counts(found.dead_letters, {}) or "none",
            "not looked at": found.incomplete,
        }
    )
    if found.findings:
        yield ""
        yield from _findings(found)
    yield from _ceremonies(found)


def _findings(found: pb.DiagnoseResponse) -> Iterator[RenderableType]:
    for finding in found.findings:
        style = STYLES[finding.severity]
        head = Text(f"{finding.severity} {finding.code}", style=style)
        head.append(clean(f"  {finding.subject}: {finding.message}"), style="default")
        yield head
        yield Padding(Text(clean(f"→ {finding.todo}"), style="cyan"), (0, 0, 0, 4))


def _ceremonies(found: pb.DiagnoseResponse) -> Iterator[RenderableType]:
    rest = []
    for one in found.ceremonies:
        if one.verdict in IN_FULL:
            yield ""
            yield from ceremony_report(one)
        elif one.verdict != "moving":
            rest.append(one)
    if rest:
        yield ""
        rows = [
            (
                one.instance_id,
                _verdict(one.verdict),
                local(one.since),
                one.current_state,
                one.message,
                _todo(one),
            )
            for one in rest
        ]
        yield table(("ceremony", "verdict", "since", "state", "why", "remedy"), rows)
        yield Text("ceremony doctor ID shows one in full", style="bright_black")


def ceremony_report(one: pb.CeremonyDiagnosis) -> Iterator[RenderableType]:
    """Report on one ceremony: verdict, waits, ways out with each guard's reason, and remedies."""
    yield pairs(
        {
            "ceremony": Text(clean(one.instance_id), style="bold"),
            "definition": one.definition_name,
            "verdict": _verdict(one.verdict),
            "status": coloured(one.status),
            "state": one.current_state,
            "since": local(one.since),
            "why": one.message,
        }
    )
    if one.waits:
        yield ""
        rows = [(wait.kind, wait.subject, wait.message, local(wait.since), local(wait.due)) for wait in one.waits]
        yield table(("waits for", "", "why", "since", "until"), rows)
    if one.ways_out:
        yield ""
        yield table(("way out", "to", "guard", "", "reason"), list(_ways(one)))
    if one.todo:
        yield ""
        yield from (Text(clean(f"→ {line}"), style="cyan") for line in one.todo)


def _ways(one: pb.CeremonyDiagnosis) -> Iterator[tuple[str | Text, ...]]:
    for way in one.ways_out:
        for number, guard in enumerate(way.guards):
            head = (way.trigger, way.to_state) if number == 0 else ("", "")
            holds = Text("holds", style="green") if guard.holds else Text("does not hold", style="yellow")
            yield *head, guard.guard or "(its steps)", holds, guard.reason


def _todo(one: pb.CeremonyDiagnosis) -> str:
    return "\n".join(one.todo)


def _verdict(word: str) -> Text:
    return Text(clean(word), style=STYLES.get(word, ""))


def _neighbours(states: Iterable[pb.NeighbourState]) -> Text:
    """Return each neighbour with its state, and the latency of its last probe."""
    text = Text()
    for one in states:
        text.append(("  " if text else "") + clean(f"{one.name} {one.state}"), style=_style(one))
        if one.HasField("latency_ms"):
            text.append(f" {one.latency_ms:.1f} ms", style="bright_black")
    return text


def _style(one: pb.NeighbourState) -> str:
    return "green" if one.state == "ok" else "bold red"


def _partitions(found: pb.DiagnoseResponse) -> str:
    counts: dict[str, int] = {}
    for one in found.partitions:
        counts[one.state] = counts.get(one.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _counts(counts: Mapping[str, int], styles: Mapping[str, str]) -> Text:
    text = Text()
    for name in sorted(counts, key=lambda name: -counts[name]):
        text.append(("  " if text else "") + f"{counts[name]} ")
        text.append_text(Text(clean(name), style=styles[name]) if name in styles else coloured(name))
    return text
