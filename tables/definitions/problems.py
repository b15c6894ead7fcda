"""Collects the violations of one definition file, bounded in number and in size."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from tables.errors import Problem

# Beyond this number, the list of a hostile file costs more than it helps.
MAX_PROBLEMS = 1000
MAX_SUGGESTIONS = 50
MAX_CANDIDATES = 300
SHOWN_CHARACTERS = 80
MESSAGE_CHARACTERS = 300

# Rules whose breach leaves something of a file unread. They are as old as the first release, so no ceremony is pinned
# to a file that breaks them. A breach of any other rule is forgiven in a pinned definition: a rule that is added or
# made stricter later has a code that is not among these.
UNREADABLE = frozenset(
    {
        *("after_cycle", "after_other_state", "bad_config", "bad_id", "bad_key", "bad_name", "bad_number"),
        *("bad_value", "bad_version", "duplicate_key", "duplicate_role", "duplicate_state", "duplicate_step"),
        *("duplicate_trigger", "empty_file", "empty_value", "file_too_large", "leaves_terminal_state", "missing_key"),
        *("nesting_too_deep", "no_initial_state", "no_terminal_state", "not_utf8", "null_value", "out_of_range"),
        *("several_documents", "several_initial_states", "step_in_terminal_state", "too_many_problems"),
        *("unknown_guard", "unknown_guard_type", "unknown_handler", "unknown_key", "unknown_retry_policy"),
        *("unknown_state", "unknown_step", "unknown_trigger", "unknown_type", "unknown_type_word", "wrong_type"),
        *("yaml_alias", "yaml_syntax", "yaml_tag"),
    }
)


class ProblemList:
    """The violations of one file; those beyond the limit are counted only."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._problems: dict[Problem, None] = {}
        self._dropped = 0
        self._suggestions = 0

    def add(self, line: int, rule: str, message: str) -> None:
        if len(self._problems) >= MAX_PROBLEMS:
            self._dropped += 1
        else:
            self._problems[Problem(self.file, line, rule, message)] = None

    def suggest(self, word: str, candidates: Iterable[str]) -> str:
        """Return `; did you mean …?`, or the choices, or "" where neither would help."""
        choices = [c for c, _ in zip(candidates, range(MAX_CANDIDATES), strict=False)]
        if not choices:
            return ""
        if len(word) <= SHOWN_CHARACTERS and self._suggestions < MAX_SUGGESTIONS:
            self._suggestions += 1
            near = get_close_matches(word, choices, n=1) or [c for c in choices if c.lower() == word.lower()]
            if near:
                return f"; did you mean `{near[0]}`?"
        return f"; there is {listed(choices)}"

    def problems(self) -> tuple[Problem, ...]:
        """Return all violations in file order; a last one counts those beyond the limit."""
        found = sorted(self._problems)
        if self._dropped:
            last = found[-1].line
            text = f"{self._dropped} more violations are not listed; mend these {MAX_PROBLEMS} first"
            found.append(Problem(self.file, last, "too_many_problems", text))
        return tuple(found)


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Return `a`, `b`, `c`, … for people."""
    names = list(names)
    shown = ", ".join(f"`{clipped(n)}`" for n in names[:limit])
    return shown + (", …" if len(names) > limit else "")


def clipped(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Return a value as text for people, on one line, at most `limit` characters."""
    text = str(value)[: limit + 1]
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= limit else text[:limit] + "…"
