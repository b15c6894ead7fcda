"""Random ceremony definitions, valid by construction, as YAML for the real loader.

Every part of the format occurs: the five kinds, side-by-side and chained steps, every form of guard, roles, retries,
gates with quorum and deadline, `on_failure`, ways back, and steps that must fail.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

HANDLERS = ("deliberation_step", "task_extraction_step", "aggregation_step", "human_gate_step", "publish_step")


@dataclass
class Draft:
    rng: Random
    with_roles: bool = False
    states: list[dict[str, Any]] = field(default_factory=list)
    transitions: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    guards: dict[str, Any] = field(default_factory=dict)

    def flip(self, share: float) -> bool:
        return self.rng.random() < share

    def here(self, state: str) -> list[str]:
        return [step["id"] for step in self.steps if step["state"] == state]


def random_definition(rng: Random) -> str:
    """Return the text of one definition named `probe`."""
    draft = Draft(rng, with_roles=rng.random() < 0.5)
    names = [f"S{i}" for i in range(rng.randint(1, 3))]
    for i, name in enumerate(names):
        draft.states.append({"id": name, "description": name, "initial": i == 0})
    for name in names:
        for _ in range(rng.choice((0, 1, 2, 3, 4, 5))):
            draft.steps.append(_step(draft, name))
    for i, name in enumerate(names):
        _transitions(draft, names, i, name)
    for name in ("DONE", "LOST"):
        if any(transition["to"] == name for transition in draft.transitions):
            draft.states.append({"id": name, "description": name, "terminal": True})
    body: dict[str, Any] = {
        "version": "1.0",
        "name": "probe",
        "description": "a probe",
        "inputs": {"required": ["a"], "optional": ["b"]},
        "states": draft.states,
        "transitions": draft.transitions,
        "timeouts": {"step_default": 120, "step_max": 3600, "ceremony_max": 20000},
    }
    if draft.steps:
        body["steps"] = draft.steps
    if draft.guards:
        body["guards"] = draft.guards
    if draft.with_roles:
        body["roles"] = _roles(draft)
    return json.dumps(body)


def _step(draft: Draft, state: str) -> dict[str, Any]:
    rng = draft.rng
    handler = rng.choice((*HANDLERS, "task_extraction_step"))
    talks = [step["id"] for step in draft.steps if step["handler"] == "deliberation_step"]
    if handler == "task_extraction_step" and not talks:
        handler = "deliberation_step"
    step: dict[str, Any] = {"id": f"x{len(draft.steps)}", "state": state, "handler": handler}
    step["config"] = _config(draft, handler, talks)
    earlier = draft.here(state)
    if draft.flip(0.4):
        step["after"] = rng.sample(earlier, min(len(earlier), rng.randint(0, 2)))
    if draft.flip(0.7):
        step["retry"] = {
            "max_attempts": rng.randint(1, 3),
            "backoff_seconds": rng.choice((0, 1, 2.5)),
            "exponential_backoff": draft.flip(0.5),
            "jitter": rng.choice((0, 0.5)),
        }
    if draft.flip(0.3):
        step["timeout_seconds"] = rng.choice((5, 60, 600))
    return step


def _config(draft: Draft, handler: str, talks: list[str]) -> dict[str, Any]:
    rng = draft.rng
    if handler == "deliberation_step":
        count = rng.randint(1, 3)
        config = {"prompt": "talk about ${inputs.a}", "role": "DEV", "num_agents": count}
        return config | ({"min_agents": rng.randint(1, count)} if draft.flip(0.4) else {})
    if handler == "task_extraction_step":
        return {"source": f"deliberation:{rng.choice(talks)}"}
    if handler == "aggregation_step":
        known = ["a"] + [step["id"] for step in draft.steps if step["handler"] == "aggregation_step"]
        source = "nowhere" if draft.flip(0.05) else rng.choice(known)
        return {"sources": [source], "aggregation_type": rng.choice(("merge", "list", "object"))}
    if handler == "human_gate_step":
        config = {"role": "PO", "message": "is it good"}
        config |= {"quorum": 2} if draft.flip(0.3) else {}
        return config | ({"deadline_seconds": 300} if draft.flip(0.4) else {})
    return {"subject": "ceremony.result.x", "event_type": "result", "payload_template": {"story": "${inputs.story_id}"}}


def _transitions(draft: Draft, names: list[str], i: int, name: str) -> None:
    rng = draft.rng
    onward = names[i + 1] if i + 1 < len(names) else "DONE"
    here = draft.here(name)

    def add(to: str, trigger: str, guards: list[str]) -> None:
        draft.transitions.append({"from": name, "to": to, "trigger": trigger, "guards": guards, "description": "d"})

    add(onward, f"go_{i}", [_guard(draft, here)] if draft.flip(0.4) else [])
    if here and draft.flip(0.4):
        failed = rng.choice(here)
        guard = _named(draft, {"check": f"step_status:{failed}:FAILED"})
        add(rng.choice([*names[: i + 1], "LOST"]), f"mend_{i}", [guard])
        if draft.flip(0.5):
            next(step for step in draft.steps if step["id"] == failed)["on_failure"] = f"mend_{i}"
    if draft.flip(0.2):
        add("LOST", f"abort_{i}", [_named(draft, {"type": "human", "check": "a person aborts", "role": "PO"})])
    if i > 0 and draft.flip(0.3):
        add(rng.choice(names[:i]), f"back_{i}", [_named(draft, {"type": "human", "check": "again", "role": "PO"})])
    rng.shuffle(draft.transitions)


def _guard(draft: Draft, here: list[str]) -> str:
    forms: list[dict[str, Any]] = [
        {"check": "all_steps_completed"},
        {"check": "cel:size(outputs) > 0"},
        {"type": "human", "check": "a person agrees", "role": "PO"},
    ]
    if here:
        forms += [
            {"check": f"step_status:{draft.rng.choice(here)}:COMPLETED"},
            {"check": f"threshold:{draft.rng.choice(here)}.score", "threshold": 0.5},
            {"check": f'cel:status.{draft.rng.choice(here)} == "COMPLETED"'},
        ]
    return _named(draft, draft.rng.choice(forms))


def _named(draft: Draft, guard: dict[str, Any]) -> str:
    name = f"g{len(draft.guards)}"
    if not draft.with_roles:
        guard.pop("role", None)
    draft.guards[name] = guard
    return name


def _roles(draft: Draft) -> list[dict[str, Any]]:
    talks = [step["id"] for step in draft.steps if step["config"].get("role") == "DEV"]
    gates = [step["id"] for step in draft.steps if step["config"].get("role") == "PO"]
    triggers = sorted({transition["trigger"] for transition in draft.transitions})
    if talks and draft.flip(0.1):
        talks.pop()
    roles = [
        {"id": "DEV", "description": "d", "allowed_actions": talks},
        {"id": "PO", "description": "p", "allowed_actions": gates + triggers},
    ]
    if draft.flip(0.3):
        roles.append({"id": "SYSTEM", "description": "s", "allowed_actions": triggers})
    return roles
