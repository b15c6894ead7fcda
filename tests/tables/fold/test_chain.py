"""A ceremony of consecutive steps, from its start to its end."""

from __future__ import annotations

from tables.definition import Definition
from tests.tables.world import World, definition_of

MERGED = {"sources": ["a"], "aggregation_type": "merge", "aggregated_result": {"x": 1}}


def chain(length: int) -> Definition:
    steps = "".join(
        f"  - {{id: s{i}, state: RUN, handler: aggregation_step, config: "
        f"{{sources: [{'a' if i == 1 else f's{i - 1}.aggregated_result'}], aggregation_type: merge}}}}\n"
        for i in range(1, length + 1)
    )
    return definition_of(
        f"""
inputs: {{required: [a]}}
states:
  - {{id: RUN, description: r, initial: true}}
  - {{id: DONE, description: d, terminal: true}}
transitions:
  - {{from: RUN, to: DONE, trigger: finish, description: f}}
steps:
{steps}"""
    )


def test_steps_of_a_state_run_one_after_the_other_and_the_ceremony_completes() -> None:
    # specification 2.10, 11.1, 12.2, 12.7
    world = World(chain(3))
    world.start(a={"x": 1})
    assert [request.step_id for request in world.requests()] == ["s1"]
    for name in ("s1", "s2", "s3"):
        world.done(name, MERGED)
    assert world.live.status == "COMPLETED"
    assert [request.step_id for request in world.requests()] == ["s1", "s2", "s3"]
    assert world.subjects() == [
        "ceremony.started",
        "ceremony.step.executed",
        "ceremony.step.executed",
        "ceremony.step.executed",
        "ceremony.transition.applied",
        "ceremony.completed",
    ]


def test_an_outcome_of_a_finished_step_changes_nothing() -> None:
    # specification 11.7
    world = World(chain(2))
    world.start(a={"x": 1})
    world.done("s1", MERGED)
    decision = world.done("s1", {"other": 2})
    assert (decision.note, decision.effects) == ("finished_step", ())
    assert world.outcome("s2", "completed", attempt=7).note == "stale_attempt"
