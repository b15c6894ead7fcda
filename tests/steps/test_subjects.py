"""The allowlist: NATS wildcards, and the engine's own subjects, which no list can allow."""

from __future__ import annotations

import pytest

from steps.publish import subject_problems
from steps.subjects import DEFAULT_ALLOWLIST, matches, parse_allowlist, refusal
from tests.steps.fakes import definition, step


@pytest.mark.parametrize(
    ("pattern", "subject", "fits"),
    [
        ("ceremony.>", "ceremony.a", True),
        ("ceremony.>", "ceremony.a.b", True),
        ("ceremony.>", "ceremony", False),
        ("ceremony.>", "ceremonyx.a", False),
        (">", "anything.at.all", True),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.b.b.c", False),
        ("a.*", "a", False),
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("*.b.>", "a.b.c.d", True),
    ],
)
def test_patterns_match_as_in_nats(pattern: str, subject: str, *, fits: bool) -> None:
    # specification 9.4
    assert matches(subject, pattern) is fits


def test_the_default_allows_ceremony_subjects_that_are_not_the_engines() -> None:
    # specification 9.4
    assert refusal("ceremony.backlog.reviewed", DEFAULT_ALLOWLIST) == ""
    assert "PUBLISH_SUBJECTS" in refusal("orders.created", DEFAULT_ALLOWLIST)
    assert "none" in refusal("orders.created", ())


@pytest.mark.parametrize(
    "subject",
    [
        *(f"ceremony.{first}.a" for first in ("step", "transition", "publish", "dualwrite", "gate", "start")),
        *("ceremony.step.executed.b", "ceremony.gate.opened", "ceremony.start.refused"),
        *(f"ceremony.{word}" for word in ("started", "completed", "failed", "cancelled", "timed_out")),
        *(f"ceremony.{word}" for word in ("paused", "resumed", "deadletter")),
    ],
)
def test_no_list_allows_the_engines_own_subjects(subject: str) -> None:
    """The engine's own subjects are those of specification 9.5."""
    # specification 9.5
    assert "engine" in refusal(subject, [">", "ceremony.>", subject])


def test_a_list_is_read_from_text_and_a_broken_pattern_is_named() -> None:
    assert parse_allowlist(" ceremony.>, orders.* ,") == ("ceremony.>", "orders.*")
    assert parse_allowlist("") == ()
    for broken in ("a.>.b", "a..b", "a b", ".a", "a*.b"):
        with pytest.raises(ValueError, match="no NATS subject pattern"):
            parse_allowlist(f"ok.>,{broken}")


def test_a_server_reports_the_steps_it_would_refuse() -> None:
    good = step("publish_step", {"subject": "ceremony.x", "event_type": "e"}, "good")
    bad = step("publish_step", {"subject": "orders.x", "event_type": "e"}, "bad")
    gate = step("human_gate_step", {"role": "PO", "message": "m"}, "gate")
    (problem,) = subject_problems(definition(good, bad, gate), DEFAULT_ALLOWLIST)
    assert (problem.file, problem.line, problem.rule) == ("review.yaml", 1, "subject_not_allowed")
    assert "`bad`" in problem.message and "`orders.x`" in problem.message
