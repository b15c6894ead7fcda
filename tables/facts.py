"""The facts by which ceremonies are searched: those of a row that change, and the values that it keeps for its life."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from tables.definition import Definition
from tables.instance import CeremonyStatus, Instance, Phase, decoded
from tables.kinds import Kinds
from tables.open_gates import open_gate_steps, open_human_guards


class StepFacts(msgspec.Struct, frozen=True, gc=False):
    """The fields of a StepState that a search reads."""

    attempt: int = 0
    phase: Phase = Phase.NONE
    error_code: str = ""


class RowFacts(msgspec.Struct, frozen=True, gc=False):
    """The fields of an Instance that a search reads, decoded at a fraction of the cost."""

    instance_id: str
    story_id: str
    definition_name: str
    definition_hash: str
    correlation_id: str
    state: str
    status: CeremonyStatus
    created_at: int
    error_code: str = ""
    inputs: msgspec.Raw = msgspec.Raw(b"{}")
    steps: dict[str, StepFacts] = {}
    guard_approvals: dict[str, list[msgspec.Raw]] = {}
    format: int = 1


SearchedRow = Instance | RowFacts
_decoder = msgspec.json.Decoder(RowFacts)
_decode_inputs = msgspec.json.Decoder(dict[str, Any]).decode


class Changing(NamedTuple):
    """The facts that change with a ceremony; most ceremonies share them with many others."""

    definition: str
    state: str
    status: str
    gate_roles: tuple[str, ...] = ()
    """Roles of the gates and human guards that are open."""
    error_codes: tuple[str, ...] = ()
    """The code of the ceremony, and those of its steps."""
    subjects: tuple[str, ...] = ()
    """Subjects of the publish steps that were attempted."""


class Kept(NamedTuple):
    """A value that a ceremony keeps for its life."""

    kind: str
    """`story`, `correlation`, or `input`."""
    name: str
    """Of the input; empty otherwise."""
    value: str


@dataclass(frozen=True, slots=True)
class SearchedDefinition:
    """The parts of a definition that the facts of its ceremonies follow from."""

    definition: Definition
    publications: tuple[tuple[str, str], ...]
    """Publish steps with their subject."""

    @classmethod
    def of(cls, definition: Definition, kinds: Kinds) -> SearchedDefinition:
        found = []
        for step in definition.steps.values():
            publication = kinds[step.handler].publication(step, "", 0)
            if publication is not None:
                found.append((step.id, publication.subject))
        return cls(definition, tuple(found))


def decode_facts(value: bytes) -> RowFacts:
    """Decode the facts of a row. Raises as `decode_instance` does."""
    return decoded(_decoder, value)


def changing(row: SearchedRow, searched: SearchedDefinition | None) -> Changing:
    """Return the facts of a row that change; without its definition it has no open gates and no subjects."""
    codes = {step.error_code for step in row.steps.values() if step.error_code}
    if row.error_code:
        codes.add(row.error_code)
    roles: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    if searched is not None:
        roles = _roles(row, searched.definition)
        if searched.publications:
            steps = row.steps
            subjects = tuple(
                dict.fromkeys(
                    subject
                    for step_id, subject in searched.publications
                    if (step := steps.get(step_id)) is not None and step.attempt
                )
            )
    return Changing(row.definition_name, row.state, row.status.value, roles, tuple(sorted(codes)), subjects)


def _roles(row: SearchedRow, definition: Definition) -> tuple[str, ...]:
    roles = {step.gate.role for step in open_gate_steps(row, definition) if step.gate is not None}
    roles.update(guard.role for guard in open_human_guards(row, definition) if guard.role)
    return tuple(sorted(roles))


def kept(row: SearchedRow, searchable: Sequence[str]) -> Iterator[Kept]:
    """Iterate over the values that a row keeps. The correlation id is one unless it is the instance id."""
    yield Kept("story", "", row.story_id)
    if row.correlation_id != row.instance_id:
        yield Kept("correlation", "", row.correlation_id)
    if searchable:
        inputs: Mapping[str, Any] = row.inputs if isinstance(row, Instance) else _decode_inputs(row.inputs)
        for name in searchable:
            if name in inputs and (text := searched_text(inputs[name])) is not None:
                yield Kept("input", name, text)


def searched_text(value: Any) -> str | None:
    """Return the text by which an input is searched: itself, or the JSON of a number, boolean or null; else None."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return None
    return msgspec.json.encode(value).decode()
