"""Ceremonies, dead letters and definitions as plain data for programs, and as tables for people."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from ceremony.cli.display import local, pairs, status, table
from ceremony.cli.output import Format, clean, emit_data, say

if TYPE_CHECKING:
    from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

LONGEST_CELL = 100


def ceremony_data(found: pb.PlanningCeremonyInstance) -> dict[str, Any]:
    """A whole ceremony: outputs as values, steps as objects, times in UTC."""
    return {
        "instance_id": found.instance_id,
        "ceremony_id": found.ceremony_id,
        "story_id": found.story_id,
        "definition_name": found.definition_name,
        "definition_hash": found.definition_hash,
        "status": found.status,
        "current_state": found.current_state,
        "version": found.version,
        "correlation_id": found.correlation_id,
        "created_at": found.created_at,
        "updated_at": found.updated_at,
        "error_code": found.error_code,
        "error_message": found.error_message,
        "waiting_for": list(found.waiting_for),
        "open_gates": [gate_data(gate) for gate in found.open_gates],
        "steps": {step_id: step_data(found, step_id) for step_id in sorted(found.step_status)},
    }


def step_data(found: pb.PlanningCeremonyInstance, step_id: str) -> dict[str, Any]:
    output = found.step_outputs.get(step_id)
    return {
        "status": found.step_status[step_id],
        "attempt": found.step_attempts.get(step_id, 0),
        "error": found.step_errors.get(step_id, ""),
        "output": None if output is None else json.loads(output),
    }


def gate_data(gate: pb.OpenGate) -> dict[str, Any]:
    return {
        "gate": gate.step_id or gate.guard,
        "kind": "step" if gate.step_id else "guard",
        "role": gate.role,
        "message": gate.message,
        "visit": gate.visit,
        "approvals": gate.approvals,
        "quorum": gate.quorum,
        "deadline": gate.deadline,
    }


def ceremony_view(found: pb.PlanningCeremonyInstance) -> RenderableType:
    """A ceremony for people: its state, its waits, and its steps."""
    head = pairs(
        {
            "ceremony": Text(clean(found.instance_id), style="bold"),
            "definition": f"{found.definition_name} ({found.definition_hash[:12]})",
            "status": status(found.status),
            "state": found.current_state,
            "correlation": found.correlation_id if found.correlation_id != found.instance_id else "",
            "started": local(found.created_at),
            "changed": f"{local(found.updated_at)} (version {found.version})",
            "failed": f"{found.error_code}: {found.error_message}" if found.error_code else "",
            "waiting for": "\n".join(found.waiting_for),
        }
    )
    parts: list[RenderableType] = [head]
    if found.step_status:
        parts += ["", steps_view(found)]
    if found.open_gates:
        parts += ["", *(Text(line, style="yellow") for line in gate_hints(found))]
    return Group(*parts)


def steps_view(found: pb.PlanningCeremonyInstance) -> RenderableType:
    rows = []
    for step_id, word in sorted(found.step_status.items()):
        attempt = found.step_attempts.get(step_id, 0)
        error = found.step_errors.get(step_id)
        detail = Text(clean(error), style="red") if error else one_line(found.step_outputs.get(step_id, ""))
        rows.append((step_id, status(word), str(attempt or ""), detail))
    return table(("step", "status", "attempt", "output or error"), rows, right=("attempt",))


def one_line(output: str) -> Text:
    """An output in words on one line, cut at the edge of the screen; `-o json` has all of it."""
    return Text(clean(summary(in_words(output))), no_wrap=True, overflow="ellipsis")


def in_words(output: str) -> str:
    """An output of a known shape in words, any other unchanged."""
    words = output
    match json.loads(output or '""'):
        case {"deliberations": [*proposals]}:
            roles = sorted({str(one.get("role")) for one in proposals})
            words = f"{len(proposals)} proposals of {', '.join(roles)}"
        case {"tasks": [*tasks], "task_id": _}:
            words = f"{len(tasks)} tasks"
        case {"aggregated_result": result}:
            words = json.dumps(result, ensure_ascii=False)
        case {"waiting": True, "message": message}:
            words = str(message)
        case {"approved": bool() as approved, "decided_by": who, **rest}:
            comment = f": {rest['comment']}" if rest.get("comment") else ""
            words = f"{'approved' if approved else 'rejected'} by {who}{comment}"
        case {"published": True, "subject": subject}:
            words = f"published to {subject}"
    return words


def summary(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_CELL else line[: LONGEST_CELL - 1] + "…"


def gate_hints(found: pb.PlanningCeremonyInstance) -> list[str]:
    """One command line to copy for each open gate."""
    hints = []
    for gate in found.open_gates:
        role = f" --role {gate.role}" if gate.role else ""
        hints.append(clean(f"ceremony approve {found.instance_id} {gate.step_id or gate.guard}{role}"))
    return hints


def report_change(done: str, after: pb.PlanningCeremonyInstance, output: Format) -> None:
    """Print the ceremony after a change; `done` names the change."""
    if output is Format.TABLE:
        say(f"{done}: {after.instance_id} is {after.status} in {after.current_state}")
    else:
        emit_data(ceremony_data(after), output)


def list_view(found: Sequence[pb.PlanningCeremonyInstance]) -> RenderableType:
    rows = [
        (
            one.instance_id,
            one.definition_name,
            one.current_state,
            status(one.status),
            local(one.created_at),
            Text(clean("; ".join(one.waiting_for) or one.error_code), no_wrap=True, overflow="ellipsis"),
        )
        for one in found
    ]
    return table(("ceremony", "definition", "state", "status", "started", "waiting for"), rows)


def dead_letter_data(letter: pb.DeadLetter) -> dict[str, Any]:
    return {
        "origin": letter.origin,
        "partition": letter.partition,
        "offset": letter.offset,
        "code": letter.code,
        "message": letter.message,
        "timestamp": letter.timestamp,
        "size": letter.size,
        "key": letter.key,
    }


def dead_letters_view(letters: Sequence[pb.DeadLetter]) -> RenderableType:
    rows = [
        (
            f"{letter.origin}/{letter.partition}/{letter.offset}",
            local(letter.timestamp),
            letter.code,
            letter.message,
            letter.key,
            str(letter.size),
        )
        for letter in letters
    ]
    return table(("origin", "set aside", "code", "message", "key", "bytes"), rows, right=("bytes",))


def shown_data(found: pb.ShowDeadLetterResponse) -> dict[str, Any]:
    """A whole dead letter. Bytes that are not UTF-8 are base64, under a name ending in `_base64`."""
    return {
        **dead_letter_data(found.dead_letter),
        "headers": [{"name": header.name, **readable("value", header.value)} for header in found.headers],
        **readable("body", found.body),
        "body_from": found.body_from,
        "replays": [replay_data(one) for one in found.replays],
    }


def readable(name: str, value: bytes) -> dict[str, str]:
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def replay_data(one: pb.Replay) -> dict[str, Any]:
    return {
        "at": one.at,
        "actor": one.actor,
        "reason": one.reason,
        "request_id": one.request_id,
        "sent_to": one.sent_to,
    }


def dead_letter_view(found: pb.ShowDeadLetterResponse) -> RenderableType:
    """A dead letter for people, with a JSON body indented."""
    letter = found.dead_letter
    head = pairs(
        {
            "origin": f"{letter.origin}/{letter.partition}/{letter.offset}",
            "set aside": local(letter.timestamp),
            "code": Text(clean(letter.code), style="bold red"),
            "message": letter.message,
            "key": letter.key,
            "bytes": f"{letter.size} (body from: {found.body_from})",
            "headers": "\n".join(f"{one.name}: {one.value.decode(errors='backslashreplace')}" for one in found.headers),
            "sent back": "\n".join(
                f"{local(one.at)} by {one.actor} to {one.sent_to}" + (f": {one.reason}" if one.reason else "")
                for one in found.replays
            ),
        }
    )
    return Group(head, "", Text(clean(_body(found.body))))


def _body(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return body.decode(errors="backslashreplace")


def definition_data(one: pb.DefinitionSummary) -> dict[str, Any]:
    return {"name": one.name, "hash": one.hash, "valid": one.valid, "problems": list(one.problems)}


def definitions_view(found: Sequence[pb.DefinitionSummary]) -> RenderableType:
    rows = [
        (
            one.name,
            Text("valid", style="green") if one.valid else Text("invalid", style="bold red"),
            one.hash[:12],
            "\n".join(one.problems),
        )
        for one in found
    ]
    return table(("definition", "", "hash", "problems"), rows)
