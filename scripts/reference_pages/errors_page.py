"""The page of all error codes, found where the program makes them."""

from __future__ import annotations

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bridge.grpc.refusals import STATUS_OF, STATUS_OF_ERROR
from scripts.reference_pages.markdown import code, page, prose, table
from scripts.reference_pages.source import modules, shown_text
from tables.fold import refusals

CODE = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
ROOT_CLASS = "CeremonyError"
ERROR_STATUS = {error.__name__: status.name for error, status in STATUS_OF_ERROR.items()}
# Names of the constants of the fold's codes.
FOLD_CODES = {name: value for name, value in vars(refusals).items() if name.isupper() and isinstance(value, str)}
DEFINITION, CALL, STEP, LOG, PROGRAM, RECORD = "definition", "call", "step", "log", "program", "record"
TITLES: Mapping[str, tuple[str, str]] = {
    DEFINITION: (
        "Definitions",
        "Reported with file and line by `ceremony validate`, `ceremony definitions` and a worker.",
    ),
    CALL: ("Calls", "Refusals of gRPC, which the command line shows too. A refused call has changed nothing."),
    STEP: ("Steps and ceremonies", "The `error_code` of an attempt, of a step and of a ceremony."),
    RECORD: (
        "Records and messages",
        "Reasons of dead letters, and of unreadable rows and commands.",
    ),
    LOG: ("The log and the neighbours", "A worker logs them, and ends where it cannot go on."),
    PROGRAM: ("Command line and settings", "One line on stderr."),
}
# Functions that take a code as one of their arguments, beside the classes of errors: its place, and the section.
CALLS: Mapping[str, tuple[int, str]] = {
    "Problem": (2, DEFINITION),
    "known": (3, DEFINITION),
    "Finding": (0, DEFINITION),
    "Violation": (1, CALL),
    "invalid": (0, CALL),
    "_each": (0, CALL),
    "Failed": (0, STEP),
    "failed": (0, STEP),
    "_failed": (0, STEP),
    "_refused": (0, STEP),
    "Unfit": (0, STEP),
    "TemplateFailed": (0, STEP),
    "PublishRefused": (0, STEP),
    "end": (2, STEP),
    "dead_letter": (1, RECORD),
    "dead_letter_of": (1, RECORD),
    "_refuse": (0, LOG),
    "_lost": (0, LOG),
    "_BreaksContract": (0, RECORD),
}
# Sections of classes of errors, by the beginning of the path where they are made; the longest that fits counts.
SECTION_OF: Mapping[str, str] = {
    "ports/": LOG,
    "tables/": RECORD,
    "tables/cel/": DEFINITION,
    "tables/definitions/": DEFINITION,
    "tables/guards.py": DEFINITION,
    "tables/templates.py": STEP,
    "tables/limits.py": STEP,
    "steps/": STEP,
    "streams/": LOG,
    "streams/api.py": CALL,
    "bridge/": LOG,
    "bridge/grpc/": CALL,
    "bridge/definitions.py": DEFINITION,
    "bridge/dead_letters.py": CALL,
    "ceremony/": PROGRAM,
}
# Texts that the program puts together, or that come from elsewhere.
TEXTS: Mapping[str, Mapping[str, str]] = {
    DEFINITION: {
        **{f"duplicate_{noun}": "… `…` stands in line … already: ids are unique" for noun in ("role", "state", "step")},
        **dict.fromkeys(
            ("bad_version", "unknown_type", "unknown_guard_type"), "… is `…`, no word known here; did you mean `…`?"
        ),
        "bad_id": "… is `…`, but must be of the wanted form",
        "bad_pattern": "the pattern of a schema cannot be matched in linear time, or is none",
        "definition_unknown": "there is no such file among the definitions",
    },
    CALL: {
        "already_exists": "another start of this id came first; the fields that differ are named",
        "fold_failed": "an error of ours; nothing was changed",
        "overloaded": "too many starts wait; nothing was recorded; `retry-after-ms` names the time to come back",
        "request_undecodable": "the request's bytes are no message of this call, or nest deeper than protobuf reads",
        "role_not_allowed": "the actor's role may not do this; the roles that may are named",
        "role_required": "the action belongs to a role, and the actor names none",
        "secret_in_id": "an id holds a secret, and ids are shown everywhere",
        "still_malformed": "the dead letter's cause is not mended",
        "unavailable": "the partition moves or the log does not answer; repeating is safe after `retry-after-ms`",
    },
    STEP: {
        "timeout": "no answer came within the step's time; retried",
        "rejected": "a person rejected the gate",
        "ceremony_max": "the whole ceremony took longer than `timeouts.ceremony_max`",
        "source_missing": "a source is neither in the output of a completed step nor an input",
        "subject_not_allowed": "the subject belongs to the engine, or `PUBLISH_SUBJECTS` does not allow it",
    },
}
# Functions that make the text themselves.
TEXT_OF = {"known": "… names `…`, which is no … of this file; did you mean `…`?"}
# Statuses of codes that no table of the program has, by the function that makes them.
INVALID = frozenset({"invalid", "_each", "Violation", "StartInvalid"})
OTHER_STATUSES = {
    "internal": "INTERNAL",
    "overloaded": "RESOURCE_EXHAUSTED",
    "request_undecodable": "INVALID_ARGUMENT",
    "unavailable": "UNAVAILABLE",
}
# The loader reports what a config model refuses under this code.
CONFIG_CODE = "bad_config"


class Made(NamedTuple):
    """One place that makes an error."""

    section: str
    code: str
    message: str
    status: str = ""


def errors_page() -> str:
    found: dict[str, dict[str, set[str]]] = {section: defaultdict(set) for section in TITLES}
    statuses = {one: status.name for one, status in STATUS_OF.items()} | OTHER_STATUSES
    for made in _all():
        found[made.section][made.code].add(made.message)
        if made.status:
            statuses.setdefault(made.code, made.status)
    for status_code in statuses:
        found[CALL][status_code].add("")
    for section, texts in TEXTS.items():
        for one, message in texts.items():
            found[section][one].add(message)
    introduction = (
        "An error is `code: place: message; remedy`. A code never changes; in the texts, … stands for a value. "
        "[Errors and retries](../writing/errors.md) explains when each kind appears."
    )
    return page("Error codes", introduction, *(_section(section, codes, statuses) for section, codes in found.items()))


def _section(section: str, codes: Mapping[str, set[str]], statuses: Mapping[str, str]) -> str:
    title, text = TITLES[section]
    heads, rows = ["code", "text"], [[code(one), _messages(codes[one])] for one in sorted(codes)]
    if section == CALL:
        heads.insert(1, "status")
        for row, one in zip(rows, sorted(codes), strict=True):
            row.insert(1, statuses.get(one, ""))
    return f"## {title}\n\n{text}\n\n" + table(heads, rows)


def _messages(texts: set[str]) -> str:
    return "<br>".join(prose(text) for text in sorted(texts) if text.strip("{}…: ") not in ("", "message"))


def _all() -> Iterator[Made]:
    classes = _error_classes()
    for module, tree in modules().items():
        reader = _Reader(module, tree, classes)
        for node in ast.walk(tree):
            yield from reader.made_by(node)


class _Reader:
    """Finds the errors that one module makes."""

    def __init__(self, module: str, tree: ast.Module, classes: set[str]) -> None:
        self._module = module
        self._classes = classes
        self._owner_of = _owners(tree)
        self._assigned = _assigned_texts(tree)

    def made_by(self, node: ast.AST) -> Iterator[Made]:
        if isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.Tuple):
            yield from self._constants(node.elts)
            if self._module.startswith("tables/definitions/"):
                yield from self._pairs(node.elts)
        elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and self._module.startswith("steps/"):
            yield from self._made(DEFINITION, node.value.elts, 1)

    def _call(self, node: ast.Call) -> Iterator[Made]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        status = "INVALID_ARGUMENT" if name in INVALID else ERROR_STATUS.get(name, "")
        yield from self._constants(node.args)
        if name == "PydanticCustomError" and len(node.args) > 1:
            yield Made(DEFINITION, CONFIG_CODE, self._text(node.args[1]))
        elif name == "add" and self._module.startswith("tables/definitions/"):
            yield from self._made(DEFINITION, node.args, 1)
        elif name in CALLS:
            place, section = CALLS[name]
            for made in self._made(section, node.args, place, status):
                yield made._replace(message=TEXT_OF.get(name, made.message))
        elif name in self._classes or (name == "__init__" and self._owner_of.get(node) in self._classes):
            yield from self._made(_section_of(self._module), node.args, int(name == "CallRefused"), status)

    def _made(self, section: str, arguments: Sequence[ast.expr], place: int, status: str = "") -> Iterator[Made]:
        given = arguments[place] if len(arguments) > place else None
        if isinstance(given, ast.Constant) and isinstance(given.value, str) and CODE.fullmatch(given.value):
            message = next(filter(None, map(self._text, arguments[place + 1 :])), "")
            if message or "_" in given.value:
                yield Made(section, given.value, message, status)

    def _pairs(self, values: Sequence[ast.expr]) -> Iterator[Made]:
        """A code with its text behind it."""
        for place, (given, message) in enumerate(itertools.pairwise(values)):
            if isinstance(given, ast.Constant) and "_" in str(given.value) and " " in self._text(message):
                yield from self._made(DEFINITION, values, place)

    def _constants(self, values: Sequence[ast.expr]) -> Iterator[Made]:
        """Codes of the fold, which are named constants, each with the text behind it."""
        if not self._module.startswith(("tables/fold/", "bridge/grpc/")):
            return
        for given, message in itertools.pairwise(values):
            name = given.attr if isinstance(given, ast.Attribute) else getattr(given, "id", "")
            if name in FOLD_CODES:
                yield Made(CALL, FOLD_CODES[name], self._text(message))

    def _text(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self._assigned.get((node.id, node.lineno), "")
        return shown_text(node)


def _section_of(module: str) -> str:
    prefix = max((prefix for prefix in SECTION_OF if module.startswith(prefix)), key=len)
    return SECTION_OF[prefix]


def _error_classes() -> set[str]:
    """Names of the root and of all classes below it."""
    bases = {
        node.name: {base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases}
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {ROOT_CLASS}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def _owners(tree: ast.Module) -> dict[ast.Call, str]:
    """The class in which each call stands."""
    return {
        call: owner.name
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for call in ast.walk(owner)
        if isinstance(call, ast.Call)
    }


def _assigned_texts(tree: ast.Module) -> dict[tuple[str, int], str]:
    """The text that a variable had last at each line where it is read, within its function or in the module."""
    found: dict[tuple[str, int], str] = {}
    scopes = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))]
    for scope in scopes:
        texts = sorted(
            (node.lineno, target.id, shown_text(node.value))
            for node in (ast.walk(scope) if scope is not tree else tree.body)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and shown_text(node.value)
        )
        for read in (node for node in ast.walk(scope) if isinstance(node, ast.Name)):
            before = [text for line, name, text in texts if name == read.id and (line <= read.lineno or scope is tree)]
            if before:
                found[read.id, read.lineno] = before[-1]
    return found
