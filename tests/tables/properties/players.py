"""Two players of the world: an honest one answers until the ceremony ends, a hostile one sends anything."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tables.commands import (
    AgentResult,
    AnyCommand,
    Cancel,
    GateDecision,
    Noop,
    Pause,
    PutDefinition,
    Restore,
    Resume,
    RetryStep,
    RunStep,
    SetAside,
    StepOutcome,
    TimerFired,
    Trigger,
)
from tables.effects import StepRequested
from tables.fold.transitions import open_guards
from tables.instance import TERMINAL, Phase, StepStatus
from tables.timers import RUN_ON
from tests.tables.world import ID, World

RECEIPT = {"stream": "CEREMONY", "sequence": 1, "duplicate": False}
OUTCOMES = ("completed", "failed", "waiting", "submitted", "unreachable")


class Honest:
    """Answers every request as its agent would, fires every timer in time, and decides every gate."""

    def __init__(self, world: World, rng: Random, *, quality: float = 0.9) -> None:
        self.world = world
        self.rng = rng
        self.quality = quality
        """Share of attempts that go well."""
        self.served = 0
        self.results: list[AgentResult] = []

    def play(self, limit: int = 300) -> None:
        """Play to the end; after `limit` moves only time passes."""
        for _ in range(limit):
            if self.world.live.status in TERMINAL:
                return
            self.move()
        self.world.fire("ceremony_max")

    def move(self) -> None:
        """Make one move; a live ceremony without any possible move is stuck, and fails the test."""
        moves = [self._request, self._result, self._timer, self._gate, self._run]
        self.rng.shuffle(moves)
        moves.append(self._guard)  # last: an approved guard moves on whatever else is in flight
        self.world.wait(self.rng.random())
        for attempt in moves:
            command = attempt()
            if command is not None:
                self.world.fold(command)
                return
        raise AssertionError(f"nobody has anything to do: {self.world.row}")

    def _request(self) -> AnyCommand | None:
        requests = self.world.requests()
        if self.served >= len(requests):
            return None
        request = requests[self.served]
        self.served += 1
        return self._answer(request)

    def _answer(self, request: StepRequested) -> StepOutcome:
        luck = self.rng.random()
        more: dict[str, Any] = {}
        if luck > self.quality:
            word = "unreachable" if luck > (1 + self.quality) / 2 else "failed"
            more = {"error_code": "boom", "error_message": "boom", "retryable": self.rng.random() < 0.8}
        elif request.kind in ("deliberation", "task_extraction"):
            word, more = "submitted", {"deliberation_id": f"d-{request.attempt}"}
            self.results += self._results(request)
        elif request.kind == "human_gate":
            word, more = "waiting", {"output": {**request.body, "waiting": True}}
        else:
            word, more = "completed", {"output": self._output(request)}
            more |= {"published": RECEIPT} if request.kind == "publish" else {}
        return StepOutcome(
            instance_id=ID, step_id=request.step_id, attempt=request.attempt, outcome=word, effect_id=request.id, **more
        )

    def _output(self, request: StepRequested) -> dict[str, Any]:
        if request.kind == "aggregation":
            return {"aggregated_result": {}, "score": self.rng.choice((0.2, 0.9))}
        return {**request.body, "published": True}

    def _results(self, request: StepRequested) -> list[AgentResult]:
        config: Any = self.world.definition.steps[request.step_id].config
        agents = getattr(config, "agent_ids", ["agent-task-extractor-001"])
        found = []
        for agent in agents:
            bad = self.rng.random() > self.quality
            value: Any = f"idea of {agent}" if request.kind == "deliberation" else [{"title": "t"}]
            found.append(
                AgentResult(
                    instance_id=ID,
                    step_id=request.step_id,
                    attempt=request.attempt,
                    agent_id=agent,
                    value=None if bad else value,
                    error_code="agent_failed" if bad else "",
                )
            )
        return [result for result in found if self.rng.random() < 0.97]

    def _result(self) -> AnyCommand | None:
        return self.results.pop(self.rng.randrange(len(self.results))) if self.results else None

    def _timer(self) -> AnyCommand | None:
        """Fire the next timer, once nothing else is on its way."""
        if self.results or self.served < len(self.world.requests()):
            return None
        timers = {i: t for i, t in self.world.live.timers.items() if i not in RUN_ON}
        if not timers:
            return None
        timer_id = min(timers, key=lambda i: (timers[i].due, i))
        self.world.now = max(self.world.now, timers[timer_id].due)
        return TimerFired(instance_id=ID, timer_id=timer_id, attempt=timers[timer_id].attempt)

    def _gate(self) -> AnyCommand | None:
        gates = [i for i, step in self.world.live.steps.items() if step.phase is Phase.GATE]
        return self._decision(self.rng.choice(gates), self.quality) if gates else None

    def _guard(self) -> AnyCommand | None:
        names = [
            name
            for name in open_guards(self.world.live, self.world.definition)
            if self.world.definition.guards[name].type == "human"
        ]
        return self._decision(self.rng.choice(names), 0.8, names_guard=True) if names else None

    def _decision(self, gate: str, share: float, *, names_guard: bool = False) -> GateDecision:
        return GateDecision(
            instance_id=ID,
            command_id=f"d{self.world.offset}",
            gate=gate,
            approved=self.rng.random() < share,
            actor=self.rng.choice(("petra", "paul", "pia")),
            role="PO",
            names_guard=names_guard,
        )

    def _run(self) -> AnyCommand | None:
        """Run a step that the start did not select, once nothing is in flight."""
        row, definition = self.world.live, self.world.definition
        idle = [
            step.id
            for step in definition.steps_by_state.get(row.state, ())
            if row.selected and step.id not in row.selected and row.steps[step.id].status is StepStatus.PENDING
        ]
        if not idle:
            return None
        step_id = self.rng.choice(idle)
        role = role_for(self.world, step_id)
        return RunStep(instance_id=ID, command_id=f"u{self.world.offset}", step_id=step_id, actor="o", role=role)


class Hostile:
    """Sends duplicates, reorderings, stale attempts, early timers, and hostile values."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.honest = Honest(world, rng, quality=0.7)
        self._throws: tuple[Callable[[], AnyCommand], ...] = (
            self._again,
            self._outcome,
            self._result,
            self._timer,
            self._decision,
            self._operation,
            self._odd,
        )

    def move(self) -> None:
        if self.world.live.status not in TERMINAL and self.world.live.status != "PAUSED" and self.rng.random() < 0.5:
            self.honest.move()
            return
        self.world.wait(self.rng.choice((-5.0, 0.0, 0.0, 1.0, 100.0)))
        self.world.fold(self.rng.choice(self._throws)())

    def _again(self) -> AnyCommand:
        """Send a command again that was folded before."""
        return self.rng.choice(self.world.log)[0]

    def _step(self) -> str:
        return self.rng.choice([*self.world.definition.steps, "nobody"])

    def _attempt(self, step_id: str) -> int:
        step = self.world.live.steps.get(step_id)
        return max((0 if step is None else step.attempt) + self.rng.choice((-1, 0, 0, 0, 1)), 0)

    def _outcome(self) -> AnyCommand:
        step_id = self._step()
        return StepOutcome(
            instance_id=ID,
            step_id=step_id,
            attempt=self._attempt(step_id),
            outcome=self.rng.choice((*OUTCOMES, "shrugged")),
            output=self.value(),
            size=self.rng.choice((0, 0, 0, 10, 10**9, -1)),
            error_code=self.rng.choice(("", "boom", "x" * 5000)),
            error_message=self.rng.choice(("", "ü" * 5000)),
            retryable=self.rng.random() < 0.5,
            deliberation_id=self.rng.choice(("", "d", "d" * 10_000)),
            published=self.rng.choice(({}, RECEIPT, {"stream": [1], "duplicate": "yes"})),
        )

    def _result(self) -> AnyCommand:
        step_id = self._step()
        return AgentResult(
            instance_id=ID,
            command_id=self.rng.choice(("", "t1", "t2")),
            step_id=step_id,
            attempt=self._attempt(step_id),
            agent_id=self.rng.choice(("", "agent-dev-001", "agent-dev-002", "agent-task-extractor-001", "x" * 9999)),
            value=self.value(),
            size=self.rng.choice((0, 0, 0, 10**9, -1)),
            error_code=self.rng.choice(("", "", "oom")),
            trigger=self.rng.choice(("", "", "", "go_0", "mend_0", "nothing")),
        )

    def _timer(self) -> AnyCommand:
        timers = self.world.live.timers
        timer_id = self.rng.choice([*timers, "timeout/nobody", "strange", "gate/", "retry"])
        known = timers.get(timer_id)
        if known is not None and self.rng.random() < 0.4:
            late = timer_id not in RUN_ON or self.rng.random() < 0.1
            self.world.now = max(self.world.now, known.due) if late else self.world.now
        attempt = 0 if known is None else known.attempt
        return TimerFired(instance_id=ID, timer_id=timer_id, attempt=attempt + self.rng.choice((0, 0, 0, 1)))

    def _decision(self) -> AnyCommand:
        definition = self.world.definition
        return GateDecision(
            instance_id=ID,
            command_id=self._command_id(),
            gate=self.rng.choice([*definition.steps, *definition.guards, "nobody"]),
            approved=self.rng.random() < 0.6,
            actor=self.rng.choice(("", "petra", "paul", "x" * 9999)),
            role=self.rng.choice(("PO", "PO", "DEV", "", "SYSTEM", "nobody")),
            comment=self.rng.choice(("", "c" * 10_000)),
            visit=self.rng.choice((0, 0, 1, 2, -1)),
            names_guard=self.rng.random() < 0.5,
        )

    def _operation(self) -> AnyCommand:
        more: dict[str, Any] = {
            "instance_id": ID,
            "command_id": self._command_id(),
            "actor": self.rng.choice(("o", "")),
        }
        kind = self.rng.choice((Pause, Resume, Resume, RetryStep, RetryStep, RunStep, Trigger, Cancel))
        if kind is Cancel and self.rng.random() < 0.7:
            kind = Resume
        if kind in (RetryStep, RunStep):
            more["step_id"] = self._step()
            more["role"] = self.rng.choice((role_for(self.world, more["step_id"]), "", "SYSTEM"))
        if kind is Trigger:
            triggers = [transition.trigger for transition in self.world.definition.transitions]
            more["trigger"] = self.rng.choice([*triggers, "nothing"])
            more["role"] = self.rng.choice(("PO", "", "SYSTEM"))
        command: AnyCommand = kind(**more)
        return command

    def _odd(self) -> AnyCommand:
        return self.rng.choice(
            (
                Noop(),
                PutDefinition(hash="h", text="t"),
                Restore(instance_id=ID, instance={"x": self.value()}),
                SetAside(
                    instance_id=ID,
                    command_id=f"engine/set_aside/{self.rng.randint(0, 3)}",
                    status="PAUSED",
                    state=self.world.live.state,
                    version=self.world.live.version + self.rng.choice((1, 1000)),
                    code="row_unwritable",
                    message="m",
                ),
                Cancel(instance_id="nobody:else", actor="o"),
                self.world.start_command(a=self.value()),
            )
        )

    def _command_id(self) -> str:
        return self.rng.choice(("", f"o{self.world.offset}", f"o{max(self.world.offset - 1, 0)}", "o1"))

    def value(self) -> Any:
        """Return a JSON value, harmless or not."""
        return self.rng.choice(
            (
                None,
                True,
                0.5,
                "text",
                "ünï\u0000" * 3,
                {"score": 0.7},
                {"score": "high", "": None},
                [],
                [[]],
                10**30,
                -1e308,
                "x" * 300_000,
                ["y" * 100_000, {"z": "y" * 100_000}],
                nested(70),
                nested(200),
            )
        )


def role_for(world: World, action: str) -> str:
    """Return a role that may use the action; "" where no role lists it."""
    return next((role.id for role in world.definition.roles.values() if action in role.allowed_actions), "")


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"k": value}
    return value
