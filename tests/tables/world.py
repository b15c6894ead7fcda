"""A world for the bare fold: it folds commands, keeps row and effects, and checks the invariants each time."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import msgspec

from steps.aggregation import Aggregation
from steps.human_gate import HumanGate
from steps.registry import all_kinds
from tables.commands import (
    AgentResult,
    AnyCommand,
    Cancel,
    GateDecision,
    Origin,
    Pause,
    Resume,
    RetryStep,
    RunStep,
    Start,
    StepOutcome,
    TimerFired,
    Trigger,
    decode_command,
    encode_command,
)
from tables.definition import Definition
from tables.definitions.loader import load
from tables.diagnosis import waiting_for
from tables.effects import Effect, Event, Refused, StepRequested
from tables.fold.decide import Decision, decide
from tables.instance import TERMINAL, Instance, StepState, decode_instance, encode_instance, recounted
from tables.invariants import broken
from tables.kinds import Kinds
from tables.limits import ANSWER_FRAME_BYTES

KINDS = all_kinds()


class _AskedAggregation(Aggregation):
    def at_once(self, body: Any) -> None:
        """Leave the step to its agent, as beyond MAX_AT_ONCE."""


class _AskedGate(HumanGate):
    def at_once(self, body: Any) -> None:
        """Leave the step to its agent, as beyond MAX_AT_ONCE."""


# Every step waits for its agent, so that a test can stand between asking and answering; the fold is the same.
ASKED: Kinds = MappingProxyType({**KINDS, **{kind.handler: kind for kind in (_AskedAggregation(), _AskedGate())}})
ID = "c1:s1"
_encode = msgspec.json.Encoder().encode
BEGIN = 1_700_000_000_000


def definition_of(body: str, name: str = "probe") -> Definition:
    """Load a definition from the YAML after its head."""
    text = f'version: "1.0"\nname: {name}\ndescription: a probe\n{body}'
    return load(text, f"{name}.yaml", KINDS)


class World:
    """One ceremony, seen from its partition."""

    def __init__(self, definition: Definition, kinds: Kinds = ASKED) -> None:
        self.definition = definition
        self.kinds = kinds
        self.row: Instance | None = None
        self.now = BEGIN
        self.offset = -1
        self.effects: list[Effect] = []
        self.decisions: list[Decision] = []
        self.log: list[tuple[AnyCommand, Origin]] = []
        self._ids = iter(range(1, 10**9))

    # -- folding

    def fold(self, command: AnyCommand) -> Decision:
        """Fold one command as the log would hold it, and check the result."""
        self.offset += 1
        origin = Origin(0, self.offset, self.now)
        command = decode_command(encode_command(command))
        before = self.row
        decision = decide(before, command, origin, self.definition, self.kinds)
        check(before, decision, self.definition)
        self.log.append((command, origin))
        self.row = decision.row
        self.effects += decision.effects
        self.decisions.append(decision)
        return decision

    @property
    def live(self) -> Instance:
        assert self.row is not None, "there is no row"
        return self.row

    def step(self, step_id: str) -> StepState:
        return self.live.steps[step_id]

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * 1000)

    # -- commands, short

    def start(self, *step_ids: str, **inputs: Any) -> Decision:
        return self.fold(self.start_command(*step_ids, **inputs))

    def start_command(self, *step_ids: str, **inputs: Any) -> Start:
        return Start(
            instance_id=ID,
            command_id=self._id("start"),
            ceremony_id="c1",
            story_id="s1",
            definition_name=self.definition.name,
            definition_hash=self.definition.hash,
            correlation_id="corr-1",
            requested_by="anna",
            inputs=inputs,
            step_ids=step_ids,
        )

    def outcome(self, step_id: str, outcome: str, attempt: int | None = None, **more: Any) -> Decision:
        number = self.step(step_id).attempt if attempt is None else attempt
        return self.fold(StepOutcome(instance_id=ID, step_id=step_id, attempt=number, outcome=outcome, **more))

    def done(self, step_id: str, output: Any = None, **more: Any) -> Decision:
        return self.outcome(step_id, "completed", output={"ok": True} if output is None else output, **more)

    def failed(self, step_id: str, code: str = "boom", **more: Any) -> Decision:
        return self.outcome(step_id, "failed", error_code=code, error_message=f"{code} happened", **more)

    def opened(self, step_id: str) -> Decision:
        config: Any = self.definition.steps[step_id].config
        return self.outcome(
            step_id, "waiting", output={"role": config.role, "message": config.message, "waiting": True}
        )

    def result(self, step_id: str, agent_id: str, attempt: int | None = None, **more: Any) -> Decision:
        number = self.step(step_id).attempt if attempt is None else attempt
        more.setdefault("value", "a proposal")
        return self.fold(AgentResult(instance_id=ID, step_id=step_id, attempt=number, agent_id=agent_id, **more))

    def decide(self, gate: str, *, approved: bool = True, **more: Any) -> Decision:
        more.setdefault("actor", "petra")
        more.setdefault("command_id", self._id("decide"))
        return self.fold(GateDecision(instance_id=ID, gate=gate, approved=approved, **more))

    def trigger(self, trigger: str, **more: Any) -> Decision:
        more.setdefault("command_id", self._id("trigger"))
        return self.fold(Trigger(instance_id=ID, trigger=trigger, actor="petra", **more))

    def cancel(self, **more: Any) -> Decision:
        more.setdefault("command_id", self._id("cancel"))
        return self.fold(Cancel(instance_id=ID, **{"actor": "petra", **more}))

    def pause(self, **more: Any) -> Decision:
        more.setdefault("command_id", self._id("pause"))
        return self.fold(Pause(instance_id=ID, **{"actor": "petra", **more}))

    def resume(self, **more: Any) -> Decision:
        more.setdefault("command_id", self._id("resume"))
        return self.fold(Resume(instance_id=ID, **{"actor": "petra", **more}))

    def retry(self, step_id: str = "", **more: Any) -> Decision:
        fields = {"command_id": self._id("retry"), "actor": "petra", **more}
        return self.fold(RetryStep(instance_id=ID, step_id=step_id, **fields))

    def run(self, step_id: str, **more: Any) -> Decision:
        fields = {"command_id": self._id("run"), "actor": "petra", **more}
        return self.fold(RunStep(instance_id=ID, step_id=step_id, **fields))

    def fire(self, timer_id: str, attempt: int | None = None) -> Decision:
        """Fire the timer, at its due time or now if that is later."""
        timer = self.live.timers[timer_id]
        self.now = max(self.now, timer.due)
        number = timer.attempt if attempt is None else attempt
        return self.fold(TimerFired(instance_id=ID, timer_id=timer_id, attempt=number))

    def _id(self, word: str) -> str:
        return f"{word}-{next(self._ids)}"

    # -- what came out

    def events(self, subject: str = "") -> list[Event]:
        return [e for e in self.effects if isinstance(e, Event) and e.subject.startswith(subject)]

    def subjects(self) -> list[str]:
        return [event.subject for event in self.events()]

    def requests(self) -> list[StepRequested]:
        return [effect for effect in self.effects if isinstance(effect, StepRequested)]

    def executed(self) -> list[tuple[str, str]]:
        return [(e.payload["step_id"], e.payload["status"]) for e in self.events("ceremony.step.executed")]

    def path(self) -> list[str]:
        return [event.payload["to_state"] for event in self.events("ceremony.transition.applied")]


def refusal(decision: Decision) -> str:
    """Return the code of the one refusal of this decision, "" for none."""
    codes = [effect.code for effect in decision.effects if isinstance(effect, Refused)]
    assert len(codes) <= 1, codes
    return codes[0] if codes else ""


def check(before: Instance | None, decision: Decision, definition: Definition) -> None:
    """Check the invariants of a decision on any command."""
    after = decision.row
    ids = [effect.id for effect in decision.effects]
    assert len(set(ids)) == len(ids), f"an effect id occurs twice: {ids}"
    if after is before or after is None:
        assert all(isinstance(effect, Event | Refused) for effect in decision.effects)
        return
    assert broken(after, definition) == []
    assert encode_instance(decode_instance(encode_instance(after))) == encode_instance(after)
    check_size(after)
    assert before is None or after.version > before.version
    if after.status not in TERMINAL:
        assert waiting_for(after, definition), f"stuck: {after}"
        assert after.status == "PAUSED" or not ready(after, definition), f"ready, yet not started: {after}"


def check_size(row: Instance) -> None:
    """Check that the counted bytes are those that are written, but for the bounded rest of a row."""
    assert recounted(row) is row
    texts = len(_encode((row.command_ids, row.paused_by, row.error_message, row.requested_by, row.correlation_id)))
    rest = texts + 4096 + 400 * len(row.steps) + 100 * (len(row.visits) + len(row.timers) + len(row.guard_approvals))
    assert row.size - ANSWER_FRAME_BYTES * 1000 <= len(encode_instance(row)) <= row.size + rest


def ready(row: Instance, definition: Definition) -> list[str]:
    """Return steps of the present state that wait for no other and have not started."""
    chosen = row.selected or tuple(definition.steps)
    return [
        step.id
        for step in definition.steps_by_state.get(row.state, ())
        if step.id in chosen
        and row.steps[step.id].status == "PENDING"
        and all(row.steps[name].status == "COMPLETED" or name not in chosen for name in step.after)
    ]
