"""A run seen from outside, as plain data: messages, definitions, accepted starts, instances."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the stream CEREMONY."""

    sequence: int
    subject: str
    message_id: str
    """Header `Nats-Msg-Id`; empty without one."""
    envelope: Any
    """Decoded JSON; None if it is not JSON."""


@dataclass(frozen=True, slots=True)
class Start:
    """A start that was answered `accepted`."""

    instance_id: str
    definition_name: str
    correlation_id: str = ""
    """The requested one; empty if none was given."""


@dataclass(frozen=True, slots=True)
class Instance:
    """The checked fields of a ceremony's row in a gRPC answer (specification 14.1)."""

    instance_id: str
    definition_name: str
    current_state: str
    status: str
    correlation_id: str
    step_status: Mapping[str, str] = field(default_factory=dict)
    definition_hash: str = ""
    version: int = 0
    open_gates: Sequence[str] = ()
    """Step ids or names of guards."""
    waiting_for: Sequence[str] = ()
    step_outputs: Mapping[str, str] = field(default_factory=dict)
    """JSON by step id."""


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance in a read model (specification chapter on read models)."""

    instance_id: str
    definition_name: str = ""
    definition_hash: str = ""
    current_state: str = ""
    status: str = ""
    version: int = 0
    correlation_id: str = ""
    step_status: Mapping[str, str] = field(default_factory=dict)
    step_outputs: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    """A set, key or relation that does not fit the instance."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the checker reads."""

    messages: Sequence[Message]
    definitions: Mapping[str, str]
    """YAML text by name."""
    starts: Sequence[Start]
    instances: Sequence[Instance]
    stores: Mapping[str, Sequence[StoredInstance]] = field(default_factory=dict)
    """The instances of each read model, by its name."""

    def save(self, path: Path) -> None:
        """Write the run as JSON, one message per line."""
        data = asdict(self)
        lines = ",\n".join(json.dumps(message, ensure_ascii=False) for message in data.pop("messages"))
        rest = json.dumps(data, ensure_ascii=False, indent=1)
        path.write_text(f'{{"messages": [\n{lines}\n],\n{rest[1:].lstrip()}\n')


def load(path: Path) -> Run:
    """Read a run that `Run.save` wrote."""
    data = json.loads(path.read_text())
    return Run(
        messages=[Message(**message) for message in data["messages"]],
        definitions=data["definitions"],
        starts=[Start(**start) for start in data["starts"]],
        instances=[Instance(**instance) for instance in data["instances"]],
        stores={name: [StoredInstance(**one) for one in stored] for name, stored in data.get("stores", {}).items()},
    )


def load_starts(lines: Iterable[str]) -> list[Start]:
    """Accepted starts from JSON lines with instance_id, definition_name and optionally correlation_id."""
    found = []
    for line in lines:
        if line.strip():
            data = json.loads(line)
            correlation = data.get("correlation_id") or ""
            found.append(Start(data["instance_id"], data["definition_name"], correlation))
    return found


@dataclass(frozen=True, slots=True)
class Definition:
    """The checked parts of a definition, read from its YAML without the engine."""

    initial: str
    terminal: frozenset[str]
    transitions: frozenset[tuple[str, str, str]]
    """(from, to, trigger)"""
    steps: Mapping[str, str]
    """State by step id."""
    gates: frozenset[str]
    """Steps that are human gates, but for those whose name is a human guard's too: an event of it may be either's."""

    @classmethod
    def read(cls, text: str) -> Definition:
        data = yaml.safe_load(text)
        steps = data.get("steps") or []
        guards = data.get("guards") or {}
        humans = {name for name, guard in guards.items() if guard.get("type") == "human"}
        return cls(
            initial=next(state["id"] for state in data["states"] if state.get("initial")),
            terminal=frozenset(state["id"] for state in data["states"] if state.get("terminal")),
            transitions=frozenset((t["from"], t["to"], t["trigger"]) for t in data["transitions"]),
            steps={step["id"]: step["state"] for step in steps},
            gates=frozenset(step["id"] for step in steps if step["handler"] == "human_gate_step") - humans,
        )


def definition_hash(text: str) -> str:
    """Hex SHA-256 of the definition's text."""
    return hashlib.sha256(text.encode()).hexdigest()
