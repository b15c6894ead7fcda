"""The ceremony agent: rows and effects of the fold, dead letters, and bad records, which never stop a partition."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest
import structlog

from ports.errors import CeremonyError
from steps.aggregation import Aggregation
from steps.registry import all_kinds
from steps.secrets.redactor import TextRedactor
from streams import ceremony_agent
from streams.ceremony_agent import CeremonyAgent, Folding, applied_rows
from streams.log_clock import LogClock
from streams.partition_timers import due_timers
from streams.topics import CEREMONIES, DEFINITIONS
from streams.waiters import ACCEPTED, FoldResult, ReplyKey
from tables.commands import (
    AnyCommand,
    Cancel,
    Noop,
    PutDefinition,
    Restore,
    Resume,
    Start,
    StepOutcome,
    TimerFired,
    encode_command,
)
from tables.definition import Definition
from tables.definitions.loader import content_hash, load
from tables.effects import Ended
from tables.fold.restore import to_restore
from tables.instance import CeremonyStatus, encode_instance
from tables.invariants import broken
from tables.kinds import Kinds
from tests.contract.asyncapi import validate_message
from tests.steps.secrets.planted import planted
from tests.streams.fakes import HandClock, MemoryBatch, MemoryView, command_record, record
from tests.tables.world import ASKED

# Its one step calls an agent, so that a ceremony waits for something.
KINDS = ASKED
TEXT = """version: "1.0"
name: probe
description: a probe
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list}}
"""
PROBE: Definition = load(TEXT, "probe.yaml", KINDS)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Capture the agent's log."""
    with structlog.testing.capture_logs():
        yield


class Partition:
    """An agent and the rows of one partition."""

    def __init__(self, *, expected: bool = True, kinds: Kinds = KINDS) -> None:
        self.view = MemoryView()
        self.log_clock = LogClock(HandClock())

        def waited_for(command: AnyCommand) -> ReplyKey | None:
            return ReplyKey.of(command) if expected else None

        self.agent = CeremonyAgent(kinds, "t", self.log_clock, waited_for, TextRedactor())

    def fold(self, *records: Any) -> MemoryBatch:
        batch = MemoryBatch(self.view, records)
        self.agent.fold(batch)
        return batch

    def begin(self, *ceremony_ids: str) -> MemoryBatch:
        commands: list[AnyCommand] = [
            PutDefinition(hash=PROBE.hash, text=PROBE.text),
            *(start(one) for one in ceremony_ids),
        ]
        return self.fold(*(command_record(n, command) for n, command in enumerate(commands)))

    def row(self, ceremony_id: str) -> Any:
        return self.view.tables[CEREMONIES][f"{ceremony_id}:s1".encode()]


def start(ceremony_id: str = "c1", **more: Any) -> Start:
    fields: dict[str, Any] = {
        "instance_id": f"{ceremony_id}:s1",
        "command_id": f"start-{ceremony_id}",
        "ceremony_id": ceremony_id,
        "story_id": "s1",
        "definition_name": "probe",
        "definition_hash": PROBE.hash,
        "correlation_id": "corr-1",
        "requested_by": "anna",
        "inputs": {"a": [1]},
    }
    return Start(**{**fields, **more})


def outcome(ceremony_id: str = "c1") -> StepOutcome:
    return StepOutcome(
        instance_id=f"{ceremony_id}:s1", step_id="one", attempt=1, outcome="completed", output={"x": 1}, size=7
    )


def test_a_start_becomes_a_row_and_its_effects() -> None:
    """The step's request goes to its kind's topic under the same key, the event to `events`, both correlated."""
    partition = Partition()
    batch = partition.begin("c1")
    assert partition.row("c1").status is CeremonyStatus.RUNNING
    assert {sent.topic for sent in batch.sent} == {"t.events", "t.steps.aggregation"}
    for sent in batch.sent:
        assert sent.key == b"c1:s1"
        assert dict(sent.headers)["correlation-id"] == b"corr-1"
    (request,) = [sent for sent in batch.sent if sent.topic == "t.steps.aggregation"]
    assert dict(request.headers)["effect-id"].startswith(b"c1:s1/1/")


def test_a_restore_needs_no_row_but_its_definition() -> None:
    """Without the definition in its partition it changes nothing."""
    # specification 28.3
    before, after = Partition(), Partition()
    before.begin("c1")
    row = before.row("c1")
    body = msgspec.json.decode(encode_instance(to_restore(row, row.version)))
    restore = Restore(instance_id="c1:s1", instance=body, seen_version=row.version)
    after.fold(command_record(0, restore))
    assert b"c1:s1" not in after.view.tables[CEREMONIES]
    batch = after.fold(command_record(1, PutDefinition(hash=PROBE.hash, text=PROBE.text)), command_record(2, restore))
    assert (after.row("c1").version, after.row("c1").steps["one"].attempt) == (row.version + 1001, 101)
    (request,) = [sent for sent in batch.sent if sent.topic == "t.steps.aggregation"]
    assert dict(request.headers)["effect-id"].startswith(b"c1:s1/%d/" % (row.version + 1001))


def test_steps_without_an_agent_only_send_events_of_the_one_command() -> None:
    batch = Partition(kinds=all_kinds()).begin("c1")
    assert {sent.topic for sent in batch.sent} == {"t.events"}
    placed = [(dict(sent.headers)["command-offset"], dict(sent.headers)["ordinal"]) for sent in batch.sent]
    assert placed == [(b"1", b"%d" % ordinal) for ordinal in range(4)]
    effects = [effect for folded in applied_rows(batch.note).folded for effect in folded.effects]
    assert [effect.status for effect in effects if isinstance(effect, Ended)] == ["COMPLETED"]


def replies(batch: MemoryBatch) -> dict[str, FoldResult]:
    """Results of the fold by command id."""
    return {key.command_id: result for key, result in applied_rows(batch.note).replies.items()}


def test_a_waiting_client_gets_the_folds_result() -> None:
    batch = Partition().begin("c1")
    assert replies(batch) == {"start-c1": ACCEPTED}
    partition = Partition()
    partition.begin("c1")
    batch = partition.fold(command_record(9, start(inputs={"a": [2]}, command_id="other")))
    assert replies(batch)["other"].code == "already_exists"


def test_a_repeated_start_of_a_ceremony_that_has_ended_says_so() -> None:
    # specification 10.5
    partition = Partition()
    partition.begin("c1")
    assert replies(partition.fold(command_record(5, start(command_id="again"))))["again"] == ACCEPTED
    partition.fold(command_record(6, Cancel(instance_id="c1:s1", command_id="cancel-1", actor="anna")))
    batch = partition.fold(command_record(7, start(command_id="again")))
    assert replies(batch)["again"] == FoldResult(message="c1:s1 is there already: CANCELLED")
    batch = partition.fold(command_record(8, start(inputs={"a": [2]}, command_id="other")))
    assert replies(batch)["other"].message.startswith("c1:s1 is there already: CANCELLED")


def test_without_a_waiting_client_there_is_no_reply() -> None:
    batch = Partition(expected=False).begin("c1")
    assert applied_rows(batch.note).replies == {}


def test_changed_rows_are_in_the_note_and_unchanged_ones_are_counted() -> None:
    partition = Partition()
    partition.begin("c1")
    batch = partition.fold(command_record(5, outcome()), command_record(6, outcome()))
    folding = applied_rows(batch.note)
    assert list(folding.rows) == [b"c1:s1"]
    assert sum(folding.tally.unchanged.values()) == 1
    first, second = folding.folded
    assert first.before is not first.after
    assert first.definition is second.definition is not None
    assert second.before is second.after is first.after
    assert second.effects == ()


@pytest.mark.parametrize(
    "value", [None, b"", b"no JSON", b"[]", b'{"type":"unheard_of"}', b'{"type":"start"}', b"\xff"]
)
def test_an_undecodable_record_becomes_a_dead_letter_and_the_partition_continues(value: bytes | None) -> None:
    # specification 19.1
    partition = Partition()
    batch = partition.fold(
        command_record(0, PutDefinition(hash=PROBE.hash, text=PROBE.text)),
        record(1, b"c1:s1", value),
        command_record(2, start()),
    )
    assert [(one.offset, code) for one, code, _ in batch.dead] == [(1, "command_undecodable")]
    assert partition.row("c1").state == "RUN"


@pytest.mark.parametrize("key", [None, b"", b"c2:s1", b"c1:s1 "])
def test_a_record_with_another_key_than_its_command_becomes_a_dead_letter(key: bytes | None) -> None:
    """Its row would be in another partition, or nowhere."""
    partition = Partition()
    partition.begin()
    batch = partition.fold(record(1, key, encode_command(start())))
    assert [code for _, code, _ in batch.dead] == ["key_mismatch"]
    assert partition.view.tables[CEREMONIES] == {}


def test_a_definition_is_stored_once_in_its_partition() -> None:
    partition = Partition()
    put = PutDefinition(hash=PROBE.hash, text=PROBE.text)
    batch = partition.fold(command_record(0, put), command_record(1, put))
    batch_later = partition.fold(command_record(2, put))
    assert batch.puts == [(DEFINITIONS, PROBE.hash.encode())]
    assert batch_later.puts == []
    assert partition.view.tables[DEFINITIONS] == {PROBE.hash.encode(): PROBE.text}


@pytest.mark.parametrize(
    ("digest", "text"),
    [("0" * 64, TEXT), (PROBE.hash, TEXT + "# other\n"), ("bad", "states: []"), ("", "")],
    ids=["other hash", "other text", "invalid", "empty"],
)
def test_a_definition_with_a_wrong_hash_becomes_a_dead_letter(digest: str, text: str) -> None:
    partition = Partition()
    batch = partition.fold(command_record(0, PutDefinition(hash=digest, text=text)))
    assert [code for _, code, _ in batch.dead] == ["definition_refused"]
    assert partition.view.tables[DEFINITIONS] == {}


def test_a_start_without_its_definition_is_refused() -> None:
    batch = Partition().fold(command_record(0, start()))
    assert replies(batch)["start-c1"].code == "definition_unknown"
    assert [json.loads(sent.value)["event_type"] for sent in batch.sent] == ["ceremony.start.refused"]


def test_a_pinned_definition_that_breaks_a_later_rule_is_logged_once_and_its_ceremonies_go_on() -> None:
    # specification 24.4
    partition = Partition()
    text = TEXT.replace("name: probe", "name: aged") + "guards: {g: {check: 'cel:1 == 1'}}\n"
    digest = content_hash(text)
    begun: list[AnyCommand] = [
        PutDefinition(hash=digest, text=text),
        start("c1", definition_name="aged", definition_hash=digest),
    ]
    with (
        structlog.testing.capture_logs() as logs,
        mock.patch("tables.guards.cel.compiled", side_effect=CeremonyError("bad_expression", "too dear")),
    ):
        batch = partition.fold(*(command_record(n, command) for n, command in enumerate(begun)))
        partition.fold(command_record(5, outcome()))
    assert not batch.dead
    assert [line["event"] for line in logs].count("pinned_definition_outdated") == 1
    assert partition.row("c1").status is CeremonyStatus.COMPLETED


def test_commands_of_a_ceremony_with_an_unreadable_definition_are_set_aside_and_not_swallowed() -> None:
    """An answer becomes a dead letter, a client is answered, and a timer will fire again."""
    # specification 24.4
    partition = Partition()
    partition.begin("c1")
    partition.view.tables[DEFINITIONS][PROBE.hash.encode()] = "states: []"
    partition.agent = CeremonyAgent(KINDS, "t", partition.log_clock, ReplyKey.of, TextRedactor())
    timer = TimerFired(instance_id="c1:s1", timer_id="timeout/one", attempt=1)
    with mock.patch("streams.ceremony_agent.load_pinned", side_effect=CeremonyError("definition_invalid", "no")):
        batch = partition.fold(
            command_record(5, outcome()),
            command_record(6, timer),
            command_record(7, Cancel(instance_id="c1:s1", command_id="x", actor="ana", role="", reason="")),
        )
    assert [(letter.offset, code) for letter, code, _ in batch.dead] == [(5, "definition_unknown")]
    assert [reply.code for reply in applied_rows(batch.note).replies.values()] == ["definition_unknown"]


def test_guards_that_cannot_be_judged_are_counted() -> None:
    # specification 3.6
    partition = Partition()
    text = (
        TEXT.replace("trigger: finish,", "trigger: finish, guards: [g],")
        + "guards: {g: {check: 'cel:inputs.z == 1'}}\n"
    )
    digest = content_hash(text)
    begun: list[AnyCommand] = [PutDefinition(hash=digest, text=text), start("c1", definition_hash=digest)]
    batch = partition.fold(*(command_record(n, command) for n, command in enumerate(begun)))
    assert applied_rows(batch.note).tally.unjudged == {"failed": 1}


def boom(*_: Any) -> Any:
    raise ZeroDivisionError("a bug in a kind")


def test_a_bug_in_the_fold_pauses_only_that_ceremony() -> None:
    """The command becomes a dead letter with its traceback; other ceremonies of the same batch continue."""
    # specification 18.11
    partition = Partition()
    partition.begin("c1", "c2")
    with mock.patch.object(Aggregation, "completed", boom):
        batch = partition.fold(command_record(5, outcome("c1")))
    ((letter, code, message),) = batch.dead
    assert (letter.offset, code) == (5, "fold_failed")
    assert "ZeroDivisionError" in message and "Traceback" in message
    assert partition.row("c1").status is CeremonyStatus.PAUSED
    assert "ceremony.paused" in [json.loads(sent.value).get("event_type") for sent in batch.sent]
    partition.fold(command_record(6, outcome("c2")))
    assert partition.row("c2").status is CeremonyStatus.COMPLETED


def test_a_client_learns_that_the_fold_failed_on_its_command() -> None:
    """Its reply is not `accepted`, because pausing the ceremony is no success of the command."""
    partition = Partition()
    partition.begin("c1")
    with mock.patch("tables.fold.operations.end", boom):
        batch = partition.fold(
            command_record(5, Cancel(instance_id="c1:s1", command_id="cancel-1", actor="anna")),
        )
    assert replies(batch)["cancel-1"].code == "fold_failed"
    assert partition.row("c1").status is CeremonyStatus.PAUSED


def test_a_start_that_the_fold_fails_on_leaves_no_row() -> None:
    partition = Partition()
    with mock.patch.object(Aggregation, "request", boom):
        batch = partition.begin("c1")
    assert [code for _, code, _ in batch.dead] == ["fold_failed"]
    assert partition.view.tables[CEREMONIES] == {}
    assert replies(batch)["start-c1"] == FoldResult("fold_failed", mock.ANY)


def test_a_refused_start_is_announced_when_the_fold_failed_on_it() -> None:
    """Its client may have been answered `accepted` before."""
    partition = Partition()
    with mock.patch.object(Aggregation, "request", boom):
        batch = partition.begin("c1")
    (sent,) = batch.sent
    event = json.loads(sent.value)
    assert (event["event_type"], event["payload"]["code"]) == ("ceremony.start.refused", "fold_failed")
    validate_message(event["event_type"], event)


def test_a_bug_that_also_breaks_pausing_pauses_the_row_without_the_fold() -> None:
    """All that was in it stays, and no timer of a step fires."""
    partition = Partition()
    partition.begin("c1")
    before = partition.row("c1")
    with mock.patch("streams.ceremony_agent.decide", boom):
        batch = partition.fold(command_record(5, outcome()))
    assert [code for _, code, _ in batch.dead] == ["fold_failed"]
    row = partition.row("c1")
    assert (row.status, row.version, row.steps) == (CeremonyStatus.PAUSED, before.version + 1, before.steps)
    assert broken(row, PROBE) == []
    partition.fold(command_record(6, Resume(instance_id="c1:s1", command_id="r", actor="anna")))
    assert partition.row("c1").status is CeremonyStatus.RUNNING


def failing_for(function: Any, instance_id: str) -> Any:
    """Return the function, failing for the records of one ceremony."""

    def fails(effect: Any, *more: Any) -> Any:
        if effect.instance_id == instance_id and getattr(effect, "subject", "") != "ceremony.paused":
            raise ValueError("an effect that cannot be written")
        return function(effect, *more)

    return fails


@pytest.mark.parametrize("name", ["event_record", "encode_request"])
def test_an_effect_that_cannot_be_written_concerns_its_ceremony_only(name: str) -> None:
    """Nothing of the command is sent; its client is answered, and the other ceremony of the batch moves on."""
    partition = Partition()
    partition.begin("c1", "c2")
    commands = [
        StepOutcome(instance_id=f"{one}:s1", step_id="one", attempt=1, outcome="unreachable") for one in ("c1", "c2")
    ]
    partition.fold(*(command_record(n, command) for n, command in enumerate(commands, 10)))
    dues: list[AnyCommand] = [
        TimerFired(instance_id=f"{one}:s1", timer_id="ask/one", attempt=1) for one in ("c1", "c2")
    ]
    cancels: list[AnyCommand] = [
        Cancel(instance_id=f"{one}:s1", command_id=f"cancel-{one}", actor="anna") for one in ("c1", "c2")
    ]
    later = 1_700_000_100_000
    with mock.patch(f"streams.ceremony_agent.{name}", failing_for(getattr(ceremony_agent, name), "c1:s1")):
        batch = partition.fold(
            *(
                command_record(n, command, later)
                for n, command in enumerate(dues if name == "encode_request" else cancels, 20)
            )
        )
    assert [(one.offset, code) for one, code, _ in batch.dead] == [(20, "fold_failed")]
    assert partition.row("c1").status is CeremonyStatus.PAUSED
    events = [json.loads(sent.value)["event_type"] for sent in batch.sent if sent.key == b"c1:s1"]
    assert events == ["ceremony.paused"]
    if name == "event_record":
        assert replies(batch)["cancel-c1"].code == "fold_failed"
        assert partition.row("c2").status is CeremonyStatus.CANCELLED
    else:
        assert partition.row("c2").steps["one"].asks == 2


def test_a_timer_whose_fold_fails_does_not_fire_each_second() -> None:
    """The pause stops the timers of steps; the limit of the whole ceremony, which runs on, fires an hour later."""
    partition = Partition()
    partition.begin("c1")
    timers = partition.row("c1").timers
    late = timers["ceremony_max"].due
    fired = [TimerFired(instance_id="c1:s1", timer_id=name, attempt=timer.attempt) for name, timer in timers.items()]
    with mock.patch("tables.fold.timer_fired.end", boom), mock.patch("tables.fold.timer_fired.step_life.fail", boom):
        for number, command in enumerate(fired):
            partition.fold(command_record(10 + number, command, late))
            assert due_timers(partition.row("c1"), late + 1000) == []
    row = partition.row("c1")
    assert row.status is CeremonyStatus.PAUSED
    assert broken(row, PROBE) == []
    assert [timer_id for timer_id, _ in due_timers(row, late + 3_601_000)] == ["ceremony_max"]


@pytest.mark.parametrize("largest", [200_000, 900_000])
def test_a_row_that_no_checkpoint_could_write_is_not_taken(largest: int) -> None:
    """Only a row of an older release can be so large; its ceremony is paused as it was."""
    partition = Partition()
    partition.begin("c1", "c2")
    with (
        mock.patch("streams.ceremony_agent.MAX_WRITTEN_BYTES", 1_000),
        mock.patch("streams.ceremony_agent.LARGEST_VALUE_BYTES", largest),
    ):
        batch = partition.fold(
            *(
                command_record(n, msgspec.structs.replace(outcome(one), output={"x": "x" * length}, size=0))
                for n, (one, length) in enumerate((("c1", 250_000), ("c2", 10)), 10)
            )
        )
    if largest < 250_000:
        assert [(one.offset, code) for one, code, _ in batch.dead] == [(10, "fold_failed")]
        assert partition.row("c1").status is CeremonyStatus.PAUSED
    else:
        assert batch.dead == []
    assert partition.row("c2").status is CeremonyStatus.COMPLETED


def test_running_out_of_memory_does_not_pause_a_ceremony() -> None:
    """It ends the worker and makes no dead letter."""
    partition = Partition()
    partition.begin("c1")

    def no_memory(*_: Any) -> Any:
        raise MemoryError

    with mock.patch.object(Aggregation, "completed", no_memory), pytest.raises(MemoryError):
        partition.fold(command_record(5, outcome()))


def test_a_noop_only_sets_the_logs_clock() -> None:
    partition = Partition()
    batch = partition.fold(command_record(0, Noop(), timestamp=1_800_000_000_000))
    assert (batch.sent, batch.dead, batch.puts) == ([], [], [])
    assert partition.log_clock.now() == 1_800_000_000_000


def test_a_batch_without_a_note_of_the_agent_counts_nothing() -> None:
    assert applied_rows(None) == Folding(tally=mock.ANY)


ASKING = """version: "1.0"
name: %(name)s
description: asks agents
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: ask, state: RUN, handler: deliberation_step, config: {prompt: "%(prompt)s", role: ARCHITECT, num_agents: 1}}
"""


def test_each_event_of_a_batch_is_redacted_by_the_prompts_of_its_own_definition() -> None:
    """Two definitions are mixed in one batch, whose events stay in the order of their commands."""
    # specification 27.8
    partition, secret = Partition(), next(planted()).secret
    prompts = {"one": "Weigh every risk of the story as an architect", "two": "Name the tests that would have failed"}
    texts = {name: ASKING % {"name": name, "prompt": prompt} for name, prompt in prompts.items()}
    begun: list[AnyCommand] = [PutDefinition(hash=content_hash(text), text=text) for text in texts.values()]
    begun += [
        start(one, definition_name=one[:3], definition_hash=content_hash(texts[one[:3]]))
        for one in ("one-a", "two-a", "one-b")
    ]
    partition.fold(*(command_record(n, command) for n, command in enumerate(begun)))
    reasons = [("one-a", prompts["two"]), ("two-a", prompts["two"]), ("one-b", f"{prompts['one']} {secret}")]
    ended = [Cancel(instance_id=f"{one}:s1", command_id=one, actor="ana", reason=reason) for one, reason in reasons]
    batch = partition.fold(*(command_record(10 + n, command) for n, command in enumerate(ended)))
    events = [json.loads(sent.value)["payload"] for sent in batch.sent if sent.topic == "t.events"]
    assert [(event["instance_id"], event["reason"]) for event in events if "reason" in event] == [
        ("one-a:s1", prompts["two"]),
        ("two-a:s1", "[redacted:raw_prompt]"),
        ("one-b:s1", "[redacted:raw_prompt] [redacted:aws_access_key_id]"),
    ]
    assert [event["instance_id"] for event in events] == sorted(
        (event["instance_id"] for event in events), key=["one-a:s1", "two-a:s1", "one-b:s1"].index
    )
