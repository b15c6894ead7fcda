"""Rules of steps: state, order, retries, time limits, and configs as the step kinds judge them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from pydantic import BaseModel, ValidationError

from tables.definition import Definition, GuardType, RetryPolicy, Step, Transition
from tables.definitions.draft import Draft, grouped
from tables.definitions.order import StepOrder
from tables.definitions.problems import MESSAGE_CHARACTERS, UNREADABLE, clipped
from tables.definitions.references import never_there
from tables.definitions.shapes import Fields
from tables.definitions.yaml_source import Node
from tables.kinds import PINNED, with_facts


class _Unread(BaseModel):
    """A placeholder for a wrong config, so that other rules can still look the step up."""


def with_steps(draft: Draft, definition: Definition) -> Definition:
    """Return the definition with its steps; report every violation of their rules."""
    policies = {name: retry_policy(item.value) for name, item in draft.policies.items() if item.value is not None}
    after = _order(draft)
    steps = {name: _step(draft, name, fields, policies, after[name]) for name, fields in draft.step_ids.items()}
    by_state = grouped(definition.states, ((step.state, step) for step in steps.values()))
    ways_out = {state: tuple(_ways_out(here, definition)) for state, here in by_state.items()}
    definition = replace(
        definition,
        steps=steps,
        steps_by_state=by_state,
        waiting_for=grouped(steps, ((name, step) for step in steps.values() for name in dict.fromkeys(step.after))),
        automatic_from={state: tuple(_automatic(here, state, definition)) for state, here in by_state.items()},
        ways_out=ways_out,
        prompts=tuple(prompt for step in steps.values() for prompt in step.prompts),
    )
    _report_shared_names(draft, steps)
    for name, step in steps.items():
        kind = draft.kinds.get(step.handler)
        node: Node | None = draft.step_ids[name].get("config")
        if kind is None or node is None or isinstance(step.config, _Unread):
            continue
        for path, rule, message in kind.check(step, definition):
            line = node.line_at(iter(p for p in re.split(r"[.\[\]]+", path) if p))
            draft.report.add(max(line, draft.step_ids[name].line_of("config")), rule, f"step `{name}`: {message}")
    _report_impossible(draft, definition)
    return definition


def _report_impossible(draft: Draft, definition: Definition) -> None:
    """Report the references of steps to outputs that can never be there, where the order of steps is readable."""
    if any(problem.rule in UNREADABLE or problem.rule == "unreachable_state" for problem in draft.report.problems()):
        return
    order = StepOrder(definition)
    for name, step in definition.steps.items():
        if step.handler in draft.kinds and not isinstance(step.config, _Unread):
            for rule, message in never_there(step, definition, draft.kinds, order):
                draft.report.add(draft.step_ids[name].line_of("config"), rule, f"step `{name}`: {message}")


def _report_shared_names(draft: Draft, steps: Mapping[str, Step]) -> None:
    """Report human guards that have the name of a gate step: a decision on that name goes to the step."""
    for name, item in draft.guards.items():
        step = steps.get(name)
        human = item.value is not None and item.value.get("type") == GuardType.HUMAN
        if human and step is not None and step.gate is not None:
            message = f"human guard `{clipped(name)}` has the name of a gate step: nobody could approve it; rename one"
            draft.report.add(item.line, "gate_and_guard", message)


def _ways_out(here: Iterable[Step], definition: Definition) -> Iterator[tuple[Step, Transition]]:
    """Yield the steps with an `on_failure`, each with the first transition of that trigger."""
    firsts: dict[tuple[str, str], Transition] = {}
    for step in here:
        if not firsts:
            leaving = definition.transitions_from[step.state]
            firsts = {(step.state, transition.trigger): transition for transition in reversed(leaving)}
        if step.on_failure is not None and (found := firsts.get((step.state, step.on_failure))) is not None:
            yield step, found


def _automatic(here: Iterable[Step], state: str, definition: Definition) -> Iterator[Transition]:
    """Yield the transitions that leave the state by themselves: not a guard-less `on_failure` of one of its steps."""
    on_failure = {step.on_failure for step in here}
    for transition in definition.transitions_from[state]:
        if transition.guards or transition.trigger not in on_failure:
            yield transition


def _step(draft: Draft, name: str, fields: Fields, policies: Mapping[str, RetryPolicy], after: tuple[str, ...]) -> Step:
    state, handler = fields.get("state", ""), fields.get("handler", "")
    where = f"step `{clipped(name)}`"
    if state and draft.known(state, draft.state_ids, fields.line_of("state"), "unknown_state", where):
        _place(draft, where, fields, state)
    if handler:
        draft.known(handler, draft.kinds, fields.line_of("handler"), "unknown_handler", where)
    step = Step(
        id=name,
        state=state,
        handler=handler,
        config=_config(draft, where, handler, fields.get("config")),
        retry=_retry(draft, where, fields, policies),
        timeout_seconds=_timeout(draft, where, fields),
        after=after,
        on_failure=fields.get("on_failure"),
        line=fields.line,
    )
    return step if isinstance(step.config, _Unread) else with_facts(step, draft.kinds[handler])


def _place(draft: Draft, where: str, fields: Fields, state: str) -> None:
    """Check that the state is not terminal, and that `on_failure` names a trigger that leaves it."""
    if draft.state_ids[state].get("terminal"):
        message = f"{where} is in `{clipped(state)}`, which is terminal: nothing runs there; move it to another state"
        draft.report.add(fields.line_of("state"), "step_in_terminal_state", message)
    trigger = fields.get("on_failure")
    leaving = dict.fromkeys(t.get("trigger") for t in draft.transitions if t.get("from") == state and t.get("trigger"))
    if trigger is not None and trigger not in leaving:
        hint = draft.report.suggest(trigger, leaving)
        message = f"on_failure of {where} is `{clipped(trigger)}`, no trigger that leaves `{clipped(state)}`{hint}"
        draft.report.add(fields.line_of("on_failure"), "unknown_trigger", message)


def _timeout(draft: Draft, where: str, fields: Fields) -> float:
    timeout: float = fields.get("timeout_seconds", draft.timeouts.step_default)
    if fields.has("timeout_seconds") and timeout > draft.timeouts.step_max:
        message = f"{where} has timeout_seconds {timeout:g}, but timeouts.step_max is {draft.timeouts.step_max:g}"
        draft.report.add(fields.line_of("timeout_seconds"), "timeout_over_step_max", message)
    return timeout


def _retry(draft: Draft, where: str, fields: Fields, policies: Mapping[str, RetryPolicy]) -> RetryPolicy:
    given = fields.get("retry")
    if isinstance(given, Fields):
        return retry_policy(given)
    if given is None:
        return policies.get("default", RetryPolicy())
    line = fields.line_of("retry")
    draft.known(given, draft.policies, line, "unknown_retry_policy", f"`retry` of {where}")
    return policies.get(given, RetryPolicy())


def retry_policy(fields: Fields) -> RetryPolicy:
    """Return the policy as written, with its defaults."""
    return RetryPolicy(
        max_attempts=fields.get("max_attempts", 1),
        backoff_seconds=fields.get("backoff_seconds", 5),
        exponential_backoff=fields.get("exponential_backoff", False),
        max_backoff_seconds=fields.get("max_backoff_seconds"),
        jitter=fields.get("jitter", 0.0),
        non_retryable=tuple(item.value for item in fields.get("non_retryable", ()) if item.value),
    )


def _config(draft: Draft, where: str, handler: str, node: Node | None) -> BaseModel:
    """Read the config by its kind's model; the errors of pydantic get the lines of the YAML."""
    kind = draft.kinds.get(handler)
    if kind is None or node is None or node.holds_broken():
        return _Unread()
    try:
        # JSON mode: a YAML list may become a tuple, and a word an enum member, while types stay strict.
        return kind.config.model_validate_json(json.dumps(node.plain()), context={PINNED: draft.pinned})
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False, include_context=False):
            _report_config(draft, where, node, kind.config, found["type"], found["loc"], found["msg"])
    return _Unread()


def _report_config(
    draft: Draft,
    where: str,
    node: Node,
    model: type[BaseModel],
    kind: str,
    loc: tuple[int | str, ...],
    message: str,
) -> None:
    line = node.line_at(iter(loc))
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{clipped(part)}" for part in loc)
    if kind == "extra_forbidden":
        keys = [key for key in _keys(model) if key not in node.entries] if len(loc) == 1 else []
        hint = draft.report.suggest(str(loc[-1]), keys)
        draft.report.add(line, "unknown_key", f"{where} has an unknown key `config{path}`{hint}")
    elif kind == "missing":
        draft.report.add(line, "missing_key", f"{where} needs `config{path}`")
    else:
        text = message.removeprefix("Value error, ")
        draft.report.add(line, "bad_config", f"`config{path}` of {where}: {clipped(text, MESSAGE_CHARACTERS)}")


def _keys(model: type[BaseModel]) -> list[str]:
    return [found.alias or name for name, found in model.model_fields.items()]


def _order(draft: Draft) -> dict[str, tuple[str, ...]]:
    """Return the predecessors of each step: its `after`, or the step before it in the state. Report cycles."""
    previous: dict[str, str] = {}
    after: dict[str, tuple[str, ...]] = {}
    for name, fields in draft.step_ids.items():
        state = fields.get("state")
        before = previous.get(state)
        if fields.has("after"):
            after[name] = _after(draft, name, fields)
        else:
            after[name] = () if before is None else (before,)
        previous[state] = name
    _report_cycles(draft, after)
    return after


def _after(draft: Draft, name: str, fields: Fields) -> tuple[str, ...]:
    state, found = fields.get("state"), []
    for item in fields.get("after", ()):
        if item.value is None:
            continue
        where = f"`after` of step `{clipped(name)}`"
        if not draft.known(item.value, draft.step_ids, item.line, "unknown_step", where):
            continue
        other = draft.step_ids[item.value].get("state")
        if other != state and other is not None and state is not None:
            named = f"`{clipped(item.value)}` of state `{clipped(other)}`"
            message = f"{where} names {named}: only steps of `{clipped(state)}` count"
            draft.report.add(item.line, "after_other_state", message)
            continue
        found.append(item.value)
    return tuple(dict.fromkeys(found))


def _report_cycles(draft: Draft, after: Mapping[str, tuple[str, ...]]) -> None:
    """Report each step on a cycle once (Kahn's algorithm: a step that never gets free lies on or behind a cycle)."""
    waiting = {name: set(names) for name, names in after.items()}
    followers: dict[str, list[str]] = {}
    for name, names in after.items():
        for other in names:
            followers.setdefault(other, []).append(name)
    ready = [name for name, names in waiting.items() if not names]
    while ready:
        done = ready.pop()
        waiting.pop(done)
        for name in followers.get(done, ()):
            waiting[name].discard(done)
            if not waiting[name]:
                ready.append(name)
    settled: set[str] = set()
    for begin in waiting:
        path: dict[str, None] = {}
        name = begin
        while name not in path and name not in settled:
            path[name] = None
            name = next(other for other in after[name] if other in waiting)
        if name in path:
            _report_cycle(draft, list(path)[list(path).index(name) :])
        settled.update(path)


def _report_cycle(draft: Draft, cycle: list[str]) -> None:
    written = [name for name in cycle if draft.step_ids[name].has("after")]
    first = draft.step_ids[written[0]]
    shown = " after ".join(f"`{clipped(s)}`" for s in [*cycle[:6], cycle[0]])
    message = f"{shown}: none of them could ever start; a step without `after` waits for the one before it in its state"
    draft.report.add(first.line_of("after"), "after_cycle", message)
