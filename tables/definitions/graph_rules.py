"""Rules of states and transitions: one beginning, an end in reach of every state, and no endless cycle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from tables.definitions.draft import Draft
from tables.definitions.problems import clipped, listed
from tables.definitions.shapes import Fields

Edges = Mapping[str, list[str]]


def check(draft: Draft) -> None:
    """Report every violation of the rules of states and transitions."""
    _ends(draft)
    _transitions(draft)
    ids = draft.state_ids
    if all(t.get("from") in ids and t.get("to") in ids for t in draft.transitions):
        _reach(draft)
        _endless(draft)


def _ends(draft: Draft) -> None:
    """Check for exactly one initial state and at least one terminal state."""
    if not draft.states:
        return
    line = draft.fields.line_of("states")
    initial = [s for s in draft.states if s.get("initial")]
    if not initial and not _misread(draft, "initial"):
        draft.report.add(line, "no_initial_state", "no state is initial: write `initial: true` at exactly one")
    for state in initial[1:]:
        message = f"`{clipped(initial[0].get('id', '?'))}` is initial already: exactly one state is"
        draft.report.add(state.line_of("initial"), "several_initial_states", message)
    if not any(s.get("terminal") for s in draft.states) and not _misread(draft, "terminal"):
        draft.report.add(line, "no_terminal_state", "no state is terminal: write `terminal: true` at one at least")


def _misread(draft: Draft, key: str) -> bool:
    """Return whether some state has a wrong value for `key`, which is reported already."""
    unread = len(draft.fields.get("states", ())) - len(draft.states)
    return unread > 0 or any(s.has(key) and s.get(key) is None for s in draft.states)


def _transitions(draft: Draft) -> None:
    """Check that states and guards exist, triggers are unique per state, nothing leaves a terminal state."""
    seen: dict[tuple[str, str], int] = {}
    for t in draft.transitions:
        start, end, trigger = t.get("from"), t.get("to"), t.get("trigger")
        where = f"transition `{clipped(trigger or '?')}`"
        for key, state in (("from", start), ("to", end)):
            if state is not None:
                draft.known(state, draft.state_ids, t.line_of(key), "unknown_state", f"`{key}` of {where}")
        for item in t.get("guards", ()):
            if item.value is not None:
                draft.known(item.value, draft.guards, item.line, "unknown_guard", where)
        if start in draft.state_ids and draft.state_ids[start].get("terminal"):
            message = f"{where} leaves `{clipped(start)}`, which is terminal: remove it, or `terminal: true`"
            draft.report.add(t.line_of("from"), "leaves_terminal_state", message)
        if start is None or trigger is None:
            continue
        first = seen.setdefault((start, trigger), t.line_of("trigger"))
        if first != t.line_of("trigger"):
            message = (
                f"`{clipped(start)}` has a trigger `{clipped(trigger)}` in line {first} already: name it differently"
            )
            draft.report.add(t.line_of("trigger"), "duplicate_trigger", message)


def _reach(draft: Draft) -> None:
    """Check that every state can be reached, and a terminal state from every state."""
    forward: dict[str, list[str]] = defaultdict(list)
    backward: dict[str, list[str]] = defaultdict(list)
    for t in draft.transitions:
        forward[t.get("from")].append(t.get("to"))
        backward[t.get("to")].append(t.get("from"))
    initial = [name for name, s in draft.state_ids.items() if s.get("initial")]
    terminal = [name for name, s in draft.state_ids.items() if s.get("terminal")]
    reached, ending = _closure(initial, forward), _closure(terminal, backward)
    for name, state in draft.state_ids.items():
        if initial and name not in reached:
            message = f"no transitions lead from `{clipped(initial[0])}` to `{clipped(name)}`: add one, or remove it"
            draft.report.add(state.line_of("id"), "unreachable_state", message)
        if terminal and name not in ending:
            message = f"no transitions lead from `{clipped(name)}` to a terminal state ({listed(terminal)}): add one"
            draft.report.add(state.line_of("id"), "no_way_to_end", message)


def _closure(start: Iterable[str], edges: Edges) -> set[str]:
    found, todo = set(start), list(start)
    while todo:
        for name in edges.get(todo.pop(), ()):
            if name not in found:
                found.add(name)
                todo.append(name)
    return found


def _endless(draft: Draft) -> None:
    """Check that no states without steps form an endless cycle of guard-less transitions."""
    busy = {s.get("state") for s in draft.steps}
    following: dict[str, Fields] = {}
    for t in draft.transitions:
        start = t.get("from")
        if start not in busy and (not t.has("guards") or t.get("guards") == ()):
            following.setdefault(start, t)
    settled: set[str] = set()
    for begin in following:
        path: dict[str, None] = {}
        state = begin
        while state in following and state not in settled and state not in path:
            path[state] = None
            state = following[state].get("to")
        if state in path:
            cycle = list(path)[list(path).index(state) :]
            first = following[cycle[0]]
            message = (
                f"{' → '.join(clipped(s) for s in [*cycle[:6], cycle[0]])} would run for ever: "
                "give one of these states a step, or one of these transitions a guard"
            )
            draft.report.add(first.line_of("from"), "endless_cycle", message)
        settled.update(path)
