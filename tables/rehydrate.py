"""Turns a stored form of a row back into an instance, or lists every invariant that it breaks.

The forms are the document in Valkey, the node in Neo4j (`read_model.py`), and the row's bytes in a changelog. Each part
is read for itself, so that one broken part hides none of the others. Every breach has a stable code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import FieldInfo, fields, replace

from ports.errors import CeremonyError
from tables.definition import Definition
from tables.definitions.loader import content_hash, load_pinned
from tables.diagnosis import waiting_for
from tables.instance import (
    IN_FLIGHT,
    ROW_FORMAT,
    TERMINAL,
    CeremonyStatus,
    Instance,
    StepState,
    StepStatus,
    decode_instance,
    recounted,
)
from tables.invariants import Breach, broken
from tables.kinds import Kinds
from tables.limits import MAX_OUTPUT_DEPTH, deeper_than
from tables.read_model import ENGINE_FORMAT, EngineState
from tables.timers import iso

# The pinned definition with this hash, or the reason why there is none.
Pinned = Callable[[str], Definition | Breach]

# Nested containers of a stored row: those of its deepest output, and those around it.
DEEPEST = MAX_OUTPUT_DEPTH + 8
# Breaches that are listed; a forged row may break one invariant a thousand times.
MOST_BREACHES = 100
_LONGEST_NAME = 200
_FAILURES = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError)


class Rehydrated(NamedTuple):
    """An instance, or the reasons why there is none."""

    instance_id: str
    """As the stored form says; empty where that cannot be read."""
    version: int
    """0 where it cannot be read."""
    instance: Instance | None
    breaches: tuple[Breach, ...] = ()
    """Why there is no instance: every broken invariant."""
    redacted: tuple[str, ...] = ()
    """JSON paths of texts that were redacted when the form was stored; the instance has the redacted ones."""


def from_valkey(value: bytes, pinned: Pinned, instance_id: str = "") -> Rehydrated:
    """Rehydrate the value of `ceremony:instance:<id>`; `instance_id`: as its key says, empty where it is not known."""
    try:
        raw = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    except _FAILURES as error:
        return _none(instance_id, Breach("document_undecodable", f"the document is no JSON object: {error}"))
    parts = _Parts({name: bytes(part) for name, part in raw.items()}, "")
    return _from_document(parts, pinned, instance_id, _VALKEY)


def from_neo4j(properties: Mapping[str, Any], pinned: Pinned, instance_id: str = "") -> Rehydrated:
    """Rehydrate the properties of a node `(:CeremonyInstance)`."""
    parts = _Parts({}, "")
    for name, value in properties.items():
        if name == "engine" or name.endswith("_json"):
            parts.raw[name.removesuffix("_json")] = value.encode(errors="replace") if isinstance(value, str) else b"0"
        else:
            parts.plain(name, value)
    return _from_document(parts, pinned, instance_id, _NEO4J)


def from_changelog(value: bytes, pinned: Pinned, instance_id: str = "") -> Rehydrated:
    """Rehydrate a row as `encode_instance` writes it."""
    try:
        raw = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    except _FAILURES as error:
        return _none(instance_id, Breach("row_undecodable", f"the row is no JSON object: {error}"))
    parts = _Parts({name: bytes(part) for name, part in raw.items()}, "")
    if _too_new(parts, "format", ROW_FORMAT):
        return _judged(parts, None, pinned, instance_id)
    parts.struct(Instance)
    return _judged(parts, None if parts.breaches else decode_instance(value), pinned, instance_id)


class _Engine(msgspec.Struct):
    definition_hash: str = ""


class _WithEngine(msgspec.Struct):
    engine: _Engine


def hash_in_valkey(value: bytes) -> str:
    """Return the hash of the definition that a document is pinned to, empty where it cannot be read."""
    try:
        return msgspec.json.decode(value, type=_WithEngine).engine.definition_hash
    except _FAILURES:
        return ""


def hash_in_neo4j(properties: Mapping[str, Any]) -> str:
    """Return the hash of the definition that a node is pinned to, empty where it cannot be read."""
    try:
        return msgspec.json.decode(str(properties.get("engine")), type=_Engine).definition_hash
    except _FAILURES:
        return ""


def pinned_in(texts: Callable[[str], str | None], kinds: Kinds) -> Pinned:
    """Return the definitions of a store, each read once; `texts` gives the text with a hash, None where it has none."""

    @lru_cache(maxsize=512)
    def pinned(digest: str) -> Definition | Breach:
        text = texts(digest)
        if text is None:
            return Breach("definition_missing", f"the definition {_short(digest)} that it is pinned to is not stored")
        if content_hash(text) != digest:
            return Breach("definition_altered", f"the text stored as definition {_short(digest)} has another hash")
        try:
            return load_pinned(text, digest, kinds)
        except CeremonyError:
            return Breach("definition_unreadable", f"this release cannot read the definition {_short(digest)}")

    return pinned


# -- reading part by part


class _Parts:
    """The parts of a stored form by name, and the breaches found while they are read."""

    def __init__(self, raw: dict[str, bytes], place: str) -> None:
        self.raw = raw
        """Encoded as JSON."""
        self.breaches: list[Breach] = []
        self._place = place
        """Prefix of names in words: `engine.`."""

    def plain(self, name: str, value: Any) -> None:
        """Add a part that is no JSON text."""
        try:
            self.raw[name] = msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError):  # a type of the driver, such as a date
            self.raw[name] = b"[]"

    def get(self, name: str, kind: Any, default: Any = msgspec.UNSET) -> Any:
        """Return a part, or UNSET where it is missing without a default, or has another type."""
        raw = self.raw.get(name)
        if raw is None:
            if default is msgspec.UNSET:
                self._broken("property_missing", f"{self._place}{name} is missing")
            return default
        try:
            value = msgspec.json.decode(raw, type=kind)
        except _FAILURES as error:
            self._broken("property_invalid", f"{self._place}{name}: {error}")
            return msgspec.UNSET
        if deeper_than(msgspec.json.decode(raw), DEEPEST):
            self._broken("too_deep", f"{self._place}{name} nests deeper than {DEEPEST} containers")
            return msgspec.UNSET
        return value

    def struct(self, kind: type[msgspec.Struct], *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the parts that a struct is made of, as far as they are sound."""
        found = {
            one.name: self.get(one.name, one.type, _default(one)) for one in fields(kind) if one.name not in without
        }
        return {name: value for name, value in found.items() if value is not msgspec.UNSET}

    def _broken(self, code: str, words: str) -> None:
        self.breaches.append(Breach(code, words))


def _default(field: FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return msgspec.UNSET if field.default is msgspec.NODEFAULT else field.default


class _Form(NamedTuple):
    """The properties that one store has beside those of both."""

    repeated: Mapping[str, Any]
    """They stand in `engine` too, where they must be the same: type by name."""


_VALKEY = _Form({"definition_hash": str, "inputs": dict[str, Any]})
_NEO4J = _Form({})
_SHARED: Mapping[str, Any] = {
    "instance_id": str,
    "definition_name": str,
    "current_state": str,
    "status": CeremonyStatus,
    "version": int,
    "step_status": dict[str, StepStatus],
    "step_outputs": dict[str, Any],
    "correlation_id": str,
    "idempotency_keys": tuple[str, ...],
    "created_at": str,
    "updated_at": str,
}
# Fields of `engine` that are no fields of a row.
_ENGINE_ONLY = frozenset({"format", "row_format", "redacted"})


def _from_document(parts: _Parts, pinned: Pinned, instance_id: str, form: _Form) -> Rehydrated:
    shared = {name: parts.get(name, kind) for name, kind in (*_SHARED.items(), *form.repeated.items())}
    inside = parts.get("engine", dict[str, msgspec.Raw])
    if inside is msgspec.UNSET:
        return _judged(parts, None, pinned, instance_id)
    engine = _Parts({name: bytes(part) for name, part in inside.items()}, "engine.")
    if _too_new(engine, "format", ENGINE_FORMAT) or _too_new(engine, "row_format", ROW_FORMAT):
        parts.breaches += engine.breaches
        return _judged(parts, None, pinned, instance_id)
    kept = engine.struct(EngineState)
    parts.breaches += engine.breaches
    _compare(parts, shared, kept, form)
    row = None if parts.breaches else _assembled(shared, kept)
    return _judged(parts, row, pinned, instance_id, kept.get("redacted", ()))


def _too_new(parts: _Parts, name: str, ours: int) -> bool:
    """Return whether a newer release wrote this: then nothing else can be read."""
    found = parts.get(name, int, ours)
    if found is msgspec.UNSET or found <= ours:
        return False
    parts.breaches.append(Breach("format_too_new", f"{name} is {found}, this release reads up to {ours}"))
    return True


def _compare(parts: _Parts, shared: Mapping[str, Any], kept: Mapping[str, Any], form: _Form) -> None:
    """Note the properties that differ from their repetition in `engine`."""
    steps = kept.get("steps")
    if isinstance(steps, dict):
        if isinstance(shared["step_status"], dict) and set(shared["step_status"]) != set(steps):
            parts.breaches.append(Breach("properties_differ", "step_status and engine.steps name different steps"))
        if isinstance(shared["step_outputs"], dict) and not set(shared["step_outputs"]) <= set(steps):
            parts.breaches.append(Breach("properties_differ", "step_outputs names a step that engine.steps does not"))
    same = {name: shared[name] for name in form.repeated}
    same |= {name: shared[name] for name in ("created_at", "updated_at")}
    for name, value in same.items():
        repeated = kept.get(name, msgspec.UNSET)
        written = iso(repeated) if isinstance(repeated, int) else repeated
        if msgspec.UNSET not in (value, written) and value != written:
            parts.breaches.append(Breach("properties_differ", f"{name} and engine.{name} are different"))


def _assembled(shared: Mapping[str, Any], kept: Mapping[str, Any]) -> Instance:
    statuses, outputs = shared["step_status"], shared["step_outputs"]
    steps: dict[str, StepState] = {
        step_id: replace(step, status=statuses[step_id], output=outputs.get(step_id))
        for step_id, step in kept["steps"].items()
    }
    row = Instance(
        **{name: value for name, value in kept.items() if name not in _ENGINE_ONLY and name != "steps"},
        steps=steps,
        format=kept["row_format"],
        instance_id=shared["instance_id"],
        definition_name=shared["definition_name"],
        correlation_id=shared["correlation_id"],
        state=shared["current_state"],
        status=shared["status"],
        version=shared["version"],
        command_ids=shared["idempotency_keys"],
    )
    return recounted(row)


# -- judging


def _none(instance_id: str, breach: Breach) -> Rehydrated:
    return Rehydrated(instance_id, 0, None, (breach,))


def _judged(
    parts: _Parts, row: Instance | None, pinned: Pinned, instance_id: str, redacted: tuple[str, ...] = ()
) -> Rehydrated:
    breaches = list(parts.breaches)
    if row is not None:
        breaches += breaches_of(row, pinned)
    named = _quietly(parts, "instance_id", str) or instance_id
    if instance_id and named != instance_id:
        breaches.append(Breach("key_differs", "it is stored under the key of another instance"))
    version = _quietly(parts, "version", int) or 0
    kept = tuple(breaches[:MOST_BREACHES])
    return Rehydrated(named[:_LONGEST_NAME], max(version, 0), None if kept else row, kept, redacted)


def _quietly(parts: _Parts, name: str, kind: Any) -> Any:
    """Return a part for the report, or None where it cannot be read."""
    try:
        return msgspec.json.decode(parts.raw.get(name, b""), type=kind)
    except _FAILURES:
        return None


def breaches_of(row: Instance, pinned: Pinned) -> list[Breach]:
    """List every broken invariant of a row, also those that a fold cannot break and a forged row can."""
    found = [] if row.instance_id == f"{row.ceremony_id}:{row.story_id}" else [_ids_differ(row)]
    if row.expired:
        return [*found, *broken(row)]
    definition = pinned(row.definition_hash)
    if isinstance(definition, Breach):
        return [*found, definition, *broken(row), *_numbers(row)]
    found += [*broken(row, definition), *_numbers(row), *_beside_definition(row, definition)]
    # Only a row that is sound otherwise can be asked what it waits for.
    if not found and row.status not in TERMINAL and not waiting_for(row, definition):
        found.append(Breach("stuck", "it has not ended, and waits for nothing"))
    return found


def _ids_differ(row: Instance) -> Breach:
    return Breach("ids_differ", f"{row.instance_id[:_LONGEST_NAME]!r} is not ceremony_id:story_id")


def _numbers(row: Instance) -> list[Breach]:
    found = [
        Breach("number_negative", f"step {step_id}: a number is negative")
        for step_id, step in row.steps.items()
        if min(step.attempt, step.tries, step.asks, step.started_at, step.size, step.gathered, step.announced) < 0
    ]
    found += [
        Breach("attempt_missing", f"step {step_id}: {step.status} without an attempt")
        for step_id, step in row.steps.items()
        if step.status in IN_FLIGHT and step.attempt < 1
    ]
    if min(row.created_at, row.ended_at, row.paused_at, row.inputs_size, row.approvals_size, row.size) < 0:
        found.append(Breach("number_negative", "a number of the ceremony is negative"))
    found += [
        Breach("number_negative", f"state {name!r} was visited {visits} times")
        for name, visits in row.visits.items()
        if visits < 0
    ]
    return found


def _beside_definition(row: Instance, definition: Definition) -> list[Breach]:
    found: list[Breach] = []
    if row.definition_name != definition.name:
        found.append(Breach("definition_name_differs", f"its definition is called {definition.name}"))
    if row.visits.get(row.state, 0) < 1:
        found.append(Breach("visit_missing", f"it is in {row.state!r}, which it never entered"))
    found += [
        Breach("not_a_gate", f"step {step_id} waits for people, and is no gate")
        for step_id, step in row.steps.items()
        if step.status is StepStatus.WAITING_FOR_HUMAN
        and (known := definition.steps.get(step_id)) is not None
        and known.gate is None
    ]
    found += [
        Breach("trigger_step_unknown", f"an agent of {asked.step_id!r} asks for a transition; there is no such step")
        for asked in row.asked_triggers
        if asked.step_id not in definition.steps
    ]
    return found


def _short(digest: str) -> str:
    return f"{digest[:12]!r}"
