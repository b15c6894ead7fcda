"""Events of the fold in many random ceremonies: payloads that follow the document, and their order."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator

import pytest

from streams.envelope import event_record
from tables.effects import Event, StepRequested
from tests.contract.asyncapi import addresses, validate_message
from tests.tables.properties.play import played
from tests.tables.world import World

pytestmark = pytest.mark.uncounted
RUNS = 110
# Subjects of the fold.
FOLDED = {subject for subject in addresses() if subject.startswith("ceremony.")} - {
    "ceremony.deadletter",
    "ceremony.dualwrite.reconcile.requested",
}
CONCLUSIONS = {"COMPLETED", "FAILED", "CANCELLED"}
# Steps that finish without their agents.
SETTLED_AT_ONCE = {"aggregation_step", "human_gate_step"}


@functools.cache
def worlds() -> tuple[World, ...]:
    return tuple(map(played, range(RUNS)))


@pytest.fixture(params=range(RUNS))
def world(request: pytest.FixtureRequest) -> World:
    seed: int = request.param
    return worlds()[seed]


def envelopes(world: World) -> Iterator[tuple[str, dict[str, object]]]:
    for ordinal, event in enumerate(world.events()):
        yield event.subject, json.loads(event_record(event, 0, ordinal, 1)[1])


def test_every_event_follows_the_document_and_every_subject_occurs() -> None:
    """Payloads have exactly the described fields; times are ISO-8601 in UTC with milliseconds."""
    # specification 1.8, 16.6
    seen: Counter[str] = Counter()
    for world in worlds():
        for subject, envelope in envelopes(world):
            if not seen[subject] > 150:  # so many of one subject are enough
                validate_message(subject, envelope)
            seen[subject] += 1
    assert set(seen) == FOLDED


def test_transitions_form_a_path_and_each_event_names_its_state(world: World) -> None:
    """`current_state` is the state before the next transition; only a reopened ceremony has events after its end."""
    # specification 11.6
    state, ended = world.definition.initial, False
    for event in world.events():
        payload = event.payload
        if event.subject == "ceremony.start.refused" or payload.get("late"):
            continue
        assert not ended or event.subject == "ceremony.resumed"
        ended = event.subject.removeprefix("ceremony.") in ("completed", "failed", "cancelled", "timed_out")
        if event.subject == "ceremony.transition.applied":
            assert payload["from_state"] == state
            ways = world.definition.transitions_from[state]
            assert (payload["trigger"], payload["to_state"]) in {(way.trigger, way.to_state) for way in ways}
            state = payload["to_state"]
        else:
            assert payload.get("current_state", state) == state


def test_a_step_finishes_once_per_attempt_and_only_after_its_start(world: World) -> None:
    # specification 11.6
    begun: set[tuple[str, int]] = set()
    concluded: Counter[tuple[str, int]] = Counter()
    for effect in world.effects:
        if isinstance(effect, StepRequested):
            begun.add((effect.step_id, effect.attempt))
            assert not concluded[effect.step_id, effect.attempt]
        elif isinstance(effect, Event) and effect.subject == "ceremony.step.executed":
            payload = effect.payload
            attempt = payload["step_id"], payload["attempt"]
            at_once = world.definition.steps[payload["step_id"]].handler in SETTLED_AT_ONCE
            # Nor did an attempt start whose request could not be made.
            assert attempt in begun or at_once or payload["status"] == "FAILED"
            if payload["status"] in CONCLUSIONS:
                concluded[attempt] += 1
            if payload["status"] == "CANCELLED" or (
                payload["status"] == "FAILED" and payload["error_code"] != "rejected"
            ):
                assert payload["output"] == {}
            if payload["status"] == "WAITING_FOR_HUMAN":
                assert payload["output"]["waiting"] is True
    assert not [attempt for attempt, times in concluded.items() if times > 1]


def test_a_publication_is_requested_before_it_starts_and_announced_before_its_step_finishes(world: World) -> None:
    # specification 9.7
    asked: set[str] = set()
    told: set[str] = set()
    announced: dict[str, bool] = {}
    for effect in world.effects:
        if isinstance(effect, StepRequested) and effect.kind == "publish":
            assert effect.body["idempotency_key"] in asked
            announced[effect.step_id] = effect.body["idempotency_key"] in told
        elif isinstance(effect, Event) and effect.subject == "ceremony.publish.requested":
            asked.add(effect.payload["idempotency_key"])
        elif isinstance(effect, Event) and effect.subject == "ceremony.publish.completed":
            key = effect.payload["idempotency_key"]
            assert key in asked and key not in told
            told.add(key)
            announced[effect.payload["step_id"]] = True
        elif isinstance(effect, Event) and effect.subject == "ceremony.step.executed":
            step = world.definition.steps[effect.payload["step_id"]]
            if step.handler == "publish_step" and effect.payload["status"] == "COMPLETED":
                assert announced[step.id]
