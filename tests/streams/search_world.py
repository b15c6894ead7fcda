"""Random ceremonies, their changes, and the same search by a look at every row."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from steps.registry import all_kinds
from streams.api import Matches, Query, SortKey
from streams.row_index import PartitionIndex
from streams.search import search
from streams.topics import CEREMONIES
from tables.definition import Definition
from tables.definitions.loader import load
from tables.facts import SearchedDefinition, changing, kept
from tables.fold.retention import stub_of
from tables.instance import Approval, CeremonyStatus, Instance, Phase, StepState, StepStatus
from tests.streams.fakes import MemoryView

KINDS = all_kinds()
TEXT = """
version: "1.0"
name: {name}
description: for searches
inputs: {{optional: [team, size, notes], searchable: [team, size]}}
states:
  - {{id: OPEN, description: A gate is open, initial: true}}
  - {{id: SENT, description: A message is sent}}
  - {{id: DONE, description: Done, terminal: true}}
transitions:
  - {{from: OPEN, to: SENT, trigger: go_on, guards: [agreed], description: All agree}}
  - {{from: SENT, to: DONE, trigger: finish, description: Done}}
guards:
  agreed: {{type: human, check: all is well, role: CLERK}}
roles:
  - {{id: CLERK, description: Keeps the books, allowed_actions: [go_on]}}
  - {{id: GUARD, description: Guards the door, allowed_actions: [let_in]}}
steps:
  - {{id: let_in, state: OPEN, handler: human_gate_step, config: {{role: GUARD, message: "Let it in?"}}}}
  - {{id: tell, state: SENT, handler: publish_step, config: {{subject: planning.{name}, event_type: planning.told}}}}
"""
DEFINITIONS: Mapping[str, Definition] = {
    one.hash: one for one in (load(TEXT.format(name=name), f"{name}.yaml", KINDS) for name in ("alpha", "beta"))
}
TIMES = range(1_000, 1_060)
STORIES, TEAMS, CODES = ("s1", "s2", "s3"), ("red", "blue", 7, True, None, {"a": 1}), ("timeout", "rejected", "x")


def random_row(draw: random.Random, number: int) -> Instance:
    definition = draw.choice(list(DEFINITIONS.values()))
    story = draw.choice(STORIES)
    instance_id = f"c{number}:{story}"
    inputs = {name: draw.choice(TEAMS) for name in ("team", "size", "notes") if draw.random() < 0.7}
    row = Instance(
        instance_id=instance_id,
        ceremony_id=f"c{number}",
        story_id=story,
        definition_name=definition.name,
        definition_hash=definition.hash,
        correlation_id=draw.choice([instance_id, "corr-1", "corr-2", f"c{number - 1}:{draw.choice(STORIES)}"]),
        requested_by="anna",
        start_digest="x",
        state="OPEN",
        status=CeremonyStatus.RUNNING,
        created_at=draw.choice(TIMES),
        updated_at=TIMES[0],
        inputs=inputs,
    )
    return changed_row(draw, row)


def changed_row(draw: random.Random, row: Instance) -> Instance:
    """The next version: another state, status, gate, error, publication."""
    code = draw.choice(CODES) if draw.random() < 0.3 else ""
    phase = draw.choice([Phase.GATE, Phase.NONE])
    steps = {
        "let_in": StepState(StepStatus.WAITING_FOR_HUMAN if phase else StepStatus.COMPLETED, 1, phase=phase),
        "tell": StepState(attempt=draw.choice([0, 1]), error_code=code),
    }
    return replace(
        row,
        version=row.version + 1,
        state=draw.choice(["OPEN", "SENT", "DONE"]),
        status=draw.choice(list(CeremonyStatus)),
        steps=steps,
        error_code=draw.choice(["", "", code]),
        guard_approvals={"agreed": (Approval("anna", "CLERK", 1),)} if draw.random() < 0.5 else {},
    )


def definition_of(_view: object, row: Any) -> Definition | None:
    return DEFINITIONS.get(row.definition_hash)


class SearchWorld:
    """The rows of a partition with its index; `change` makes one batch of changes."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.view = MemoryView()
        self.index = PartitionIndex(self.view, definition_of, KINDS)
        self._number = 0

    @property
    def rows(self) -> dict[bytes, Instance]:
        return self.view.tables[CEREMONIES]

    def change(self, count: int) -> None:
        before: dict[bytes, Instance | None] = {}
        rows: dict[bytes, Instance | None] = {}
        for _ in range(count):
            key, row = self._one()
            before.setdefault(key, self.rows.get(key))
            rows[key] = row
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        self.index.changed(rows, before)

    def _one(self) -> tuple[bytes, Instance | None]:
        """One ceremony begins, changes, becomes a stub, goes, or is made anew with another start."""
        chance = self.draw.random()
        known = sorted(self.rows)
        if not known or chance < 0.4:
            self._number += 1
            row = random_row(self.draw, self._number)
            return row.instance_id.encode(), row
        key = self.draw.choice(known)
        row = self.rows[key]
        if chance < 0.8:
            return key, changed_row(self.draw, row)
        if chance < 0.88:
            return key, stub_of(row, 5_000, 1)
        if chance < 0.94:
            return key, None
        return key, replace(random_row(self.draw, 0), instance_id=row.instance_id, story_id=row.story_id)

    def fill(self) -> None:
        for _ in self.index.fill():
            pass

    def ids(self, most: int) -> list[str]:
        """Some instance ids, which are also correlation ids."""
        known = sorted(self.rows)
        return [key.decode() for key in self.draw.sample(known, min(most, len(known)))]

    def random_query(self) -> Query:
        draw = self.draw

        def maybe(*choices: Any) -> Any:
            return draw.choice(choices) if draw.random() < 0.25 else ""

        times = sorted(draw.choices(TIMES, k=2))
        known = sorted(self.rows)
        after: SortKey | None = None
        if known and draw.random() < 0.3:
            row = self.rows[draw.choice(known)]
            after = (-row.created_at, row.instance_id)
        inputs = []
        if draw.random() < 0.3:
            inputs.append(("team", draw.choice(["red", "7", "true", "null", "nobody"])))
        if draw.random() < 0.15:
            inputs.append((draw.choice(["size", "notes"]), "blue"))
        return Query(
            state=maybe("OPEN", "SENT", "NOWHERE"),
            definition=maybe("alpha", "beta"),
            story=maybe(*STORIES),
            status=maybe("RUNNING", "FAILED"),
            correlation=maybe("corr-1", "corr-3", *self.ids(2)),
            gate_role=maybe("GUARD", "CLERK"),
            error_code=maybe(*CODES),
            subject=maybe("planning.alpha"),
            inputs=tuple(inputs),
            created_from=times[0] if draw.random() < 0.3 else None,
            created_before=times[1] if draw.random() < 0.3 else None,
            after=after,
        )


def run(pieces: Any) -> Any:
    try:
        while True:
            next(pieces)
    except StopIteration as end:
        return end.value


def searched(index: PartitionIndex, query: Query, most: int) -> Matches:
    found: Matches = run(search(index, query, most))
    return found


def by_looking(rows: Iterable[Instance], query: Query) -> tuple[int, list[SortKey]]:
    """The number of matches, and the sorted keys of those behind `after`."""
    keys = sorted((-row.created_at, row.instance_id) for row in rows if matches(row, query))
    return len(keys), [key for key in keys if query.after is None or key > query.after]


def matches(row: Instance, query: Query) -> bool:
    definition = DEFINITIONS[row.definition_hash]
    facts = changing(row, SearchedDefinition.of(definition, KINDS))
    values = {(one.name or one.kind, one.value) for one in kept(row, definition.searchable_inputs)}
    return (
        (not query.state or row.state == query.state)
        and (not query.definition or row.definition_name == query.definition)
        and (not query.story or row.story_id == query.story)
        and (not query.status or row.status == query.status)
        and (not query.correlation or row.correlation_id == query.correlation)
        and (not query.gate_role or query.gate_role in facts.gate_roles)
        and (not query.error_code or query.error_code in facts.error_codes)
        and (not query.subject or query.subject in facts.subjects)
        and all(one in values for one in query.inputs)
        and (query.created_from is None or row.created_at >= query.created_from)
        and (query.created_before is None or row.created_at < query.created_before)
    )
