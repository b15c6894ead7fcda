"""Loads a ceremony definition: text in, a validated Definition out, or every violation with line, rule and remedy."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import PurePosixPath

from ports.errors import CeremonyError
from tables.definition import Definition, Role, State, Transition
from tables.definitions import graph_rules, section_rules, step_rules
from tables.definitions.draft import Draft, grouped
from tables.definitions.file_format import DEFINITION
from tables.definitions.problems import UNREADABLE, ProblemList, clipped
from tables.definitions.shapes import Fields
from tables.definitions.yaml_source import parse, read_text
from tables.errors import DefinitionInvalid
from tables.kinds import Kinds

PINNED_KEPT = 512


def load(text: str | bytes, file: str, kinds: Kinds) -> Definition:
    """Load the definition in `text`, read from `file` (the name in messages; its stem must be the `name`).

    Raises DefinitionInvalid with every violation, and nothing else, for any text.
    """
    return _load(text, file, kinds, PurePosixPath(file.replace("\\", "/")).stem)


def content_hash(text: str | bytes) -> str:
    """Return the hash that pins a definition: hex SHA-256 of the file's bytes."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")).hexdigest()


_pinned: OrderedDict[str, tuple[Kinds, Definition]] = OrderedDict()


def load_pinned(text: str, digest: str, kinds: Kinds) -> Definition:
    """Load the definition that a running instance is pinned to; the last 512 are cached by hash.

    An older loader accepted it, so it keeps its meaning: rules that it breaks today become its `objections`. Raises
    CeremonyError `definition_hash_mismatch` where `digest` is not the hash of `text`, and DefinitionInvalid where there
    is nothing to run.
    """
    found = _pinned.get(digest)
    if found is not None and found[0] is kinds:
        _pinned.move_to_end(digest)
        return found[1]
    if content_hash(text) != digest:
        raise CeremonyError("definition_hash_mismatch", f"the stored text is not the one with hash {clipped(digest)}")
    definition = _load(text, f"definition {digest[:12]}", kinds, None, pinned=True)
    _pinned[digest] = (kinds, definition)
    while len(_pinned) > PINNED_KEPT:
        _pinned.popitem(last=False)
    return definition


def _load(source: str | bytes, file: str, kinds: Kinds, stem: str | None, *, pinned: bool = False) -> Definition:
    report = ProblemList(file)
    text = read_text(source, report)
    root = parse(text, report) if text is not None else None
    if text is None or root is None:
        if not report.problems():
            report.add(1, "empty_file", "the file is empty; it needs version, name, description, states, transitions")
        raise DefinitionInvalid(report.problems())
    fields = DEFINITION.read(root, "", report)
    if fields is None:
        raise DefinitionInvalid(report.problems())
    definition = _checked(Draft.of(fields, report, kinds, pinned=pinned), text, content_hash(source), stem)
    problems = report.problems()
    if not problems:
        return definition
    if not pinned or any(problem.rule in UNREADABLE for problem in problems):
        raise DefinitionInvalid(problems)
    return replace(definition, objections=problems)


def _checked(draft: Draft, text: str, digest: str, stem: str | None) -> Definition:
    """Apply the rules beyond the shapes; the definition is complete only where the report stays empty."""
    fields, report = draft.fields, draft.report
    name = fields.get("name", "")
    if stem is not None and name and name != stem:
        message = f"name is `{clipped(name)}`, but the file is called `{clipped(stem)}`: they must be the same"
        report.add(fields.line_of("name"), "name_mismatch", message)
    required, optional, searchable = section_rules.inputs(draft)
    section_rules.roles(draft)
    graph_rules.check(draft)
    states = [
        State(s.text("id"), s.get("description", ""), s.get("initial", False), s.get("terminal", False))
        for s in draft.states
    ]
    transitions = tuple(map(_transition, draft.transitions))
    definition = Definition(
        name=name,
        description=fields.get("description", ""),
        hash=digest,
        text=text,
        required_inputs=required,
        optional_inputs=optional,
        searchable_inputs=searchable,
        outputs=section_rules.outputs(draft),
        states={state.id: state for state in states},
        transitions=transitions,
        steps={},
        guards=section_rules.guards(draft),
        roles={r.text("id"): _role(r) for r in draft.roles},
        timeouts=draft.timeouts,
        initial=next((s.id for s in states if s.initial), ""),
        transitions_from=grouped([s.id for s in states], ((t.from_state, t) for t in transitions)),
    )
    return step_rules.with_steps(draft, definition)


def _transition(t: Fields) -> Transition:
    guards = tuple(item.value for item in t.get("guards", ()) if item.value)
    return Transition(t.get("from", ""), t.get("to", ""), t.get("trigger", ""), guards, t.get("description", ""))


def _role(r: Fields) -> Role:
    actions = tuple(item.value for item in r.get("allowed_actions", ()) if item.value)
    return Role(r.text("id"), r.get("description", ""), actions)
