"""The checker finds each defect planted in a recorded run, by name, and no violation in the run itself.

`recorded_run.json` was recorded from the whole engine (embedded log, real NATS, simulated Ray executor with failures
and duplicates): five definitions, ceremonies that completed, failed or were rejected, and one at an open gate.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checker.__main__ import main
from tests.checker.check import check_run
from tests.checker.recording import Instance, Message, Run, Start, StoredInstance, load, load_starts
from tests.checker.stores import COMPARED
from tests.checker.violations import RULES

pytestmark = pytest.mark.uncounted
OURS = frozenset({"ports", "tables", "steps", "streams", "bridge", "ceremony"})
RECORDING = Path(__file__).with_name("recorded_run.json")
# Completed with a publish; completed after its gate was rejected; at an open gate; failed after retries.
PLANNED, GATED, WAITING, FAILED = (
    "planning-1-3:story-1",
    "approval-0-6:story-1",
    "approval-1-7:story-1",
    "backlog-review-0-0:story-1",
)


@functools.cache
def recorded() -> Run:
    return load(RECORDING)


class Tampered:
    """A copy of the recorded run for planting defects; `run` renumbers the sequences like a stream."""

    def __init__(self) -> None:
        run = copy.deepcopy(recorded())
        self.messages = list(run.messages)
        self.definitions = dict(run.definitions)
        self.starts = list(run.starts)
        self.instances = list(run.instances)
        self.renumbered = True
        self.stored: list[StoredInstance] | None = None
        """The instances in a store; None: the run has no store."""

    def run(self) -> Run:
        messages = self._numbered() if self.renumbered else self.messages
        stores = {} if self.stored is None else {"valkey": self.stored}
        return Run(messages, self.definitions, self.starts, self.instances, stores)

    def store(self, instance_id: str = "", **changes: Any) -> None:
        """Store every instance as the service shows it, but this one with changes."""
        stored = [as_stored(instance) for instance in self.instances]
        self.stored = [replace(one, **changes) if one.instance_id == instance_id else one for one in stored]

    def _numbered(self) -> list[Message]:
        now = {message.sequence: number for number, message in enumerate(self.messages, start=1)}
        for message in self.messages:
            if message.subject == "ceremony.publish.completed":
                payload = message.envelope["payload"]
                payload["sequence"] = now.get(payload["sequence"], 0)
        return [replace(message, sequence=number) for number, message in enumerate(self.messages, start=1)]

    def index(self, instance_id: str, subject: str, number: int = 0, **payload: Any) -> int:
        """The index of a message of this ceremony, with this subject and these payload fields."""
        found = [
            index
            for index, message in enumerate(self.messages)
            if message.subject == f"ceremony.{subject}"
            and instance_id in message.envelope["idempotency_key"]
            and payload.items() <= message.envelope["payload"].items()
        ]
        return found[number]

    def envelope(self, instance_id: str, subject: str, **payload: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.messages[self.index(instance_id, subject, **payload)].envelope
        return found

    def payload(self, instance_id: str, subject: str, **payload: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.envelope(instance_id, subject, **payload)["payload"]
        return found

    def drop(self, instance_id: str, subject: str, **payload: Any) -> Message:
        return self.messages.pop(self.index(instance_id, subject, **payload))

    def add(self, instance_id: str, subject: str, like: str, /, **payload: Any) -> dict[str, Any]:
        """Add an event of a ceremony at the end of the stream, with its own key; returns its envelope."""
        model = self.messages[self.index(instance_id, like)]
        version = 500 + len(self.messages)
        key = f"{instance_id}/{version}/0@1"
        whole = {name: model.envelope["payload"].get(name, "") for name in ("instance_id", "definition_name")}
        fields = {"event_type": f"ceremony.{subject}", "idempotency_key": key, "payload": whole | payload}
        sequence = max(message.sequence for message in self.messages) + 1
        self.messages.append(Message(sequence, f"ceremony.{subject}", key, {**model.envelope, **fields}))
        self.show(instance_id, version=version)
        return fields

    def show(self, instance_id: str, **changes: Any) -> None:
        """Change the row of an instance in the gRPC answers."""
        self.instances = [replace(one, **changes) if one.instance_id == instance_id else one for one in self.instances]

    def rekey(self, index: int, key: str) -> None:
        message = self.messages[index]
        message.envelope["idempotency_key"] = key
        self.messages[index] = replace(message, message_id=key)


def as_stored(instance: Instance) -> StoredInstance:
    """The instance as a sound store has it."""
    shared = {name: getattr(instance, name) for name in ("instance_id", *COMPARED, "step_status")}
    outputs = {step: json.loads(output) for step, output in instance.step_outputs.items()}
    return StoredInstance(**shared, step_outputs=outputs)


# (name, rule that must find it, function that plants it)
DEFECTS: list[tuple[str, str, Callable[[Tampered], Any]]] = []


def defect(rule: str) -> Callable[[Callable[[Tampered], Any]], Callable[[Tampered], Any]]:
    def plant(how: Callable[[Tampered], Any]) -> Callable[[Tampered], Any]:
        DEFECTS.append((how.__name__, rule, how))
        return how

    return plant


@defect("end_lost")
def a_lost_terminal_event(run: Tampered) -> None:
    run.drop(PLANNED, "completed")


@defect("end_lost")
def a_lost_failure(run: Tampered) -> None:
    run.drop(FAILED, "failed")


@defect("start_lost")
def an_accepted_start_without_any_event(run: Tampered) -> None:
    run.starts.append(Start("lost:story-1", "approval"))


@defect("start_lost")
def a_ceremony_whose_started_event_is_lost(run: Tampered) -> None:
    run.drop(WAITING, "started")


@defect("key_twice")
def a_repeated_effect(run: Tampered) -> None:
    index = run.index(GATED, "gate.decided")
    run.messages.insert(index, replace(copy.deepcopy(run.messages[index]), message_id="another"))


@defect("message_id_twice")
def one_message_id_on_two_subjects(run: Tampered) -> None:
    first, second = run.index(GATED, "gate.opened"), run.index(GATED, "completed")
    run.messages[second] = replace(run.messages[second], message_id=run.messages[first].message_id)


@defect("order_broken")
def two_events_of_a_ceremony_swapped(run: Tampered) -> None:
    one, other = run.index(PLANNED, "publish.requested"), run.index(PLANNED, "transition.applied", trigger="drafted")
    run.messages[one], run.messages[other] = run.messages[other], run.messages[one]


@defect("transition_unknown")
def a_transition_that_the_definition_does_not_have(run: Tampered) -> None:
    run.payload(PLANNED, "transition.applied", trigger="fast_track")["trigger"] = "slow_track"


@defect("path_broken")
def a_path_with_a_gap(run: Tampered) -> None:
    run.drop(PLANNED, "transition.applied", trigger="fast_track")


@defect("event_after_end")
def an_event_after_the_end(run: Tampered) -> None:
    run.add(GATED, "paused", "started", status="PAUSED")


@defect("two_ends")
def two_ends_of_one_ceremony(run: Tampered) -> None:
    run.add(GATED, "cancelled", "completed", status="CANCELLED")


@defect("field_missing")
def a_missing_correlation_id(run: Tampered) -> None:
    del run.envelope(GATED, "gate.opened")["correlation_id"]


@defect("field_empty")
def a_blank_correlation_id(run: Tampered) -> None:
    run.envelope(GATED, "gate.opened")["correlation_id"] = " "


@defect("correlation_differs")
def an_event_with_a_random_correlation_id(run: Tampered) -> None:
    run.envelope(FAILED, "step.executed", step_id="deliberate_qa")["correlation_id"] = "5f3c"


@defect("producer_wrong")
def a_wrong_producer(run: Tampered) -> None:
    run.envelope(GATED, "started")["producer"] = "planning-ceremony-processor"


@defect("timestamp_invalid")
def a_timestamp_without_a_zone(run: Tampered) -> None:
    run.envelope(GATED, "started")["timestamp"] = "2026-01-31T12:00:00"


@defect("field_unknown")
def an_unknown_field(run: Tampered) -> None:
    run.envelope(GATED, "started")["version"] = 1


@defect("not_json")
def a_message_without_json(run: Tampered) -> None:
    index = run.index(GATED, "gate.opened")
    run.messages[index] = replace(run.messages[index], envelope=None)


@defect("event_type_wrong")
def an_event_under_a_foreign_subject(run: Tampered) -> None:
    run.envelope(GATED, "gate.decided")["event_type"] = "ceremony.gate.opened"


@defect("subject_unknown")
def a_subject_outside_the_specification(run: Tampered) -> None:
    index = run.index(GATED, "step.executed", status="FAILED")
    run.messages[index] = replace(run.messages[index], subject="ceremony.step.exploded")


@defect("message_id_differs")
def a_message_id_that_is_not_the_key(run: Tampered) -> None:
    index = run.index(GATED, "gate.decided")
    run.messages[index] = replace(run.messages[index], message_id="random-1")


@defect("key_malformed")
def a_random_key(run: Tampered) -> None:
    run.rekey(run.index(GATED, "gate.decided"), f"{GATED}-3f2a")


@defect("key_malformed")
def a_key_of_another_ceremony(run: Tampered) -> None:
    run.payload(GATED, "gate.decided")["instance_id"] = WAITING


@defect("status_wrong")
def a_status_that_contradicts_its_event(run: Tampered) -> None:
    run.payload(PLANNED, "completed")["status"] = "RUNNING"


@defect("stream_gap")
def a_message_removed_from_the_stream(run: Tampered) -> None:
    run.renumbered = False
    run.drop(FAILED, "step.retrying", step_id="deliberate_qa", attempt=1)


@defect("not_begun")
def a_start_after_the_first_step(run: Tampered) -> None:
    run.messages.append(run.drop(WAITING, "started"))


@defect("started_twice")
def a_second_start(run: Tampered) -> None:
    run.add(WAITING, "started", "started", status="RUNNING")


@defect("definition_unknown")
def an_unknown_definition(run: Tampered) -> None:
    del run.definitions["approval"]


@defect("step_unknown")
def a_step_that_the_definition_does_not_have(run: Tampered) -> None:
    run.payload(PLANNED, "step.executed", step_id="publish_plan")["step_id"] = "publish_flan"


@defect("step_outside_state")
def a_step_executed_in_a_foreign_state(run: Tampered) -> None:
    executed = run.index(PLANNED, "step.executed", step_id="publish_plan")
    moved = run.index(PLANNED, "transition.applied", trigger="planned")
    one, other = run.messages[executed], run.messages[moved]
    run.messages[executed], run.messages[moved] = other, one
    keys = one.message_id, other.message_id
    run.rekey(executed, keys[0])
    run.rekey(moved, keys[1])


@defect("step_outside_state")
def a_step_that_names_the_state_after_its_transition(run: Tampered) -> None:
    run.payload(PLANNED, "step.executed", step_id="extract_plan")["current_state"] = "JUDGING"


@defect("step_concluded_twice")
def an_attempt_finished_twice(run: Tampered) -> None:
    payload = run.payload(FAILED, "step.executed", step_id="deliberate_qa")
    index = run.index(FAILED, "step.executed", step_id="deliberate_qa")
    again = copy.deepcopy(run.messages[index])
    assert payload["status"] == "COMPLETED"
    run.messages.insert(index + 1, again)
    run.rekey(index + 1, again.message_id.replace("/0@1", "/1@1"))


@defect("attempt_fell")
def an_answer_to_an_older_attempt(run: Tampered) -> None:
    run.payload(FAILED, "step.executed", step_id="deliberate_qa")["attempt"] = 1


@defect("gate_not_opened")
def a_decision_on_a_gate_that_was_not_open(run: Tampered) -> None:
    run.drop(GATED, "gate.opened")


@defect("publish_not_requested")
def a_publish_that_was_not_requested(run: Tampered) -> None:
    run.drop(PLANNED, "publish.requested")


@defect("publish_message_lost")
def a_publish_without_its_message(run: Tampered) -> None:
    run.drop(PLANNED, "planning.planned")


@defect("publish_message_lost")
def a_publish_completed_before_its_message(run: Tampered) -> None:
    run.messages.append(run.drop(PLANNED, "planning.planned"))


@defect("completed_outside_terminal")
def a_completion_in_the_middle(run: Tampered) -> None:
    run.add(WAITING, "completed", "started", status="COMPLETED")


@defect("instance_missing")
def a_ceremony_that_the_service_has_lost(run: Tampered) -> None:
    run.instances = [one for one in run.instances if one.instance_id != PLANNED]


@defect("stuck")
def a_ceremony_that_waits_for_nothing(run: Tampered) -> None:
    run.show(WAITING, status="RUNNING", open_gates=[], waiting_for=[])


@defect("state_differs")
def a_service_that_shows_another_state(run: Tampered) -> None:
    run.show(WAITING, current_state="APPROVED")


@defect("status_differs")
def a_service_that_shows_another_end(run: Tampered) -> None:
    run.show(FAILED, status="CANCELLED")


@defect("status_differs")
def a_service_that_shows_an_ended_ceremony_as_running(run: Tampered) -> None:
    run.show(PLANNED, status="RUNNING", waiting_for=["step publish_plan"])


@defect("step_status_differs")
def a_lost_result_of_a_step(run: Tampered) -> None:
    run.drop(PLANNED, "step.executed", step_id="weigh_plan")


@defect("version_behind")
def a_service_that_shows_an_old_row(run: Tampered) -> None:
    run.show(PLANNED, version=2)


@defect("store_missing")
def an_instance_that_a_store_lacks(run: Tampered) -> None:
    run.store()
    assert run.stored is not None
    run.stored.pop()


@defect("store_stray")
def an_instance_that_only_a_store_has(run: Tampered) -> None:
    run.store()
    run.instances.pop()


@defect("store_differs")
def an_older_version_in_a_store(run: Tampered) -> None:
    run.store(WAITING, version=1)


@defect("store_differs")
def another_output_in_a_store(run: Tampered) -> None:
    run.store(PLANNED, step_outputs={"weigh_plan": {"weight": -1}})


@defect("store_index_differs")
def an_instance_outside_its_sets(run: Tampered) -> None:
    run.store(WAITING, problem="not in the set ceremony:instances:all")


def rules(run: Tampered) -> set[str]:
    return {violation.rule for violation in check_run(run.run())}


def test_the_recorded_run_has_no_violations() -> None:
    """The run is not empty: it has each kind of event that the rules are about."""
    assert check_run(recorded()) == []
    subjects = {message.subject for message in recorded().messages}
    assert len(recorded().starts) == 12
    assert {
        "ceremony.gate.decided",
        "ceremony.publish.completed",
        "ceremony.step.retrying",
        "ceremony.failed",
    } <= subjects


@pytest.mark.parametrize(("rule", "plant"), [(rule, how) for _, rule, how in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_a_planted_defect_is_found_by_the_name_of_its_rule(rule: str, plant: Callable[[Tampered], Any]) -> None:
    run = Tampered()
    plant(run)
    assert rule in rules(run)


def test_a_store_that_equals_the_service_has_no_violations() -> None:
    run = Tampered()
    run.store()
    assert rules(run) == set()


def test_every_rule_has_a_planted_defect() -> None:
    """A rule without a defect that breaks it may not work."""
    assert {rule for _, rule, _ in DEFECTS} == set(RULES)


def test_a_late_publish_after_the_end_is_allowed() -> None:
    # specification 9.8
    run = Tampered()
    published = run.payload(PLANNED, "publish.completed")
    run.add(PLANNED, "publish.completed", "publish.completed", **{**published, "late": True})
    assert rules(run) == set()


def test_a_failed_ceremony_may_be_reopened() -> None:
    """Then it has another end."""
    run = Tampered()
    run.add(FAILED, "resumed", "failed", status="RUNNING")
    run.add(FAILED, "cancelled", "failed", status="CANCELLED")
    run.show(FAILED, status="CANCELLED")
    assert rules(run) == set()


def test_a_completed_ceremony_may_not_be_reopened() -> None:
    run = Tampered()
    run.add(GATED, "resumed", "completed", status="RUNNING")
    assert "event_after_end" in rules(run)


def test_a_pause_must_be_shown_and_counts_as_waiting() -> None:
    run = Tampered()
    run.add(WAITING, "paused", "started", status="PAUSED")
    assert rules(run) == {"status_differs"}
    run.show(WAITING, status="PAUSED", open_gates=[], waiting_for=[])
    assert rules(run) == set()


def test_an_accepted_start_that_an_event_refuses_is_not_lost() -> None:
    """The answer may precede the fold (specification 10.6)."""
    run = Tampered()
    run.starts.append(Start("refused:story-1", "approval"))
    envelope = run.add(GATED, "start.refused", "started", code="already_exists", message="other content")
    envelope["payload"]["instance_id"] = "refused:story-1"
    run.rekey(len(run.messages) - 1, "0/17/1")
    run.show(GATED, version=3)
    assert rules(run) == set()


def test_a_saved_run_is_loaded_unchanged(tmp_path: Path) -> None:
    recorded().save(tmp_path / "run.json")
    assert load(tmp_path / "run.json") == recorded()


def test_starts_are_read_from_json_lines() -> None:
    lines = [
        '{"instance_id": "a:b", "definition_name": "d", "correlation_id": "c", "at": 1}',
        "",
        '{"instance_id": "e:f", "definition_name": "d"}',
    ]
    assert load_starts(lines) == [Start("a:b", "d", "c"), Start("e:f", "d", "")]


def test_the_exit_code_tells_if_there_are_violations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recording", str(RECORDING)]) == 0
    assert "0 violations" in capsys.readouterr().out
    run = Tampered()
    a_lost_terminal_event(run)
    run.run().save(tmp_path / "broken.json")
    assert main(["--recording", str(tmp_path / "broken.json")]) == 1
    assert "end_lost: planning-1-3:story-1" in capsys.readouterr().out


def test_the_checker_imports_nothing_of_the_engine() -> None:
    """Otherwise it would share the engine's mistakes."""
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split(".")[0] not in OURS, f"{path.name}: {name}"


def test_an_instance_without_events_or_start_is_ignored() -> None:
    """Events older than the stream's age are gone; only accepted starts must have events."""
    run = Tampered()
    run.instances.append(Instance("old:story-1", "approval", "APPROVED", "COMPLETED", "old:story-1"))
    assert rules(run) == set()
