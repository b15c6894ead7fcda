"""Deliberation: its config, its task, and the judgement of the agents' answers."""

from __future__ import annotations

from typing import Any

import pytest

from ports.errors import Unreachable
from ports.ray import RayAnswer
from steps.agent import Model
from steps.deliberation import Deliberation, agent
from tables.instance import AgentAnswer
from tables.kinds import Completed, Decided, Failed, Pending, StepContext
from tests.steps.fakes import (
    MemoryBatch,
    RecordingRay,
    agent_ports,
    body_of,
    context,
    definition,
    request,
    run,
    step,
    wrong,
)

KIND = Deliberation()
BASE = {"prompt": "Review ${inputs.title}", "role": "PO", "num_agents": 2}
FIRST, SECOND = "agent-po-001", "agent-po-002"


def asked(config: dict[str, Any] | None = None, **state: Any) -> StepContext:
    it = step("deliberation_step", {**BASE, **(config or {})})
    return context(it, inputs={"title": "Login", "plan": "p-9"}, deliberation_id="d-1", **state)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prompt": " "}, "prompt:blank"),
        ({"prompt": None}, "prompt:string_type"),
        ({"role": ""}, "role:role_malformed"),
        ({"role": "P:O"}, "role:role_malformed"),
        ({"num_agents": 0}, "num_agents:greater_than_equal"),
        ({"num_agents": "two"}, "num_agents:int_type"),
        ({"num_agents": True}, "num_agents:int_type"),
        ({"num_agents": 1000}, "num_agents:less_than_equal"),
        ({"num_agents": None}, ":agents_missing"),
        ({"num_agents": None, "agents": []}, "agents:too_short"),
        ({"agents": ["a"]}, ":agents_disagree"),
        ({"min_agents": 3}, ":min_agents_too_many"),
        ({"min_agents": 0}, "min_agents:greater_than_equal"),
        ({"temperature": 1}, "temperature:extra_forbidden"),
        ({"constraints": {"budget": 1}}, "constraints.budget:extra_forbidden"),
        ({"constraints": {"timeout_seconds": 0}}, "constraints.timeout_seconds:greater_than_equal"),
        ({"constraints": {"timeout_seconds": 86401}}, "constraints.timeout_seconds:less_than_equal"),
        ({"constraints": {"timeout": 86401}}, "constraints.timeout_seconds:less_than_equal"),
        ({"constraints": {"timeout": 5, "timeout_seconds": 6}}, "constraints:timeouts_disagree"),
        ({"constraints": {"max_retries": 11}}, "constraints.max_retries:less_than_equal"),
        ({"constraints": {"max_retries": -1}}, "constraints.max_retries:greater_than_equal"),
        ({"constraints": {"metadata": {"a": 1}}}, "constraints.metadata.a:string_type"),
        ({"constraints": {"story_id": ""}}, "constraints.story_id:blank"),
        ({"constraints": []}, "constraints:model_type"),
    ],
)
def test_a_wrong_config_is_found_at_load(change: dict[str, Any], error: str) -> None:
    # specification 5.1, 5.2
    assert error in wrong("deliberation_step", {**BASE, **change})


@pytest.mark.parametrize("missing", ["prompt", "role"])
def test_prompt_and_role_are_required(missing: str) -> None:
    # specification 5.1
    config = {key: value for key, value in BASE.items() if key != missing}
    assert wrong("deliberation_step", config) == [f"{missing}:missing"]


@pytest.mark.parametrize(
    ("change", "agents"),
    [({"num_agents": "3"}, 3), ({"num_agents": None, "agents": ["a", {"b": 1}]}, 2), ({"agents": ["a", "b"]}, 2)],
)
def test_agents_are_a_number_a_quoted_number_or_a_list_that_is_counted(change: dict[str, Any], agents: int) -> None:
    # specification 5.1
    assert len(body_of(KIND, asked(change))["agents"]) == agents


def test_a_template_that_names_an_unknown_step_is_found_at_load() -> None:
    # specification 4.3
    config = {**BASE, "prompt": "${steps.absent.x}", "constraints": {"metadata": {"a": "${steps.gone}"}}}
    it = step("deliberation_step", config)
    found = list(KIND.check(it, definition(it)))
    assert [(path, code) for path, code, _ in found] == [("prompt", "unknown_step"), ("constraints", "unknown_step")]
    assert "`absent`" in found[0][2]


def test_the_request_is_the_task_of_this_attempt() -> None:
    # specification 5.3, 5.4, 15.2
    body = body_of(KIND, asked())
    task = "ceremony-c1:story-s1:role-PO:step-it:attempt-2"
    assert body["task_id"] == task
    assert body["agents"] == [FIRST, SECOND]
    assert (body["role"], body["story_id"], body["backlog_review"]) == ("PO", "s1", True)
    assert (body["timeout_seconds"], body["max_retries"], body["plan_id"]) == (300, 3, "")
    assert body["metadata"] == {
        "task_id": task,
        "task_type": "BACKLOG_REVIEW_ROLE",
        "instance_id": "c1:s1",
        "step_id": "it",
        "attempt": "2",
        "correlation_id": "corr-1",
    }
    assert body["task_description"].startswith("Review Login\n\nInputs:")
    assert '"plan": "p-9"' in body["task_description"]


def test_constraints_are_applied_and_routing_metadata_wins() -> None:
    # specification 5.2, 15.3
    constraints = {
        "story_id": "other",
        "plan_id": "${inputs.plan}",
        "timeout": 60,
        "max_retries": 0,
        "metadata": {"team": "${inputs.title}", "task_id": "forged", "plan_id": "forged"},
    }
    body = body_of(KIND, asked({"constraints": constraints}))
    assert (body["story_id"], body["plan_id"], body["timeout_seconds"], body["max_retries"]) == ("other", "p-9", 60, 0)
    assert body["metadata"]["team"] == "Login"
    assert body["metadata"]["task_id"].startswith("ceremony-c1:") and body["metadata"]["plan_id"] == "p-9"


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("${inputs.absent}", "template_unresolved"),
        ("x" * 300_000, "request_too_large"),
        ("${inputs.title}" * 300_000, "request_too_large"),
    ],
)
def test_a_request_that_cannot_be_made_fails_the_step_for_good(prompt: str, code: str) -> None:
    # specification 4.3, 5.3
    verdict = KIND.request(asked({"prompt": prompt}))
    assert isinstance(verdict, Failed)
    assert (verdict.code, verdict.retryable) == (code, False)


def test_only_agents_that_were_asked_are_accepted() -> None:
    # specification 5.4
    assert KIND.accepts(asked(), SECOND)
    assert not KIND.accepts(asked(), "agent-po-003")
    assert not KIND.accepts(asked(), "")


def test_it_waits_until_every_agent_has_answered() -> None:
    # specification 5.5
    assert KIND.gathered(asked(), {FIRST: AgentAnswer(value="yes")}) == Pending()
    assert (
        KIND.gathered(asked(), {FIRST: AgentAnswer(error_code="oom"), "stranger": AgentAnswer(value="me too")})
        == Pending()
    )


def test_all_proposals_make_the_output_in_the_order_of_agents() -> None:
    # specification 5.7
    answers = {
        SECOND: AgentAnswer(value={"content": "b"}, role="QA"),
        FIRST: AgentAnswer(value="a"),
        "stranger": AgentAnswer(value="x"),
    }
    assert KIND.gathered(asked(), answers) == Completed(
        {
            "task_id": "ceremony-c1:story-s1:role-PO:step-it:attempt-2",
            "deliberation_id": "d-1",
            "role": "PO",
            "num_agents": 2,
            "status": "completed",
            "deliberations": [
                {"agent_id": FIRST, "role": "PO", "proposal": "a"},
                {"agent_id": SECOND, "role": "PO", "proposal": {"content": "b"}},
            ],
        }
    )


def test_one_failed_agent_fails_the_attempt_and_each_is_named() -> None:
    # specification 5.5
    answers = {FIRST: AgentAnswer(error_code="oom", error_message="no memory"), SECOND: AgentAnswer(value="")}
    verdict = KIND.gathered(asked(), answers)
    assert isinstance(verdict, Failed)
    assert (verdict.code, verdict.retryable) == ("agents_failed", True)
    assert f"{FIRST}: oom (no memory)" in verdict.message and f"{SECOND}: empty result" in verdict.message


def test_min_agents_proposals_suffice() -> None:
    # specification 5.5
    verdict = KIND.gathered(
        asked({"min_agents": 1}), {FIRST: AgentAnswer(error_code="oom"), SECOND: AgentAnswer(value="b")}
    )
    assert isinstance(verdict, Completed)
    assert [d["agent_id"] for d in verdict.output["deliberations"]] == [SECOND]
    assert verdict.output["num_agents"] == 2


def test_when_the_time_is_up_enough_proposals_complete_it_and_fewer_are_a_timeout() -> None:
    # specification 5.6
    answers = {SECOND: AgentAnswer(value="b")}
    assert isinstance(KIND.timed_out(asked({"min_agents": 1}), answers), Completed)
    verdict = KIND.timed_out(asked(), answers)
    assert isinstance(verdict, Failed)
    assert (verdict.code, verdict.retryable) == ("timeout", True)
    assert f"{FIRST}: no answer" in verdict.message


def test_outcomes_of_other_kinds_are_refused() -> None:
    completed = KIND.completed(asked(), {"forged": True})
    decided = KIND.decided(asked(), Decided(approved=True, by=()))
    assert isinstance(completed, Failed) and completed.code == "unexpected_outcome"
    assert isinstance(decided, Failed) and decided.code == "not_a_gate"


MODEL = Model("http://vllm", "llama")


async def answered(ray: RecordingRay) -> Any:
    batch = MemoryBatch(request(KIND.request(asked()), kind="deliberation"))
    await run(agent(agent_ports(ray, model=MODEL)), batch)
    (outcome,) = batch.outcomes
    return outcome


async def test_the_agent_hands_the_task_over_with_this_servers_model() -> None:
    # specification 15.4
    ray = RecordingRay()
    outcome = await answered(ray)
    assert (outcome.outcome, outcome.deliberation_id) == ("submitted", "d-1")
    (task,) = ray.tasks
    assert (task.vllm_url, task.vllm_model, task.backlog_review) == ("http://vllm", "llama", True)
    assert [(a.id, a.role, a.model) for a in task.agents] == [(FIRST, "PO", "llama"), (SECOND, "PO", "llama")]
    assert task.task_id == task.metadata["task_id"] == "ceremony-c1:story-s1:role-PO:step-it:attempt-2"
    assert (task.correlation_id, task.timeout_seconds) == ("corr-1", 300)


async def test_a_refusal_of_the_executor_is_a_failed_attempt() -> None:
    # specification 15.5
    outcome = await answered(RecordingRay(RayAnswer("failed", code="ray_refused", message="no such role")))
    assert (outcome.outcome, outcome.error_code, outcome.error_message) == ("failed", "ray_refused", "no such role")
    assert outcome.retryable
    assert (await answered(RecordingRay(RayAnswer("failed")))).error_code == "ray_refused"


async def test_an_executor_out_of_reach_uses_up_no_attempt() -> None:
    # specification 11.8
    outcome = await answered(RecordingRay(Unreachable("ray_executor", "connection refused")))
    assert (outcome.outcome, outcome.error_code) == ("unreachable", "ray_executor_unreachable")
    assert outcome.error_message == "connection refused"
