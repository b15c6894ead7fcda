"""Task extraction: the source of the deliberations, the task, and the judgement of its list."""

from __future__ import annotations

from typing import Any

import pytest

from steps.task_extraction import TaskExtraction, agent
from tables.instance import AgentAnswer
from tables.kinds import Completed, Failed, Pending, StepContext
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

KIND = TaskExtraction()
AGENT = "agent-task-extractor-001"
BASE = {"source": "deliberation:review"}
ONE = {"agent_id": "agent-po-001", "role": "PO", "proposal": "Do it"}
TWO = {"agent_id": "agent-qa-001", "role": "QA", "proposal": {"content": "Test it"}}


def asked(
    config: dict[str, Any] | None = None, inputs: dict[str, Any] | None = None, review: Any = ([ONE, TWO],)
) -> StepContext:
    done = {"review": {"deliberations": review[0] if isinstance(review, tuple) else review}} if review else {}
    it = step("task_extraction_step", {**BASE, **(config or {})})
    return context(it, inputs={"title": "Login", **(inputs or {})}, done=done, deliberation_id="d-1")


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({}, "source:missing"),
        ({"source": "review"}, "source:string_pattern_mismatch"),
        ({"source": "deliberation:"}, "source:string_pattern_mismatch"),
        ({**BASE, "extraction_prompt": ""}, "extraction_prompt:blank"),
        ({**BASE, "num_agents": 1}, "num_agents:extra_forbidden"),
    ],
)
def test_a_wrong_config_is_found_at_load(config: dict[str, Any], error: str) -> None:
    # specification 6.1
    assert error in wrong("task_extraction_step", config)


def test_the_source_must_be_a_deliberation_step_of_the_definition() -> None:
    # specification 6.1
    it = step("task_extraction_step", {**BASE, "extraction_prompt": "${steps.absent.x}"})
    gate = step("human_gate_step", {"role": "PO", "message": "m"}, "review")
    review = step("deliberation_step", {"prompt": "p", "role": "PO", "num_agents": 1}, "review")
    codes = [[code for _, code, _ in KIND.check(it, definition(it, *others))] for others in ((), (gate,), (review,))]
    assert codes == [["unknown_source", "unknown_step"], ["source_not_deliberation", "unknown_step"], ["unknown_step"]]


def test_the_request_is_one_task_for_the_extractor() -> None:
    # specification 6.4, 15.2, 15.3
    body = body_of(KIND, asked({"extraction_prompt": "Split ${inputs.title}."}))
    task = "ceremony-c1:story-s1:task-extraction:step-it:attempt-2"
    assert (body["task_id"], body["role"], body["agents"]) == (task, "TASK_EXTRACTOR", [AGENT])
    assert (body["backlog_review"], body["timeout_seconds"], body["max_retries"]) == (False, 300, 3)
    assert body["metadata"] == {
        "task_type": "TASK_EXTRACTION",
        "ceremony_id": "c1",
        "task_id": task,
        "instance_id": "c1:s1",
        "step_id": "it",
        "attempt": "2",
        "correlation_id": "corr-1",
    }


def test_the_agent_reads_the_inputs_every_deliberation_and_the_json_wanted() -> None:
    # specification 6.3
    text = body_of(KIND, asked({"extraction_prompt": "Split ${inputs.title}."}))["task_description"]
    assert text.startswith("Split Login.\n\nInputs:")
    assert '"title": "Login"' in text
    assert "Deliberation 0 (agent agent-po-001, role PO):\nDo it" in text
    assert "Deliberation 1 (agent agent-qa-001, role QA):\nTest it" in text
    for field in ("title", "description", "estimated_hours", "deliberation_indices", "priority"):
        assert f'"{field}"' in text.partition('{"tasks"')[2]


def test_an_input_wins_over_the_source_step() -> None:
    # specification 6.2
    text = body_of(KIND, asked(inputs={"agent_deliberations": [{**ONE, "proposal": "From the input"}]}))[
        "task_description"
    ]
    assert "From the input" in text and "Do it" not in text
    assert text.count("From the input") == 1


@pytest.mark.parametrize(
    ("deliberations", "code", "says"),
    [
        ("text", "agent_deliberations_not_list", "list"),
        (None, "agent_deliberations_not_list", "list"),
        ([], "agent_deliberations_empty", "empty"),
        ([ONE, "x"], "agent_deliberations_invalid", "item 1"),
        ([{**ONE, "agent_id": ""}], "agent_deliberations_invalid", "`agent_id`"),
        ([{**ONE, "role": 5}], "agent_deliberations_invalid", "`role`"),
        ([{"agent_id": "a", "role": "r"}], "agent_deliberations_invalid", "`proposal`"),
        ([{**ONE, "proposal": {"text": "x"}}], "agent_deliberations_invalid", "`content`"),
        ([{**ONE, "proposal": " "}], "agent_deliberations_invalid", "`proposal`"),
    ],
)
def test_deliberations_are_validated_from_the_input_and_from_the_step(deliberations: Any, code: str, says: str) -> None:
    # specification 6.2
    for it in (asked(inputs={"agent_deliberations": deliberations}), asked(review=(deliberations,))):
        verdict = KIND.request(it)
        assert isinstance(verdict, Failed)
        assert (verdict.code, verdict.retryable) == (code, False)
        assert says in verdict.message


def test_without_input_and_source_there_is_nothing_to_extract_from() -> None:
    # specification 6.2
    verdict = KIND.request(asked(review=None))
    assert isinstance(verdict, Failed)
    assert (verdict.code, verdict.retryable) == ("agent_deliberations_missing", False)


@pytest.mark.parametrize(
    ("prompt", "code"), [("${inputs.absent}", "template_unresolved"), ("x" * 300_000, "request_too_large")]
)
def test_a_request_that_cannot_be_made_fails_the_step_for_good(prompt: str, code: str) -> None:
    verdict = KIND.request(asked({"extraction_prompt": prompt}))
    assert isinstance(verdict, Failed)
    assert (verdict.code, verdict.retryable) == (code, False)


@pytest.mark.parametrize("tasks", [[], [{"title": "a"}, {}]])
def test_a_list_of_objects_is_the_result_and_an_empty_one_too(tasks: list[Any]) -> None:
    # specification 6.4, 6.5
    assert KIND.gathered(asked(), {AGENT: AgentAnswer(value=tasks)}) == Completed(
        {
            "source": "deliberation:review",
            "task_id": "ceremony-c1:story-s1:task-extraction:step-it:attempt-2",
            "deliberation_id": "d-1",
            "status": "completed",
            "tasks": tasks,
        }
    )


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (AgentAnswer(value="text"), "tasks_invalid"),
        (AgentAnswer(value=[{}, "x"]), "tasks_invalid"),
        (AgentAnswer(error_code="oom"), "agents_failed"),
        (AgentAnswer(), "agents_failed"),
    ],
)
def test_any_other_result_fails_the_attempt_which_is_retried(answer: AgentAnswer, code: str) -> None:
    # specification 6.4
    verdict = KIND.gathered(asked(), {AGENT: answer})
    assert isinstance(verdict, Failed)
    assert (verdict.code, verdict.retryable) == (code, True)


def test_only_the_extractor_counts() -> None:
    # specification 6.4
    assert KIND.accepts(asked(), AGENT) and not KIND.accepts(asked(), "agent-po-001")
    assert KIND.gathered(asked(), {"agent-po-001": AgentAnswer(value=[])}) == Pending()


def test_no_result_is_a_timeout() -> None:
    late = KIND.timed_out(asked(), {})
    assert isinstance(late, Failed) and (late.code, late.retryable) == ("timeout", True)


async def test_the_agent_uses_the_plain_deliberation_call() -> None:
    # specification 15.1
    ray = RecordingRay()
    batch = MemoryBatch(request(KIND.request(asked())))
    await run(agent(agent_ports(ray)), batch)
    assert [outcome.outcome for outcome in batch.outcomes] == ["submitted"]
    assert not ray.tasks[0].backlog_review
    assert [a.id for a in ray.tasks[0].agents] == [AGENT]
