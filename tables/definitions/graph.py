"""Draws a definition: as plain text for a terminal, as Mermaid for a page, as DOT for Graphviz."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable

from tables.definition import Definition, Guard, GuardType, State, Step, Transition

# Columns inside a box of the terminal drawing.
WIDTH = 76
# Columns for the conditions of a step at least, however long its id is.
MIN_COLUMN = 20


def terminal(definition: Definition) -> str:
    """Draw states as boxes in order of reach, each with its steps and their conditions, then its transitions."""
    blocks = [_heading(definition)]
    blocks += ["\n".join((*_box(definition, state), *_ways_out(definition, state))) for state in _ordered(definition)]
    guards = "\n".join(_guard_lines(guard) for guard in definition.guards.values())
    return "\n\n".join([*blocks, "guards\n" + guards] if guards else blocks) + "\n"


def _heading(definition: Definition) -> str:
    counts = (
        f"{len(definition.states)} states, {len(definition.steps)} steps, {len(definition.transitions)} transitions"
    )
    return "\n".join((f"{definition.name} · {counts}", *_wrapped(definition.description, WIDTH + 4)))


def _ordered(definition: Definition) -> list[State]:
    """Return the states breadth first from the initial one: the order in which a reader meets them."""
    met, seen = [definition.initial], {definition.initial}
    for name in met:  # grows on the way
        for way in definition.transitions_from.get(name, ()):
            if way.to_state not in seen:
                seen.add(way.to_state)
                met.append(way.to_state)
    return [definition.states[name] for name in met]


def _box(definition: Definition, state: State) -> list[str]:
    mark = "▶ " if state.initial else "■ " if state.terminal else ""
    top, side, bottom = ("╔═╗", "║", "╚═╝") if state.terminal else ("┌─┐", "│", "└─┘")
    title = f" {mark}{state.id} "
    lines = [top[0] + top[1] + title + top[1] * (WIDTH + 1 - _columns(title)) + top[2]]
    body = [*_wrapped(state.description, WIDTH), *_step_lines(definition, state)]
    lines += [f"{side} {_padded(_fit(line, WIDTH))} {side}" for line in body]
    return [*lines, bottom[0] + bottom[1] * (WIDTH + 2) + bottom[2]]


def _step_lines(definition: Definition, state: State) -> list[str]:
    steps = definition.steps_by_state.get(state.id, ())
    named = max((len(step.id) for step in steps), default=0)
    kind = max((len(_kind(step)) for step in steps), default=0)
    lines = []
    for step in steps:
        head = f"{_sign(step)} {step.id:<{named}}  {_kind(step):<{kind}}  "
        first, *rest = _wrapped(_waits(step), max(WIDTH - len(head), MIN_COLUMN))
        lines += [head + first, *(" " * len(head) + line for line in rest)]
    return lines


def _sign(step: Step) -> str:
    """○ starts at once, • waits for other steps."""
    return "•" if step.after else "○"


def _kind(step: Step) -> str:
    return step.handler.removesuffix("_step").replace("_", " ")


def _waits(step: Step) -> str:
    parts = ["after " + ", ".join(step.after)] if step.after else ["at once"]
    if step.on_failure is not None:
        parts.append(f"on failure: {_shown(step.on_failure)}")
    return " · ".join(parts)


def _ways_out(definition: Definition, state: State) -> list[str]:
    ways = definition.transitions_from.get(state.id, ())
    named = max((_columns(_shown(way.trigger)) for way in ways), default=0)
    lines = []
    for way in ways:
        branch = "└─" if way is ways[-1] else "├─"
        lines.append(
            f"  {branch} {_padded(_shown(way.trigger), named)} ─▶ {way.to_state}  {_condition(definition, way)}"
        )
    return lines


def _condition(definition: Definition, way: Transition) -> str:
    if way.guards:
        return "[" + " and ".join(map(_shown, way.guards)) + "]"
    if way not in definition.automatic_from[way.from_state]:
        return _after_failure(definition, way)
    first = next(other for other in definition.automatic_from[way.from_state] if not other.guards)
    if way is not first:
        return "by its trigger only"  # the first one without guards is always taken before it
    return "when all steps are done" if definition.steps_by_state.get(way.from_state) else "at once"


def _after_failure(definition: Definition, way: Transition) -> str:
    """Name the steps whose failure takes a transition without guards."""
    failing = [step.id for step in definition.steps_by_state[way.from_state] if step.on_failure == way.trigger]
    return f"when {' or '.join(failing)} fails"


def _guard_lines(guard: Guard) -> str:
    if guard.type is GuardType.HUMAN:
        text = f"approval by {guard.role or 'anybody'}: {_shown(guard.check)}"
    else:
        text = _shown(guard.check)
        text += "" if guard.threshold is None else f" ≥ {guard.threshold:g}"
    return "\n      ".join(_wrapped(f"  {_shown(guard.name)} = {text}", WIDTH + 4))


def mermaid(definition: Definition) -> str:
    """A Mermaid flowchart: a subgraph per state, steps inside with arrows for `after`, transitions between states."""
    state_ids = {name: f"S{n}" for n, name in enumerate(definition.states)}
    step_ids = {name: f"T{n}" for n, name in enumerate(definition.steps)}
    lines = ["flowchart TD"]
    for name, state in definition.states.items():
        steps = definition.steps_by_state.get(name, ())
        if not steps:
            left, right = ("([", "])") if state.initial or state.terminal else ("[", "]")
            lines.append(f'  {state_ids[name]}{left}"{_html(name)}"{right}')
            continue
        lines.append(f'  subgraph {state_ids[name]}["{_html(name)}"]')
        lines += [f'    {step_ids[s.id]}["{_html(s.id)}<br/><i>{_html(_kind(s))}</i>"]' for s in steps]
        lines += [f"    {step_ids[before]} --> {step_ids[s.id]}" for s in steps for before in s.after]
        lines.append("  end")
    lines += [
        f'  {state_ids[way.from_state]} ==>|"{_label(definition, way, "<br/>", _html)}"| {state_ids[way.to_state]}'
        for way in definition.transitions
    ]
    for role, style in (("initial", "stroke-width:3px"), ("terminal", "stroke-width:3px,stroke-dasharray:6 3")):
        ids = [state_ids[name] for name, state in definition.states.items() if getattr(state, role)]
        lines += [f"  classDef {role} {style}", f"  class {','.join(ids)} {role}"]
    return "\n".join(lines) + "\n"


def dot(definition: Definition) -> str:
    """A Graphviz digraph: a node per state with its steps as rows, dashed edges where a guard must hold."""
    lines = [f"digraph {_quoted(definition.name)} {{", "  rankdir=TB;", '  node [shape=box, fontname="sans-serif"];']
    for name, state in definition.states.items():
        steps = definition.steps_by_state.get(name, ())
        rows = [name, *(f"{_sign(s)} {s.id} ({_kind(s)}, {_waits(s)})" for s in steps)]
        shape = "doublecircle" if state.terminal and not steps else "box"
        bold = ", penwidth=2" if state.initial else ""
        lines.append(f"  {_quoted(name)} [shape={shape}, label={_quoted(chr(10).join(rows))}{bold}];")
    for way in definition.transitions:
        style = "solid" if way in definition.automatic_from[way.from_state] and not way.guards else "dashed"
        label = _quoted(_label(definition, way, "\n", _shown))
        lines.append(f"  {_quoted(way.from_state)} -> {_quoted(way.to_state)} [label={label}, style={style}];")
    return "\n".join([*lines, "}"]) + "\n"


def _label(definition: Definition, way: Transition, new_line: str, shown: Callable[[str], str]) -> str:
    condition = " and ".join(way.guards)
    if way not in definition.automatic_from[way.from_state]:
        condition = _after_failure(definition, way)
    return shown(way.trigger) + (f"{new_line}[{shown(condition)}]" if condition else "")


def _html(text: str) -> str:
    """Mermaid's own escapes: `#` starts an entity there, quotes end the label."""
    escapes = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;"}
    return "".join(escapes.get(c, c) for c in _shown(text))


def _quoted(text: str) -> str:
    """A DOT string; line breaks become left-aligned ones."""
    safe = "\n".join(map(_shown, text.split("\n"))).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + safe.replace("\n", "\\l") + ('\\l"' if "\n" in safe else '"')


def _shown(text: str) -> str:
    """Return text on one line without control characters: a definition must not steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _columns(text: str) -> int:
    """Columns a terminal needs; wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in {"W", "F"} else 1 for c in text
    )


def _padded(text: str, width: int | None = None) -> str:
    return text + " " * ((WIDTH if width is None else width) - _columns(text))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, broken between words; at least one line."""
    return textwrap.wrap(_shown(text), width, drop_whitespace=True, replace_whitespace=True) or [""]


def _fit(text: str, width: int) -> str:
    if _columns(text) <= width:
        return text
    text = text[:width]  # a long one is cut at once, the wide characters one by one
    while _columns(text) >= width:
        text = text[:-1]
    return text + "…"
