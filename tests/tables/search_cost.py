"""Searches for a command whose work passes its bound: random definitions and inputs, then dearer ones by their count.

`python -m tests.tables.search_cost [MINUTES] [SEED]` searches long and by the clock: it fails when a command takes
more than 100 ms of one core or 64 MiB with empty caches, or when a definition takes more than 600 ms to load. The tests
run the search short, by the count alone.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import re2  # type: ignore[import-untyped]

from tables.commands import AnyCommand, Origin, Start, Trigger
from tables.definition import Definition
from tables.definitions import loader, schema_bounds
from tables.definitions.loader import content_hash, load, load_pinned
from tables.errors import DefinitionInvalid
from tables.fold.decide import decide
from tables.instance import Instance, encode_instance
from tables.patterns import pattern_weight
from tables.work import MOST_STEPS, Work
from tests.tables.world import KINDS

MOST_SECONDS = 0.1
# Loading is bounded by the values of a file, not by the work of a command.
MOST_LOAD_SECONDS = 0.6
MOST_MIB = 64
INPUT_BYTES = 250_000
_KEPT = 12


@dataclass
class Recipe:
    """One definition with its inputs, as numbers that can be changed one by one."""

    guards: list[str]
    copies: int
    shape: str
    length: int
    steps: list[str]
    step_copies: int
    schema: dict[str, Any]


@dataclass
class Cost:
    """The cost of one command."""

    recipe: Recipe
    steps: int
    seconds: float = 0.0
    mib: float = 0.0
    load_seconds: float = 0.0
    """Of loading the definition, once in a process."""
    load_mib: float = 0.0


@dataclass
class Meter:
    """Counts the work of the commands that are folded under it."""

    works: list[Work] = field(default_factory=list)

    def work(self) -> Work:
        self.works.append(Work())
        return self.works[-1]

    @property
    def steps(self) -> int:
        return max((MOST_STEPS - work.left for work in self.works), default=0)


# -- recipes

SHAPES = ("numbers", "texts", "rows", "lists", "text", "wide", "deep", "emoji")
LISTS = ("inputs.a", "inputs.b", "[1, 2, 3]", "(inputs.a + inputs.b)", "inputs.a.filter(x, true)")
BODIES = (
    "true",
    "x == y",
    "inputs.a == inputs.b",
    "x in inputs.b",
    "string(x) != 'a'",
    "inputs.t.contains(string(x))",
    "!inputs.t.matches('{pattern}')",
    "(inputs.t + inputs.t).size() > 0",
    "[x, inputs.a] != [inputs.b]",
    "{'k': x}.k == x",
    "timestamp('2026-01-01T00:00:00Z').getHours('+01:00') >= 0",
    "size(inputs.a + inputs.b) > 0",
    "x.n == 1 || x.tags.all(y, y != x)",
    "inputs.b[0] == x",
)
PATTERNS = ("a{1,900}b", "(a?){90}b", "x.*y.*z", "^[a-z]+$", "[^a]{20}", "(a|b|ab)*c", r"\\pL+", "((a{9}){9}){9}")
# Guards without a loop; a definition has room for many.
CHEAP_SHARE = 0.1
MACROS = ("all", "exists", "exists_one", "filter")
KEYWORDS: tuple[dict[str, Any], ...] = (
    {"type": "number"},
    {"enum": list(range(500))},
    {"const": [0] * 200},
    {"uniqueItems": True},
    {"pattern": "^(a|b){1,200}c"},
    {"pattern": "a{1,900}b"},
    {"pattern": "x" * 20_000},
    {"allOf": [{"pattern": f"a{{1,{700 + n}}}b"} for n in range(40)]},
    {"allOf": [{"pattern": f"^[a-z ]*{n}$"} for n in range(130)]},
    {"patternProperties": {f"^k{n}$": True for n in range(200)}},
    {"anyOf": [{"pattern": rf"\\pL{{1,{n}}}x"} for n in range(1, 9)]},
    {"$ref": "#/$defs/r"},
    {"$ref": "#anchored"},
    {"not": {"required": ["k"]}},
    {"anyOf": [{"minItems": 9**9}, {"minLength": 9**9}, {"$ref": "#/$defs/r"}]},
    {"oneOf": [{"$ref": "#/$defs/r"}, {"$ref": "#/$defs/r"}]},
    {"contains": {"enum": ["x"]}},
    {"patternProperties": {"^k[0-9]+": {"type": "string"}}},
    {"additionalProperties": {"type": "array"}},
    {"properties": {}, "unevaluatedProperties": {"type": "number"}},
    {"prefixItems": [{"type": "number"}], "unevaluatedItems": False},
    {"dependentRequired": {"k1": [f"k{n}" for n in range(99)]}},
)
KINDS_OF_STEPS = (
    "publish_one",
    "publish_text",
    "publish_many",
    "deliberation",
    "gate",
    *(f"aggregation_{kind}" for kind in ("merge", "list", "object", "deep_merge", "flatten", "unique", "concat")),
)


def guard_of(rng: Random) -> str:
    if rng.random() < CHEAP_SHARE:
        return "inputs.nope == 1"
    body = rng.choice(BODIES).replace("{pattern}", rng.choice(PATTERNS))
    inner = rng.choice((body, f"{rng.choice(LISTS)}.{rng.choice(MACROS[:3])}(y, {body})"))
    bound = inner.replace("y", "x") if " y" not in inner and "(y" not in inner else inner
    macro = rng.choice(MACROS)
    walk = f"{rng.choice(LISTS)}.{macro}(x, {bound if '(y,' in bound else bound.replace('y', 'x')})"
    return walk + (".size() >= 0" if macro == "filter" else "") + rng.choice(("", " && false", " || false"))


def recipe_of(rng: Random) -> Recipe:
    keywords: dict[str, Any] = {}
    for _ in range(rng.randint(1, 4)):
        keywords |= rng.choice(KEYWORDS)
    return Recipe(
        guards=[guard_of(rng) for _ in range(rng.randint(0, 3))],
        copies=rng.choice((1, 1, 5, 60, 180)),
        shape=rng.choice(SHAPES),
        length=rng.choice((10, 100, 400, 1000, 3000, 10_000, 100_000)),
        steps=[rng.choice(KINDS_OF_STEPS) for _ in range(rng.randint(0, 2))],
        step_copies=rng.choice((1, 5, 40, 300, 1000)),
        schema=keywords,
    )


def changed(recipe: Recipe, rng: Random) -> Recipe:
    """Return a recipe that differs in one number or choice."""
    other = recipe_of(rng)
    fields = dict(vars(recipe))
    name = rng.choice(list(fields))
    if name in ("length", "copies", "step_copies") and rng.random() < 0.7:
        fields[name] = max(1, int(fields[name] * rng.choice((0.5, 0.8, 1.25, 2))))
    elif name == "schema" and rng.random() < 0.7:
        fields[name] = recipe.schema | rng.choice(KEYWORDS)
    else:
        fields[name] = getattr(other, name)
    return Recipe(**fields)


def inputs_of(recipe: Recipe) -> dict[str, Any]:
    """Return inputs of at most 250,000 bytes."""
    most = recipe.length
    while True:
        values = _values(recipe.shape, most)
        found = {"a": values, "b": values[: len(values) // 2 + 1], "t": "ab" * min(most, 20_000)}
        if len(json.dumps(found, ensure_ascii=False).encode()) <= INPUT_BYTES:
            return found
        most = most * 3 // 4


def _values(shape: str, most: int) -> list[Any]:  # noqa: PLR0911 - one return for each shape
    match shape:
        case "numbers":
            return list(range(most))
        case "texts":
            return [f"text {i}" for i in range(most)]
        case "rows":
            return [{"n": i, "kind": "a", "tags": ["a", "b"]} for i in range(most)]
        case "lists":
            return [[i] for i in range(most)]
        case "text":
            return ["a" * 20] * (most // 20 + 1)
        case "wide":
            return [{f"k{i}": i for i in range(most)}]
        case "deep":
            return [_deep(min(most, 50))] * (most // 50 + 1)
        case _:
            return ["\N{GRINNING FACE}" * 9] * (most // 9 + 1)


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _step(kind: str, number: int) -> dict[str, Any]:
    step: dict[str, Any] = {"id": f"s{number}", "state": "A", "after": []}
    name, _, variant = kind.partition("_")
    if name == "publish":
        payload = {"one": {"a": "${inputs.a}"}, "text": {"a": "a ${inputs.a} ${inputs.t}"}}
        template = payload.get(variant, {f"k{n}": "${inputs.t}" for n in range(5)})
        config = {"subject": "ceremony.result.x", "event_type": "x", "payload_template": template, "output": "o"}
        return step | {"handler": "publish_step", "config": config}
    if name == "deliberation":
        config = {"prompt": "${inputs.a}", "role": "R", "constraints": {"metadata": "${inputs.b}"}}
        return step | {"handler": "deliberation_step", "config": config}
    if name == "gate":
        return step | {"handler": "human_gate_step", "config": {"role": "R", "message": "m"}}
    source = "t" if variant == "concat" else "a.0" if "merge" in variant else "a"
    config = {"sources": [source] * 8, "aggregation_type": variant}
    return step | {"handler": "aggregation_step", "config": config}


def text_of(recipe: Recipe) -> str:
    checks = [check for _ in range(recipe.copies) for check in recipe.guards]
    transitions = [
        {"from": "A", "to": "B", "trigger": f"t{n}", "guards": [f"g{n}"], "description": "d"}
        for n in range(len(checks))
    ]
    last = {"from": "A", "to": "B", "trigger": "last", "guards": ["all", "never"], "description": "d"}
    kinds = [kind for _ in range(recipe.step_copies) for kind in recipe.steps]
    return json.dumps(
        {
            "version": "1.0",
            "name": "probe",
            "description": "d",
            "inputs": {"optional": ["a", "b", "t"]},
            "outputs": {
                "o": {
                    "type": "object",
                    "schema": {
                        "$defs": {"r": {"items": recipe.schema}, "x": {"$anchor": "anchored", "type": "number"}},
                        "properties": {"a": {"$ref": "#/$defs/r"}},
                    },
                }
            },
            "states": [
                {"id": "A", "description": "a", "initial": True},
                {"id": "B", "description": "b", "terminal": True},
            ],
            "transitions": [*transitions, last],
            "guards": {f"g{n}": {"check": f"cel:{check}"} for n, check in enumerate(checks)}
            | {"all": {"check": "all_steps_completed"}, "never": {"check": "cel:false"}},
            "steps": [_step(kind, number) for number, kind in enumerate(kinds)],
        },
        ensure_ascii=False,
    )


# -- folding and measuring


def commands_of(recipe: Recipe, definition: Definition) -> Iterator[AnyCommand]:
    yield Start(
        instance_id="c:s",
        command_id="1",
        ceremony_id="c",
        story_id="s",
        definition_name="probe",
        definition_hash=definition.hash,
        correlation_id="c",
        requested_by="ann",
        inputs=inputs_of(recipe),
    )
    yield Trigger(instance_id="c:s", command_id="2", trigger="last", actor="ann")


def costs_of(recipe: Recipe, *, measured: bool = False) -> list[Cost]:
    """Fold the commands of a recipe; an invalid definition costs nothing."""
    text = text_of(recipe)
    try:
        definition = load(text, "probe.yaml", KINDS)
    except DefinitionInvalid:
        return []
    row: Instance | None = None
    found = []
    load_seconds, load_mib = _cost_of_loading(text) if measured else (0.0, 0.0)
    for offset, command in enumerate(commands_of(recipe, definition)):
        meter = Meter()
        if measured:
            _forget_prepared()
        gc.collect()
        before = _resident(reset=measured)
        began = time.process_time()
        with mock.patch("tables.fold.context.Work", meter.work):
            decision = decide(row, command, Origin(0, offset, 1000 + offset), definition, KINDS)
        seconds = time.process_time() - began
        mib = _resident(peak=True) - before if measured else 0.0
        found.append(Cost(recipe, meter.steps, seconds, mib, load_seconds, load_mib))
        row = decision.row
        if row is None:
            break
        encode_instance(row)
    return found


def _forget_prepared() -> None:
    """Empty the caches of schemas and patterns, which a worker that has just taken over has not filled."""
    schema_bounds._kept.clear()
    schema_bounds.pattern.cache_clear()
    pattern_weight.cache_clear()
    re2.purge()


def _cost_of_loading(text: str) -> tuple[float, float]:
    """Return the seconds and the MiB of loading a pinned definition."""
    _forget_prepared()
    loader._pinned.clear()
    gc.collect()
    before, began = _resident(reset=True), time.process_time()
    load_pinned(text, content_hash(text), KINDS)
    return time.process_time() - began, _resident(peak=True) - before


def _resident(*, peak: bool = False, reset: bool = False) -> float:
    """Return the memory of this process in MiB, or its peak since the last reset; 0 where the system has no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    name = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(name))


def search(rng: Random, *, rounds: int, measured: bool = False) -> Iterator[Cost]:
    """Yield the costs of random recipes and of changes of the dearest ones by their count."""
    dearest: list[Cost] = []
    for _ in range(rounds):
        climbs = dearest and rng.random() < 0.6
        recipe = changed(rng.choice(dearest).recipe, rng) if climbs else recipe_of(rng)
        for cost in costs_of(recipe, measured=measured):
            yield cost
            dearest = sorted([*dearest, cost], key=lambda one: -one.steps)[:_KEPT]


def main(arguments: list[str]) -> int:
    minutes, seed = float(arguments[0]) if arguments else 5.0, int(arguments[1]) if len(arguments) > 1 else 1
    ends = time.monotonic() + minutes * 60
    found = 0
    worst_time = worst_memory = worst_load = most = Cost(recipe_of(Random(0)), 0)
    for cost in search(Random(seed), rounds=sys.maxsize, measured=True):
        found += 1
        most = max(most, cost, key=lambda one: one.steps)
        worst_time = max(worst_time, cost, key=lambda one: one.seconds)
        worst_memory = max(worst_memory, cost, key=lambda one: one.mib)
        worst_load = max(worst_load, cost, key=lambda one: one.load_seconds)
        if time.monotonic() > ends:
            break
    print(f"{found} commands; the most work: {most.steps} steps of {MOST_STEPS}")
    print(f"the longest: {worst_time.seconds * 1000:.0f} ms at {worst_time.steps} steps: {worst_time.recipe}")
    print(f"the largest: {worst_memory.mib:.0f} MiB at {worst_memory.steps} steps: {worst_memory.recipe}")
    loading = f"{worst_load.load_seconds * 1000:.0f} ms, {worst_load.load_mib:.0f} MiB"
    print(f"the longest loading: {loading}, {len(text_of(worst_load.recipe))} characters: {worst_load.recipe}")
    too_long = worst_time.seconds > MOST_SECONDS or worst_load.load_seconds > MOST_LOAD_SECONDS
    too_large = max(worst_memory.mib, worst_load.load_mib) > MOST_MIB
    return int(too_long or too_large or most.steps > MOST_STEPS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
