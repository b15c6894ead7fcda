"""A definition file that is read but not yet judged; the rules between sections look things up in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tables.definition import Timeouts
from tables.definitions.problems import ProblemList, clipped
from tables.definitions.shapes import Fields, Item
from tables.kinds import Kinds

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Draft:
    """The sections as read. Records with mistakes keep their correct parts; unreadable ids are left out."""

    fields: Fields
    report: ProblemList
    kinds: Kinds
    states: tuple[Fields, ...]
    transitions: tuple[Fields, ...]
    steps: tuple[Fields, ...]
    roles: tuple[Fields, ...]
    guards: Mapping[str, Item]
    policies: Mapping[str, Item]
    timeouts: Timeouts
    state_ids: Mapping[str, Fields]
    step_ids: Mapping[str, Fields]
    role_ids: Mapping[str, Fields]
    triggers: Mapping[str, None]
    """All triggers, in file order."""
    pinned: bool
    """True for the definition of running ceremonies: its breaches of later rules are noted, and change no meaning."""

    @classmethod
    def of(cls, fields: Fields, report: ProblemList, kinds: Kinds, *, pinned: bool = False) -> Draft:
        states, steps, roles = (_records(fields, key) for key in ("states", "steps", "roles"))
        transitions = _records(fields, "transitions")
        return cls(
            fields=fields,
            report=report,
            kinds=kinds,
            states=states,
            transitions=transitions,
            steps=steps,
            roles=roles,
            guards=fields.get("guards", {}),
            policies=fields.get("retry_policies", {}),
            timeouts=_timeouts(fields.get("timeouts"), report),
            state_ids=_unique(states, "state", report),
            step_ids=_unique(steps, "step", report),
            role_ids=_unique(roles, "role", report),
            triggers=dict.fromkeys(t.text("trigger") for t in transitions if t.text("trigger")),
            pinned=pinned,
        )

    def known(self, word: str, names: Iterable[str], line: int, rule: str, where: str) -> bool:
        """Return whether `word` is among `names`; report it if not."""
        names = names if isinstance(names, Mapping) else tuple(names)
        if word in names:
            return True
        noun = rule.removeprefix("unknown_").replace("_", " ")
        hint = self.report.suggest(word, names) or f"; the file declares no {noun}"
        place = "known here" if rule == "unknown_handler" else "of this file"
        self.report.add(line, rule, f"{where} names `{clipped(word)}`, which is no {noun} {place}{hint}")
        return False


def grouped(names: Iterable[str], pairs: Iterable[tuple[str, T]]) -> dict[str, tuple[T, ...]]:
    """Return the values of each name, in their order; an empty tuple for a name without any."""
    found: dict[str, list[T]] = {name: [] for name in names}
    for name, value in pairs:
        if name in found:
            found[name].append(value)
    return {name: tuple(values) for name, values in found.items()}


def _records(fields: Fields, section: str) -> tuple[Fields, ...]:
    return tuple(item.value for item in fields.get(section, ()) if item.value is not None)


def _unique(records: Iterable[Fields], noun: str, report: ProblemList) -> dict[str, Fields]:
    found: dict[str, Fields] = {}
    for record in records:
        name = record.text("id")
        if not name:
            continue
        if name in found:
            first = found[name].line_of("id")
            message = f"{noun} `{clipped(name)}` stands in line {first} already: ids are unique"
            report.add(record.line_of("id"), f"duplicate_{noun}", message)
            continue
        found[name] = record
    return found


def _timeouts(given: Fields | None, report: ProblemList) -> Timeouts:
    if given is None:
        return Timeouts()
    plain = Timeouts()
    timeouts = Timeouts(
        given.get("step_default", plain.step_default),
        given.get("step_max", plain.step_max),
        given.get("ceremony_max", plain.ceremony_max),
    )
    if timeouts.step_default > timeouts.step_max:
        line = given.line_of("step_default" if given.has("step_default") else "step_max")
        message = f"step_default ({timeouts.step_default:g}) must be ≤ step_max ({timeouts.step_max:g})"
        report.add(line, "step_default_over_step_max", message)
    return timeouts
