"""The cost of CEL expressions: it is counted before they are judged, and nothing is judged by the order of a map."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.registry import all_kinds
from tables.cel.cost import MAX_STEPS, NotJudged, counted
from tables.cel.engine import compiled, evaluate
from tables.cel.reads import picked
from tables.definitions.loader import load
from tables.errors import DefinitionInvalid
from tables.patterns import pattern_weight
from tables.work import MOST_STEPS, Work

ROOT = Path(__file__).parents[3]
PROCESSES = 6


def judged(source: str, work: Work | None = None, **inputs: Any) -> tuple[bool, str]:
    expression = compiled(source)
    variables: dict[str, Any] = {"inputs": inputs, "outputs": {}, "status": {}, "state": "A", "ceremony": {}}
    read = {name: picked(variables[name], parts) for name, parts in expression.reads.items()}
    found = evaluate(expression, read, work or Work())
    return found.holds, found.reason.partition(":")[0]


VOTES = {"ann": 5, "ben": 4, "cid": 3, "dan": 1}


@pytest.mark.parametrize(
    "source",
    [
        "inputs.votes.filter(k, inputs.votes[k] > 2)[0] == 'ben'",
        "inputs.votes.map(k, k)[0] == 'ann'",
        "inputs.votes.map(k, inputs.votes[k] > 2, k)[0] == 'ann'",
        "inputs.votes.all(k, inputs.votes[k] > 0)",
        "inputs.votes.exists(k, k == 'ann')",
        "inputs.votes.exists_one(k, k == 'ann')",
        "dyn(inputs.votes).exists(k, k == 'ann')",
        "inputs['votes'].exists(k, k == 'ann')",
        "inputs[inputs.name].exists(k, k == 'ann')",
        "(inputs.yes ? inputs.votes : inputs.list).exists(k, k == 'ann')",
        "inputs.list.all(x, inputs.votes.exists(k, k == 'ann'))",
        "inputs.maps.all(m, m.exists(k, k == 'a'))",
        "inputs.maps[0].exists(k, k == 'a')",
        "inputs.nested.all(m, m.inner.exists(k, k == 'a'))",
        "[inputs.votes][0].exists(k, k == 'ann')",
        "[inputs.votes].map(m, m)[0].exists(k, k == 'ann')",
        "[inputs.votes].filter(m, true)[0].exists(k, k == 'ann')",
        "(inputs.maps + [inputs.votes])[1].exists(k, k == 'ann')",
        "{'a': inputs.votes}.a.exists(k, k == 'ann')",
        "dyn({'a': 1}).exists(k, k == 'a')",
        "dyn(google.protobuf.Struct{fields: {'a': google.protobuf.Value{number_value: 1.0}}}).exists(k, k == 'a')",
    ],
)
def test_no_macro_walks_over_a_map_however_it_comes_by_it(source: str) -> None:
    """The engine walks over maps in an order that differs by process."""
    # specification 3.9
    found = judged(
        source,
        votes=VOTES,
        list=[1],
        maps=[{"a": 1}],
        nested=[{"inner": []}, {"inner": {"a": 1}}],
        name="votes",
        yes=True,
    )
    assert found == (False, "cel_over_map")


@pytest.mark.parametrize(
    "source",
    [
        "inputs.list.all(x, x > 0)",
        "inputs.rows.exists(r, r.tags.exists(t, t == 'a'))",
        "inputs.rows.filter(r, r.n > 1).size() == 1",
        "inputs.rows.map(r, r.n) == [1, 2]",
        "inputs.rows[0].tags.all(t, t in ['a', 'b'])",
        "inputs.votes == {'dan': 1, 'cid': 3, 'ben': 4, 'ann': 5}",
        "'ann' in inputs.votes && size(inputs.votes) == 4 && has(inputs.votes.ben)",
        "['ann', 'ben'].all(k, inputs.votes[k] > 3)",
        "{'a': [1, 2]}.a.all(x, x > 0)",
        "'votes' in inputs && !('other' in inputs) && has(inputs.rows) && !has(inputs.other)",
    ],
)
def test_macros_over_lists_and_maps_as_a_whole_are_judged(source: str) -> None:
    # specification 3.9
    found = judged(source, votes=VOTES, list=[1, 2], rows=[{"n": 1, "tags": ["a"]}, {"n": 2, "tags": ["b"]}])
    assert found == (True, "the expression is true")


def definition(check: str) -> str:
    return f"""\
version: "1.0"
name: probe
description: d
inputs: {{required: [votes]}}
states: [{{id: A, description: a, initial: true}}, {{id: B, description: b, terminal: true}}]
transitions: [{{from: A, to: B, trigger: t, description: d, guards: [g]}}]
guards: {{g: {{check: "cel:{check}"}}}}
"""


@pytest.mark.parametrize(
    ("check", "code"),
    [
        ("inputs.exists(k, k == 'a')", "cel_over_map"),
        ("outputs.all(k, true)", "cel_over_map"),
        ("{'a': 1}.map(k, k) == ['a']", "cel_over_map"),
        ("timestamp(inputs.votes).getHours('Europe/Berlin') == 1", "cel_time_zone"),
        ("timestamp(inputs.votes).getHours(inputs.zone) == 1", "cel_time_zone"),
    ],
)
def test_a_rule_that_is_broken_whatever_the_data_is_a_load_error(check: str, code: str) -> None:
    # specification 3.9, 3.10
    with pytest.raises(DefinitionInvalid) as caught:
        load(definition(check), "probe.yaml", all_kinds())
    assert [problem.rule for problem in caught.value.problems] == [code]


def test_time_zones_are_offsets_for_names_differ_by_machine() -> None:
    # specification 3.10
    moment = "2026-01-01T00:00:00Z"
    assert judged("timestamp(inputs.t).getHours('+02:00') == 2 && timestamp(inputs.t).getHours('UTC') == 0", t=moment)[
        0
    ]
    assert judged("timestamp(inputs.t).getHours() == 0", t=moment)[0]
    assert judged("timestamp(inputs.t).getHours('Europe/Berlin') == 1", t=moment) == (False, "cel_time_zone")
    assert judged("timestamp(inputs.t).getHours(inputs.z) == 1", t=moment, z="UTC") == (False, "cel_time_zone")


TEXT = "a" * 200_000


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "source",
    [
        "inputs.l.all(x, !inputs.s.matches('a{1,900}b'))",
        "!inputs.s.matches('(a?){900}b')",
        "!inputs.s.matches(inputs.s)",
        "inputs.keys.all(k, (inputs.s + inputs.s + inputs.s + inputs.s).contains(k))",
        "inputs.l.all(x, inputs.ll == inputs.ll)",
        "inputs.l.all(x, size(inputs.l + inputs.ll) > 0)",
        "!inputs.s.contains(inputs.half)",
        "inputs.l.all(x, inputs.s + inputs.s == inputs.s)",
        "inputs.ll.filter(x, true).size() > 0",
        "inputs.l.all(x, inputs.l.all(y, x in inputs.ll))",
        "inputs.l.all(x, bytes(inputs.s) == bytes(inputs.s))",
        "inputs.most == inputs.most",
    ],
)
def test_an_expression_is_not_judged_whose_cost_is_over_the_bound(source: str) -> None:
    # specification 3.7
    found = judged(
        source,
        l=list(range(2000)),
        ll=[[n] for n in range(2000)],
        s=TEXT,
        half="a" * 100_000 + "b",
        keys=[f"k{n}" for n in range(2000)],
        most=[0] * 380_000,
    )
    assert found == (False, "cel_too_costly")


def test_judging_takes_from_the_work_of_its_command() -> None:
    # specification 20.3
    work = Work(7000)
    assert judged("inputs.n == 1", work, n=1) == (True, "the expression is true")
    assert 3000 < work.left < 5000
    assert judged("inputs.l.all(x, x == 0)", work, l=[0] * 1000) == (False, "too_much_work")
    assert judged("inputs.n == 1", work, n=1) == (False, "too_much_work")


def test_each_judgement_and_each_node_of_its_expression_takes_work() -> None:
    # specification 20.3
    short, long = Work(), Work()
    judged("true", short)
    judged(" || ".join(["inputs.n == 1"] * 200), long)
    assert MOST_STEPS - short.left >= 1500
    assert MOST_STEPS - long.left >= 100_000


@pytest.mark.parametrize(
    ("pattern", "least"),
    [("a", 600), ("a{1,900}b", 200_000), (r"\\pL+", 130_000), ("((a{9}){9}){9}", 22_000), ("a?" * 200, 31_000)],
)
def test_each_call_of_a_pattern_takes_the_work_of_compiling_it(pattern: str, least: int) -> None:
    # specification 20.3
    few, many = Work(), Work()
    judged(f"inputs.l.all(x, inputs.s.matches('{pattern}'))", few, l=[1], s="ab")
    judged(f"inputs.l.all(x, inputs.s.matches('{pattern}'))", many, l=[1] * 11, s="ab")
    assert few.left - many.left >= 10 * least


def test_parts_that_an_expression_does_not_read_cost_nothing() -> None:
    source = "has(inputs.big) && inputs.small.n == 1 && 'big' in inputs"
    assert judged(source, Work(6000), big=[0] * 100_000, small={"n": 1, "list": [0] * 100_000})[0]


def test_a_count_over_the_bound_ends_early() -> None:
    """A chain of choices must not make the count itself dear."""
    chain = "inputs.l"
    for _ in range(5):
        chain = f"(inputs.yes ? {chain} : {chain})"
    with pytest.raises(NotJudged):
        counted(
            compiled(f"{chain}.all(x, {chain} == [x])").tree, {"inputs": {"yes": True, "l": [[0]] * 50_000}}, Work()
        )
    few = counted(compiled(f"{chain}.all(x, x == 1)").tree, {"inputs": {"yes": True, "l": [1] * 100}}, Work())
    assert few.steps < MAX_STEPS // 100


@pytest.mark.parametrize(
    ("text", "least"),
    [("a", 5), (r"\pL", 1200), (r"[^\pL]{3}", 3600), ("a{900}", 904), ("(a{30}){30}", 900), (r"(\pL){100}", 119_804)],
)
def test_the_weight_of_a_pattern_is_no_less_than_its_instructions(text: str, least: int) -> None:
    assert pattern_weight(text) >= least


_CHILD = """
from tests.tables.cel.test_cost import VOTES, judged
sources = [
    "inputs.votes.filter(k, inputs.votes[k] > 2)[0] == 'ben'", "inputs.votes.map(k, k)[0] == 'ann'",
    "inputs.maps.all(m, m.map(k, k)[0] == 'a')", "inputs.votes == {'dan': 1, 'cid': 3, 'ben': 4, 'ann': 5}",
    "inputs.missing == 1 || inputs.other == 2", "{'b': inputs.missing, 'a': inputs.other}.a == 1",
]
print([judged(source, votes=VOTES, maps=[{'a': 1, 'b': 2}]) for source in sources])
"""


def test_every_process_judges_alike() -> None:
    """The seed of the engine's hash maps is of the process; Python's is set to differ too."""
    # specification 3.9, 18.2
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(PROCESSES)
    ]
    assert len({child.communicate(timeout=60)[0] for child in children}) == 1
    assert all(child.returncode == 0 for child in children)
