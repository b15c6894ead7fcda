"""The format of a definition file, section by section (specification 2.2), and the JSON Schema of such a file."""

from __future__ import annotations

from typing import Any

from tables.definition import GuardType
from tables.definitions.shapes import FixedMap, Flag, FreeMap, Key, ListOf, MapOf, Number, Text, TextOr
from tables.kinds import Kinds

VERSION = "1.0"
OUTPUT_TYPES = ("object", "array", "string", "number", "boolean")
NAME = "[A-Za-z0-9_]+"
UPPER_ID = r"(?=.*[A-Z])[A-Z0-9_.-]+"
STEP_ID = "(?=.*[a-z])[a-z0-9_]+"
# A bound far beyond every use, which keeps arithmetic on milliseconds exact.
CENTURY_SECONDS = 3_153_600_000
MAX_ATTEMPTS = 1_000_000
TEXT = Text()

_name = Text(NAME, "letters, digits and `_` only")
_upper = Text(UPPER_ID, "upper case letters, digits and `_`, with a letter", "bad_id")
_step_id = Text(STEP_ID, "lower snake case with a letter, as in `estimate_story`", "bad_id")
_seconds = Number(above=0, maximum=CENTURY_SECONDS)

INPUTS = FixedMap(
    {
        "required": Key(ListOf(_name), "inputs that a start must give", default=[]),
        "optional": Key(ListOf(_name), "inputs that a start may give", default=[]),
        "searchable": Key(ListOf(_name), "declared inputs by whose value ceremonies can be listed", default=[]),
    }
)
OUTPUT = FixedMap(
    {
        "type": Key(Text(words=OUTPUT_TYPES, rule="unknown_type"), "type of the value", required=True),
        "schema": Key(
            FreeMap(), "a flat map field → type word (every field is required, others are allowed), or a JSON Schema"
        ),
    }
)
STATE = FixedMap(
    {
        "id": Key(_upper, "upper case, unique", required=True),
        "description": Key(TEXT, "meaning of this state", required=True),
        "initial": Key(Flag(), "true for exactly one state", default=False),
        "terminal": Key(Flag(), "true for at least one state; no transition leaves it", default=False),
    }
)
TRANSITION = FixedMap(
    {
        "from": Key(TEXT, "id of the state it leaves", required=True),
        "to": Key(TEXT, "id of the state it enters", required=True),
        "trigger": Key(TEXT, "its name; unique among the transitions that leave the same state", required=True),
        "guards": Key(ListOf(TEXT), "names of guards that must all hold; none: waits for the steps", default=[]),
        "description": Key(TEXT, "meaning of this transition", required=True),
    }
)
RETRY = FixedMap(
    {
        "max_attempts": Key(Number(minimum=1, maximum=MAX_ATTEMPTS, whole=True), "attempts in all", required=True),
        "backoff_seconds": Key(Number(minimum=0, maximum=CENTURY_SECONDS), "pause after a failed attempt", default=5),
        "exponential_backoff": Key(Flag(), "double the pause after each further failure", default=False),
        "max_backoff_seconds": Key(Number(minimum=0, maximum=CENTURY_SECONDS), "the pause never grows beyond this"),
        "jitter": Key(Number(minimum=0, maximum=1), "fraction of the pause that is spread", default=0),
        "non_retryable": Key(ListOf(TEXT), "error codes that end the step at once", default=[]),
    }
)
STEP = FixedMap(
    {
        "id": Key(_step_id, "lower snake case, unique", required=True),
        "state": Key(TEXT, "id of the state it runs in", required=True),
        "handler": Key(TEXT, "the kind of step", required=True),
        "config": Key(FreeMap(non_empty=True), "config of the handler", required=True),
        "retry": Key(TextOr(TEXT, RETRY), "a retry policy, or the name of one in retry_policies"),
        "timeout_seconds": Key(_seconds, "per attempt; at most timeouts.step_max"),
        "after": Key(ListOf(TEXT), "steps of the same state to wait for; default: the one before; []: at once"),
        "on_failure": Key(TEXT, "trigger of a transition leaving its state, taken when the step failed for good"),
    }
)
GUARD = FixedMap(
    {
        "type": Key(
            Text(words=tuple(GuardType), rule="unknown_guard_type"),
            "judged by the engine, or by people",
            default="automated",
        ),
        "check": Key(
            TEXT,
            "all_steps_completed, step_status:<step>:<STATUS>, threshold:<step>.<path> or cel:<expression>; "
            "free text for a human guard",
            required=True,
        ),
        "role": Key(TEXT, "role that may approve a human guard"),
        "threshold": Key(Number(), "least number for which a threshold check holds"),
    }
)
ROLE = FixedMap(
    {
        "id": Key(_upper, "upper case, unique", required=True),
        "description": Key(TEXT, "the people or services of this role", required=True),
        "allowed_actions": Key(ListOf(TEXT), "step ids, triggers, cancel, pause or resume", default=[]),
    }
)
TIMEOUTS = FixedMap(
    {
        "step_default": Key(_seconds, "seconds per attempt of a step without its own", default=3600),
        "step_max": Key(_seconds, "upper bound of timeout_seconds of every step", default=86400),
        "ceremony_max": Key(_seconds, "the whole ceremony, then it is TIMED_OUT", default=604800),
    }
)
DEFINITION = FixedMap(
    {
        "version": Key(Text(words=(VERSION,), rule="bad_version"), 'exactly "1.0"', required=True),
        "name": Key(_name, "equals the file's name without .yaml", required=True),
        "description": Key(TEXT, "purpose of this ceremony", required=True),
        "inputs": Key(INPUTS, "inputs of a start"),
        "outputs": Key(MapOf(OUTPUT), "outputs that the ceremony publishes, by name"),
        "states": Key(ListOf(STATE, non_empty=True), "the states", required=True),
        "transitions": Key(ListOf(TRANSITION), "the ways between states, in order of preference", required=True),
        "steps": Key(ListOf(STEP), "the work, in order"),
        "guards": Key(MapOf(GUARD), "conditions of transitions, by name"),
        "roles": Key(ListOf(ROLE), "roles, each with its allowed actions"),
        "timeouts": Key(TIMEOUTS, "time limits in seconds"),
        "retry_policies": Key(MapOf(RETRY), "retry policies by name; `default` serves steps without one"),
    },
    title="Ceremony definition",
)


def definition_schema(kinds: Kinds) -> dict[str, Any]:
    """Return the JSON Schema of a definition file, with the config models of `kinds`.

    It describes the shape of a file. The loader checks the rules between sections (states exist, no cycles, …).
    """
    found = DEFINITION.schema()
    step = found["properties"]["steps"]["items"]
    step["properties"]["handler"]["enum"] = sorted(kinds)
    found["$defs"] = {}
    cases = []
    for handler in sorted(kinds):
        model = kinds[handler].config.model_json_schema(ref_template="#/$defs/{model}")
        found["$defs"].update(model.pop("$defs", {}))
        found["$defs"][handler] = model
        cases.append(
            {
                "if": {"properties": {"handler": {"const": handler}}},
                "then": {"properties": {"config": {"$ref": f"#/$defs/{handler}"}}},
            }
        )
    if cases:
        step["allOf"] = cases
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | found
