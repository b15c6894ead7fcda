"""The example ceremonies run to their end in the fold, with every step answered as by its agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.aggregation import aggregate, output_of
from steps.deliberation import DeliberationConfig
from steps.registry import all_kinds
from tables.definitions.loader import load
from tables.effects import StepRequested
from tables.instance import TERMINAL, Phase
from tests.tables.world import World

FOLDER = Path(__file__).parents[3] / "specs" / "ceremonies"
TASKS = [{"title": "Build it", "description": "All of it", "estimated_hours": 4, "deliberation_indices": [0]}]


def world_of(name: str) -> World:
    kinds = all_kinds()
    return World(load((FOLDER / f"{name}.yaml").read_bytes(), f"{name}.yaml", kinds), kinds)


def answer(world: World, request: StepRequested) -> None:
    """Answer a request as the agent of the step and its agents would."""
    step, body = request.step_id, request.body
    config: Any = world.definition.steps[step].config
    match request.kind:
        case "deliberation":
            world.outcome(step, "submitted", deliberation_id="d-1")
            assert isinstance(config, DeliberationConfig)
            for agent in config.agent_ids:
                world.result(step, agent, role=config.role)
        case "task_extraction":
            world.outcome(step, "submitted", deliberation_id="d-2")
            world.result(step, "agent-task-extractor-001", value=TASKS)
        case "aggregation":  # so many in one command that the agent was asked after all
            result = aggregate(body["aggregation_type"], body["sources"], body["values"])
            world.done(step, output_of(body["aggregation_type"], body["sources"], result))
        case "human_gate":
            world.opened(step)
        case "publish":
            world.done(step, {**body, "published": True}, published={"stream": "S", "sequence": 1, "duplicate": False})


def people(world: World, gate: str, *, approve: bool) -> None:
    config: Any = world.definition.steps[gate].config
    for number in range(config.quorum if approve else 1):
        world.decide(gate, approved=approve, actor=f"person-{number}", role=config.role)


def run(world: World, *, approve: bool = True, limit: int = 100) -> None:
    """Answer requests until none is left; the bound only ends a mistaken test."""
    for _ in range(limit):
        asked = [r for r in world.requests() if world.step(r.step_id).phase == "asked" and is_newest(world, r)]
        gates = [name for name, step in world.live.steps.items() if step.phase is Phase.GATE]
        if world.live.status in TERMINAL or not (asked or gates):
            return
        if asked:
            answer(world, asked[0])
        else:
            people(world, gates[0], approve=approve)
    pytest.fail("the ceremony does not come to an end")


def is_newest(world: World, request: StepRequested) -> bool:
    return world.step(request.step_id).attempt == request.attempt


INPUTS: dict[str, dict[str, Any]] = {
    "approval": {},
    "backlog_review": {"title": "Log in", "publish_data": {"note": "by the demo"}},
    "merge_chain": {"payload": {"n": 1}},
    "planning": {"title": "Log in", "score": {"value": 0.9}, "urgent": "yes"},
    "refinement": {"draft": {"title": "x"}, "defaults": {"size": 1}, "labels": ["a"], "more_labels": ["a", "b"]},
}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("approval", ["APPROVED"]),
        ("backlog_review", ["DECIDING", "PUBLISHING", "REVIEWED"]),
        ("merge_chain", ["MERGED"]),
        ("planning", ["JUDGING", "PUBLISHING", "PLANNED"]),
        ("refinement", ["AGREEING", "COLLECTING", "REFINED"]),
    ],
)
def test_an_example_completes(name: str, path: list[str]) -> None:
    world = world_of(name)
    world.start(**INPUTS[name])
    run(world)
    assert (world.live.status, world.path()) == ("COMPLETED", path), world.live.error_message
    assert {status for _, status in world.executed()} <= {"COMPLETED", "WAITING_FOR_HUMAN"}


def test_every_example_is_run() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(INPUTS)


@pytest.mark.parametrize(("name", "end"), [("approval", "DECLINED"), ("backlog_review", "REJECTED")])
def test_a_rejection_takes_the_way_of_on_failure(name: str, end: str) -> None:
    # specification 8.6
    world = world_of(name)
    world.start(**INPUTS[name])
    run(world, approve=False)
    assert (world.live.status, world.path()[-1]) == ("COMPLETED", end)


def test_planning_waits_for_its_owner_where_the_score_is_low() -> None:
    world = world_of("planning")
    world.start(**(INPUTS["planning"] | {"score": {"value": 0.5}}))
    run(world)
    assert world.live.state == "JUDGING"
    world.decide("owner_agrees", role="PRODUCT_OWNER")
    assert world.live.state == "PUBLISHING"
    run(world)
    assert (world.live.status, world.live.state) == ("COMPLETED", "PLANNED")


def test_planning_ends_when_its_owner_rejects_it() -> None:
    world = world_of("planning")
    world.start(**(INPUTS["planning"] | {"score": {"value": 0.5}}))
    run(world)
    world.decide("owner_refuses", role="PRODUCT_OWNER")
    assert (world.live.status, world.live.state) == ("COMPLETED", "TURNED_DOWN")


def test_refinement_repeats_until_its_guard_holds() -> None:
    world = world_of("refinement")
    world.start(**INPUTS["refinement"])
    run(world, approve=False, limit=500)
    assert world.live.status == "FAILED"
    assert world.path()[:4] == ["AGREEING", "REFINING", "AGREEING", "REFINING"]
    assert world.live.version >= 200
