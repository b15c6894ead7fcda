"""A folded batch is counted by definition and handler, with durations between times of the log."""

from __future__ import annotations

import pytest
import structlog
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from streams.folded import Folded
from streams.metrics import Metrics
from streams.outcomes import DefinitionOutcomes, Outcomes
from tables.instance import Instance
from tables.kinds import Kinds
from tests.tables.fold.test_operations import PUBLISH, RECEIPT
from tests.tables.world import ASKED, KINDS, World, definition_of

MIXED = """
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: d}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list},
     retry: {max_attempts: 2, backoff_seconds: 10}}
  - {id: gate, state: RUN, handler: human_gate_step, config: {role: PO, message: good}, after: [one]}
"""
LOOP = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: RUN, trigger: again, description: d}
  - {from: RUN, to: DONE, trigger: finish, guards: [never], description: d}
guards:
  never: {check: "step_status:tell:COMPLETED"}
steps:
  - {id: tell, state: RUN, handler: publish_step, config: {subject: ceremony.x, event_type: x}, on_failure: again}
"""


class CountedWorld(World):
    """A world whose commands are counted as one batch."""

    def __init__(self, body: str, kinds: Kinds = ASKED) -> None:
        super().__init__(definition_of(body), kinds)
        self.metrics = Metrics(CollectorRegistry())
        self._counted = 0

    def count(self, *more: Folded) -> None:
        rows: list[Instance | None] = [None, *(decision.row for decision in self.decisions)]
        folded = [
            Folded(before, decision.row, self.definition, decision.effects)
            for before, decision in zip(rows, self.decisions, strict=False)
        ]
        Outcomes(self.metrics).count([*folded[self._counted :], *more])
        self._counted = len(self.decisions)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"definition": "probe", **labels})

    def of_handler(self, name: str, handler: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"handler": f"{handler}_step"})


def test_steps_are_counted_by_definition_and_handler_with_the_time_of_their_last_attempt() -> None:
    # specification 29.1
    world = CountedWorld(MIXED)
    world.start(a=1)
    world.wait(3)
    world.failed("one")
    world.fire("retry/one")
    world.wait(40)
    world.done("one")
    world.count()
    assert world.value("ceremony_started_total") == 1
    assert world.value("ceremony_step_retries_total", handler="aggregation_step") == 1
    assert world.value("ceremony_steps_total", handler="aggregation_step", status="COMPLETED") == 1
    assert world.of_handler("ceremony_step_seconds_sum", "aggregation") == 40
    assert world.of_handler("ceremony_step_seconds_count", "aggregation") == 1


def test_a_gate_is_timed_from_its_opening_to_its_decision_and_is_no_step_duration() -> None:
    world = CountedWorld(MIXED)
    world.start(a=1)
    world.done("one")
    world.opened("gate")
    world.wait(7200)
    world.decide("gate", role="PO")
    world.count()
    assert world.value("ceremony_steps_total", handler="human_gate_step", status="WAITING_FOR_HUMAN") == 1
    assert world.value("ceremony_steps_total", handler="human_gate_step", status="COMPLETED") == 1
    assert world.value("ceremony_gate_seconds_sum") == 7200
    assert world.of_handler("ceremony_step_seconds_count", "human_gate") is None
    assert world.value("ceremony_ended_total", status="COMPLETED") == 1
    assert world.value("ceremony_lifetime_seconds_sum") == 7200


def test_a_cancelled_gate_is_timed_and_a_cancelled_step_is_only_counted() -> None:
    gate, step = CountedWorld(MIXED), CountedWorld(MIXED)
    for world in (gate, step):
        world.start(a=1)
    gate.done("one")
    gate.opened("gate")
    for world in (gate, step):
        world.wait(60)
        world.cancel()
        world.count()
    assert gate.value("ceremony_gate_seconds_sum") == 60
    assert step.value("ceremony_steps_total", handler="aggregation_step", status="CANCELLED") == 1
    assert step.of_handler("ceremony_step_seconds_count", "aggregation") is None


def test_steps_that_the_fold_settles_at_once_took_no_time() -> None:
    world = CountedWorld(MIXED, KINDS)
    world.start(a=1)
    world.count()
    assert world.of_handler("ceremony_step_seconds_count", "aggregation") == 1
    assert world.of_handler("ceremony_step_seconds_sum", "aggregation") == 0
    assert world.of_handler("ceremony_step_seconds_count", "human_gate") is None


@pytest.mark.parametrize(("duplicate", "label"), [(False, "false"), (True, "true")])
def test_publications_are_counted_by_definition_and_handler(duplicate: bool, label: str) -> None:  # noqa: FBT001
    world = CountedWorld(PUBLISH)
    world.start()
    world.done("publish_it", {"sent": True}, published=RECEIPT | {"duplicate": duplicate})
    world.count()
    assert world.value("ceremony_publish_total", handler="publish_step", duplicate=label) == 1
    assert world.value("ceremony_publish_failures_total", handler="publish_step") is None


def test_a_publish_step_that_fails_for_good_is_a_failed_publication() -> None:
    world = CountedWorld(PUBLISH)
    world.start()
    world.failed("publish_it", "payload_rejected")
    world.count()
    assert world.value("ceremony_publish_failures_total", handler="publish_step") == 1
    assert world.value("ceremony_ended_total", status="FAILED") == 1


def test_a_step_whose_state_is_entered_anew_by_its_end_is_timed_by_the_row_before() -> None:
    world = CountedWorld(LOOP)
    world.start()
    world.wait(5)
    world.failed("tell")
    assert world.step("tell").attempt == 2, "the loop began anew in the same command"
    world.count()
    assert world.of_handler("ceremony_step_seconds_sum", "publish") == 5


def test_a_batch_is_counted_once_and_the_next_one_is_added() -> None:
    world = CountedWorld(PUBLISH)
    world.start()
    world.count()
    world.done("publish_it", published=RECEIPT)
    world.count()
    assert world.value("ceremony_started_total") == 1
    assert world.value("ceremony_steps_total", handler="publish_step", status="COMPLETED") == 1


def test_a_definition_that_cannot_be_read_is_counted_as_unreadable() -> None:
    world = CountedWorld(PUBLISH)
    world.start()
    ended = world.cancel()
    Outcomes(world.metrics).count([Folded(None, ended.row, None, ended.effects)])
    found = world.metrics.registry.get_sample_value
    labels = {"definition": "unreadable", "handler": "unreadable", "status": "CANCELLED"}
    assert found("ceremony_steps_total", labels) == 1
    assert found("ceremony_ended_total", {"definition": "unreadable", "status": "CANCELLED"}) == 1


def test_an_error_of_the_counting_is_logged_and_the_rest_of_the_batch_is_counted() -> None:
    world = CountedWorld(PUBLISH)
    world.start()
    broken = replace(world.events()[0], subject="ceremony.step.executed", payload={})
    with structlog.testing.capture_logs() as lines:
        world.count(Folded(None, None, world.definition, [broken]))
    assert [line["event"] for line in lines] == ["outcomes_not_counted"]
    assert world.value("ceremony_started_total") == 1


def test_an_error_of_one_definitions_metrics_keeps_no_other_from_being_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = CountedWorld(PUBLISH)
    world.start()
    unreadable = Folded(None, world.live, None, world.decisions[-1].effects)
    add = DefinitionOutcomes.add

    def failing(outcomes: DefinitionOutcomes) -> None:
        if outcomes._definition is None:
            raise ValueError("broken")
        add(outcomes)

    monkeypatch.setattr(DefinitionOutcomes, "add", failing)
    with structlog.testing.capture_logs() as lines:
        Outcomes(world.metrics).count([unreadable, Folded(None, world.live, world.definition, unreadable.effects)])
    assert [line["event"] for line in lines] == ["outcomes_not_counted"]
    assert world.value("ceremony_started_total") == 1
