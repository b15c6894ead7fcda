"""Human gate: its output while it waits, and after a decision."""

from __future__ import annotations

from typing import Any

import pytest

from steps.human_gate import HumanGate, agent
from tables.instance import Approval, StepStatus
from tables.kinds import Completed, Decided, Failed, Opened
from tests.steps.fakes import MemoryBatch, agent_ports, body_of, context, request, run, step, wrong

KIND = HumanGate()
BASE = {"role": "PO", "message": "Release?"}
ASKED = context(step("human_gate_step", BASE))
ANA = Approval(actor="ana", role="PO", at=1_700_000_000_123, comment="fine")
BEN = Approval(actor="ben", role="PO", at=1_700_000_001_000)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"message": "m"}, "role:missing"),
        ({"role": "PO"}, "message:missing"),
        ({**BASE, "message": ""}, "message:blank"),
        ({**BASE, "deadline_seconds": 0}, "deadline_seconds:greater_than"),
        ({**BASE, "deadline_seconds": float("inf")}, "deadline_seconds:less_than_equal"),
        ({**BASE, "deadline_seconds": "60"}, "deadline_seconds:float_type"),
        ({**BASE, "quorum": 0}, "quorum:greater_than_equal"),
        ({**BASE, "quorum": True}, "quorum:int_type"),
        ({**BASE, "approvers": []}, "approvers:extra_forbidden"),
    ],
)
def test_a_wrong_config_is_found_at_load(config: dict[str, Any], error: str) -> None:
    # specification 8.1
    assert error in wrong("human_gate_step", config)


def test_the_message_is_rendered_as_the_gate_opens_and_stays_so() -> None:
    # specification 8.11
    gate = step("human_gate_step", {**BASE, "message": "Release ${inputs.title}? $${x}"})
    assert body_of(KIND, context(gate, inputs={"title": "Login"})) == {"role": "PO", "message": "Release Login? ${x}"}
    waiting = {"role": "PO", "message": "Release Login?", "waiting": True}
    verdict = KIND.decided(context(gate, output=waiting), Decided(approved=True, by=(ANA,)))
    assert isinstance(verdict, Completed) and verdict.output["message"] == "Release Login?"


def test_a_message_without_a_value_fails_the_step_for_good() -> None:
    # specification 8.11
    failed = KIND.request(context(step("human_gate_step", {**BASE, "message": "${inputs.absent}?"})))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("template_unresolved", False)


def test_an_approval_completes_it() -> None:
    # specification 8.4
    assert KIND.decided(ASKED, Decided(approved=True, by=(ANA,))) == Completed(
        {
            "role": "PO",
            "message": "Release?",
            "approved": True,
            "decided_by": "ana",
            "decided_at": "2023-11-14T22:13:20.123Z",
            "comment": "fine",
        }
    )


def test_a_quorum_is_named_together_and_dated_by_the_last() -> None:
    # specification 8.4
    verdict = KIND.decided(ASKED, Decided(approved=True, by=(ANA, BEN)))
    assert isinstance(verdict, Completed)
    assert (verdict.output["decided_by"], verdict.output["comment"]) == ("ana, ben", "fine")
    assert verdict.output["decided_at"] == "2023-11-14T22:13:21.000Z"


def test_a_rejection_fails_it_for_good_and_keeps_its_output() -> None:
    # specification 8.5
    verdict = KIND.decided(ASKED, Decided(approved=False, by=(BEN,)))
    assert isinstance(verdict, Failed)
    assert (verdict.code, verdict.retryable) == ("rejected", False)
    assert (verdict.output["approved"], verdict.output["decided_by"], verdict.output["comment"]) == (False, "ben", "")


def test_a_gate_past_its_deadline_fails_for_good_and_one_never_opened_is_retried() -> None:
    # specification 8.6
    waiting = KIND.timed_out(context(ASKED.step, status=StepStatus.WAITING_FOR_HUMAN), {})
    unopened = KIND.timed_out(ASKED, {})
    assert isinstance(waiting, Failed) and (waiting.code, waiting.retryable) == ("gate_deadline", False)
    assert isinstance(unopened, Failed) and (unopened.code, unopened.retryable) == ("timeout", True)


def test_only_people_complete_a_gate() -> None:
    completed, gathered = KIND.completed(ASKED, {"approved": True}), KIND.gathered(ASKED, {})
    assert not KIND.accepts(ASKED, "agent-po-001")
    assert isinstance(completed, Failed) and completed.code == "unexpected_outcome"
    assert isinstance(gathered, Failed) and gathered.code == "unexpected_outcome"


async def test_the_agent_opens_the_gate() -> None:
    batch = MemoryBatch(request(KIND.request(ASKED)))
    await run(agent(agent_ports()), batch)
    (outcome,) = batch.outcomes
    assert outcome.outcome == "waiting"
    assert outcome.output == {"role": "PO", "message": "Release?", "waiting": True}


def test_the_kind_opens_the_gate_as_its_agent_does() -> None:
    # specification 8.2, 11.11
    assert KIND.at_once(KIND.request(ASKED)) == Opened({"role": "PO", "message": "Release?", "waiting": True})
