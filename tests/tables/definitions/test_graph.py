"""Drawings of definitions: complete, well-formed, and safe to print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from steps.registry import all_kinds
from tables.definition import Definition
from tables.definitions import graph
from tables.definitions.loader import load

EXAMPLES = sorted((Path(__file__).parents[3] / "specs" / "ceremonies").glob("*.yaml"))
WIDTH = 80


def loaded(file: Path) -> Definition:
    return load(file.read_bytes(), file.name, all_kinds())


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_the_terminal_drawing_shows_everything_in_boxes_that_close(file: Path) -> None:
    definition = loaded(file)
    text = graph.terminal(definition)
    for name in (
        *definition.states,
        *definition.steps,
        *definition.guards,
        *(t.trigger for t in definition.transitions),
    ):
        assert name in text
    boxed = [line for line in text.splitlines() if line.startswith(tuple("┌│└╔║╚"))]
    assert boxed and {len(line) for line in boxed} == {WIDTH}
    assert text.count("┌") + text.count("╔") == text.count("┘") + text.count("╝") == len(definition.states)
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_mermaid_has_a_node_or_subgraph_per_state_and_an_arrow_per_edge(file: Path) -> None:
    definition = loaded(file)
    text = graph.mermaid(definition)
    assert text.startswith("flowchart TD\n")
    assert text.count("==>") == len(definition.transitions)
    assert text.count(" --> ") == sum(len(step.after) for step in definition.steps.values())
    assert text.count("subgraph ") == text.count("\n  end\n") == len({s.state for s in definition.steps.values()})
    ids = set(re.findall(r"\b[ST]\d+\b", text))
    assert len(ids) == len(definition.states) + len(definition.steps)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_dot_has_a_node_per_state_and_an_arrow_per_transition(file: Path) -> None:
    definition = loaded(file)
    text = graph.dot(definition)
    assert text.startswith("digraph ") and text.endswith("}\n")
    assert text.count(" -> ") == len(definition.transitions)
    assert text.count("shape=") == len(definition.states) + 1


def test_each_transition_shows_its_condition() -> None:
    drawn = graph.terminal(loaded(next(f for f in EXAMPLES if f.stem == "backlog_review")))
    assert "review_done ─▶ DECIDING  when all steps are done" in drawn
    assert "reject_review  ─▶ REJECTED  when approve_story fails" in drawn


def test_a_failure_that_stands_first_is_drawn_as_such_and_success_as_such() -> None:
    # specification 12.2
    text = """version: "1.0"
name: x
description: d
states:
- {id: RUN, description: r, initial: true}
- {id: BAD, description: b, terminal: true}
- {id: GOOD, description: g, terminal: true}
transitions:
- {from: RUN, to: BAD, trigger: lose, description: d}
- {from: RUN, to: GOOD, trigger: win, description: d}
steps:
- {id: one, state: RUN, handler: human_gate_step, config: {role: R, message: m}, on_failure: lose}
"""
    definition = load(text, "x.yaml", all_kinds())
    drawn = graph.terminal(definition)
    assert "lose ─▶ BAD  when one fails" in drawn
    assert "win  ─▶ GOOD  when all steps are done" in drawn
    assert "lose<br/>[when one fails]" in graph.mermaid(definition)
    assert r"lose\l[when one fails]\l" in graph.dot(definition)


HOSTILE = """\
version: "1.0"
name: h
description: "clear \\e[2J and `bell` \\a, WIDE"
states:
- {id: A, description: "漢字\\e]0;x\\a", initial: true}
- {id: B, description: b, terminal: true}
transitions:
- {from: A, to: B, trigger: "say \\"x\\" <b> \\\\ # \\n end", description: d}
- {from: A, to: B, trigger: other, description: d}
steps:
- id: LONG
  state: A
  handler: human_gate_step
  config: {role: R, message: m}
guards:
  "odd \\e name": {type: human, check: "free \\e[1m text"}
""".replace("WIDE", "漢字" * 40).replace("LONG", "s" * 100)


def test_texts_of_a_definition_cannot_steer_a_terminal_or_break_the_syntax() -> None:
    definition = load(HOSTILE, "h.yaml", all_kinds())
    drawings = [graph.terminal(definition), graph.mermaid(definition), graph.dot(definition)]
    for text in drawings:
        assert all(c.isprintable() or c == "\n" for c in text)
    assert '|"say #quot;x#quot; #lt;b#gt; \\ #35;   end"|' in drawings[1]
    assert r'label="say \"x\" <b> \\ #   end"' in drawings[2]
    assert "by its trigger only" in drawings[0]
